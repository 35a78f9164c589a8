/**
 * An attachment as it is recorded: what is wanted of a VM, what its networks gave, and which change
 * is in progress. No code.
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

/** A published port. A VM's ports are stored nowhere else. */
export interface Claim extends PortMapping {
  /** The command that asked for it. Both may claim one port. */
  readonly by: "attach" | "map";
  /** Whether tapkit chose the host port, for port 0. The next request for port 0 gets it again. */
  readonly chosen: boolean;
}

/** A limit of a guest: a number, none, or the host's default. */
export type Limit = number | "unlimited" | "default";

/** What a guest may reach, and who may reach it. Prefixes are canonical. */
export interface Policy {
  readonly isolated: boolean;
  readonly denyEgress: readonly string[];
  readonly allowEgress: readonly string[];
  readonly reachableFrom: readonly string[];
  readonly maxConnections: Limit;
  readonly newConnections: Limit;
}

/** What is wanted of Docker. */
export interface DockerSpec {
  /** The image of the sandbox, if it is not tapkit's own. */
  readonly image?: string;
  /** A container that was given. It is never removed. */
  readonly container?: string;
}

/** What is wanted of a VM. Settings that were not asked for have their defaults. */
export interface Spec {
  readonly id: Identity;
  /** Network names: eth0 is on the first. Empty until the default network is looked up. */
  readonly networks: readonly string[];
  /** The requested address of the first interface, with or without a prefix length. */
  readonly ip?: string;
  /** The requested MAC of the first interface. */
  readonly mac?: string;
  /** The requested MTU of all interfaces, in bytes. */
  readonly mtu?: number;
  /** The path of a namespace that was given. It is never deleted. */
  readonly netns?: string;
  /** The `USER[:GROUP]` that may open the TAPs. */
  readonly tapOwner?: string;
  /** How many queues of each TAP a VMM may open, if more than one. */
  readonly queues?: number;
  /** Bits per second, each way. */
  readonly bandwidth?: number;
  readonly plugins: "auto" | "builtin" | "exec";
  readonly mode: "auto" | AttachMode;
  /** The backend of its rules. */
  readonly firewall: FirewallKind;
  readonly capabilities: Readonly<Record<string, unknown>>;
  readonly cniArgs: Readonly<Record<string, string>>;
  /** Whether frames from another MAC or address than the guest's are dropped. */
  readonly antispoof: boolean;
  /** `"eui64"`, `"any"`, or the guest's link-local address. */
  readonly linkLocal: string;
  readonly policy: Policy;
  readonly claims: readonly Claim[];
  /** Whether ufw and firewalld are told to accept published ports. */
  readonly openPorts: boolean;
  /** There if Docker's network is wanted instead of CNI's. */
  readonly docker?: DockerSpec;
  /** The `-- VMM` call whose end removes the attachment. */
  readonly run?: string;
}

/** What a network gave an interface. The guest has the same. */
export interface GuestLink {
  /** Lower case, colons. */
  readonly mac: string;
  /** Bytes. */
  readonly mtu: number;
  readonly addresses: readonly VmAddress[];
  readonly routes: readonly VmRoute[];
  /** True if the dhcp plugin's daemon leases its addresses. */
  readonly leased?: true;
}

/** How the host reaches an interface. */
export interface Reach {
  /** The host's link to it: the bridge, if its host end is a bridge port. `""` if not known. */
  readonly link: string;
  /** Without prefix lengths. */
  readonly addresses: readonly string[];
  /** Whether its packets are masqueraded: see GuestRules. */
  readonly masquerade: boolean;
  /** Whether this host forwards packets for it. */
  readonly forward: boolean;
  /** Whether connections to its ports come from the host's address. */
  readonly relayed?: true;
  /** The host's end of its veth pair, and the bridge that this end is a port of. */
  readonly hostEnd?: string;
  readonly bridge?: string;
}

/** An interface on a network: the plan, then what the network gave. */
export interface NetworkFact {
  /** The plugins that run or ran for it. */
  readonly attachment: NetworkAttachment;
  /** For a network of Docker's. */
  readonly docker?: DockerFact;
  /** Absent until the network has created the interface. */
  readonly link?: GuestLink;
  readonly reach?: Reach;
  /** The guest's limits, with the host's defaults at that time. */
  readonly limits?: GuestLimits;
  /** Absent until the TAP exists. */
  readonly wire?: {
    readonly mode: AttachMode;
    /** False if the kernel lacks what guards need. */
    readonly guarded: boolean;
  };
}

/** The container whose interface a VM has. */
export interface DockerFact {
  /** Its id. Absent until it exists. */
  readonly container?: string;
  /** The ports that Docker publishes. They stay as they are as long as the container does. */
  readonly ports: readonly PortMapping[];
}

/** What the namespace and the networks are. */
export interface Facts {
  readonly netns: {
    readonly path: string;
    /** Whether it was given by path. Then it is never deleted. */
    readonly given: boolean;
    /** Its identity. Absent until it exists. */
    readonly is?: NetnsIdentity;
  };
  readonly networks: readonly NetworkFact[];
  readonly dns: VmDns;
}

/** What is wanted of a VM, and what it has. */
export interface Both {
  readonly spec: Spec;
  readonly facts: Facts;
}

/**
 * The state of an attachment. While it changes, the kernel may have parts of both sides. Without
 * `from` it is being attached, without `to` it is being removed.
 */
export type Attachment<B = Both> =
  | { readonly is: "attached"; readonly at: B }
  | { readonly is: "changing"; readonly from?: B; readonly to?: B };
