/**
 * An attachment as it is recorded: what is wanted of a VM, what its networks gave, and whether a change
 * from one to another is under way. No code.
 *
 * @module
 */

import type { NetworkAttachment } from "../../cni/plan.ts";
import type { GuestLimits } from "../../firewall/model.ts";
import type { FirewallKind } from "../../firewall/store.ts";
import type { PortMapping } from "../../inet/ports.ts";
import type { NetnsIdentity } from "../../netlink/identity.ts";
import type { AttachMode, VmAddress, VmDns, VmRoute } from "../types.ts";
import type { Identity } from "./identity.ts";

/** A published port. Claims are the only place where a VM's ports are kept. */
export interface Claim extends PortMapping {
  /** Who asked for it: attach-vm, or map-port. A port may be claimed by both. */
  readonly by: "attach" | "map";
  /** Whether host port 0 asked for it. Who asks for port 0 again gets it again. */
  readonly chosen: boolean;
}

/** How many of something a guest may have: a number, any, or the host's default. */
export type Limit = number | "unlimited" | "default";

/** What a guest may reach, and from where it is reached. Prefixes are canonical. */
export interface Policy {
  readonly isolated: boolean;
  readonly denyEgress: readonly string[];
  readonly allowEgress: readonly string[];
  readonly reachableFrom: readonly string[];
  readonly maxConnections: Limit;
  readonly newConnections: Limit;
}

/** What is wanted of a VM. Every value is whole: what was not asked for has its default. */
export interface Spec {
  readonly id: Identity;
  /** The networks' names: eth0 is on the first. Empty until the first network is looked up. */
  readonly networks: readonly string[];
  /** The address of the first interface that was asked for, with or without a prefix length. */
  readonly ip?: string;
  /** The MAC of the first interface that was asked for. */
  readonly mac?: string;
  /** The MTU of all interfaces that was asked for, in bytes. */
  readonly mtu?: number;
  /** The namespace that was named: it is never deleted. */
  readonly netns?: string;
  /** `USER[:GROUP]` who may open the TAPs. */
  readonly tapOwner?: string;
  /** Bits a second, each way. */
  readonly bandwidth?: number;
  readonly plugins: "auto" | "builtin" | "exec";
  readonly mode: "auto" | AttachMode;
  /** What rules are made by. */
  readonly firewall: FirewallKind;
  readonly capabilities: Readonly<Record<string, unknown>>;
  readonly cniArgs: Readonly<Record<string, string>>;
  /** Whether the guest's frames are held to its own MAC and addresses. */
  readonly antispoof: boolean;
  /** `"eui64"`, `"any"`, or the guest's link-local address. */
  readonly linkLocal: string;
  readonly policy: Policy;
  readonly claims: readonly Claim[];
  /** Whether published ports are open also where another firewall denies what is not allowed. */
  readonly openPorts: boolean;
  /** The `-- VMM` call that the attachment goes with. */
  readonly run?: string;
}

/** What a network gave an interface, and the guest has. */
export interface GuestLink {
  /** Lower case, colons. */
  readonly mac: string;
  /** Bytes. */
  readonly mtu: number;
  readonly addresses: readonly VmAddress[];
  readonly routes: readonly VmRoute[];
  /** True where the dhcp plugin's daemon leases its addresses. */
  readonly leased?: true;
}

/** How the host reaches an interface. */
export interface Reach {
  /** The host's link towards it: the bridge, where its host end is a bridge port. `""`: not known. */
  readonly link: string;
  /** Without prefix lengths. */
  readonly addresses: readonly string[];
  /** Whether its network is private: see GuestRules. */
  readonly masquerade: boolean;
  /** Whether this host forwards its packets. */
  readonly forward: boolean;
  /** Whether ports reach it under the host's address. */
  readonly relayed?: true;
  /** The host's end of its veth pair, and the bridge that this is a port of. */
  readonly hostEnd?: string;
  readonly bridge?: string;
}

/** An interface on a network, from the plan to what was given. */
export interface NetworkFact {
  /** The plugins that run, or ran, for it. */
  readonly attachment: NetworkAttachment;
  /** Absent until the network made the interface. */
  readonly link?: GuestLink;
  readonly reach?: Reach;
  /** The guest's limits, with the host's defaults as they were. */
  readonly limits?: GuestLimits;
  /** Absent until the TAP is there. */
  readonly wire?: {
    readonly mode: AttachMode;
    /** False where the kernel has no means to guard it. */
    readonly guarded: boolean;
  };
}

/** What was given. */
export interface Facts {
  readonly netns: {
    readonly path: string;
    /** Whether it was named, and so stays. */
    readonly given: boolean;
    /** Which one it is; absent until it is there. */
    readonly is?: NetnsIdentity;
  };
  readonly networks: readonly NetworkFact[];
  readonly dns: VmDns;
}

/** An attachment of a VM: what is wanted, and what was given. */
export interface Both {
  readonly spec: Spec;
  readonly facts: Facts;
}

/**
 * The state of an attachment. While it is changing, what is in the kernel may be of either side:
 * without `from` it is being attached, without `to` it is being removed.
 */
export type Attachment<B = Both> =
  | { readonly is: "attached"; readonly at: B }
  | { readonly is: "changing"; readonly from?: B; readonly to?: B };
