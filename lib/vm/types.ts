/**
 * What a VM on a network is, as data: the record that is printed and kept, and the requests that
 * the verbs take. No code, so importing it costs nothing.
 *
 * @module
 */

import type { Firewall } from "../firewall/firewall.ts";
import type { FirewallKind } from "../firewall/store.ts";
import type { PortMapping } from "../inet/ports.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";

/** How frames get between the VM's TAP and its interface. */
export type AttachMode = "tc-redirect" | "dhcp-bridge";

/** One address of an interface. */
export interface VmAddress {
  /** With its prefix length: `"172.18.0.2/16"`. */
  readonly address: string;
  /** The network's router, without a prefix length. */
  readonly gateway?: string;
}

/** A route the guest is told about. */
export interface VmRoute {
  /** `"0.0.0.0/0"` for the default route. */
  readonly dst: string;
  readonly gw?: string;
}

/** One network interface of a VM. */
export interface VmInterface {
  /** Its name in the VM's namespace: `"eth0"`. */
  readonly name: string;
  /** The CNI network it is on: `"ignite-cni-bridge"`. */
  readonly network: string;
  readonly mode: AttachMode;
  /** The TAP device the VMM opens: `"vm_eth0"`. */
  readonly tap: string;
  /** With mode `dhcp-bridge`, the bridge of the TAP and the interface: `"br_eth0"`. */
  readonly bridge?: string;
  /** False where the kernel could not keep DHCP from passing between guest and network. */
  readonly dhcpGuard?: false;
  /** False where the guest may send in the name of other MACs and addresses. */
  readonly antispoof?: false;
  /** A link-local address it may have beside the one that follows from its MAC; `any` of them. */
  readonly linkLocal?: string;
  /** True where the dhcp plugin's daemon leases its addresses, and hears what servers answer. */
  readonly leased?: true;
  /** Lower case, colons: what CNI gave the interface, and the guest must use. */
  readonly mac: string;
  /** Bytes. */
  readonly mtu: number;
  readonly addresses: readonly VmAddress[];
  readonly routes: readonly VmRoute[];
}

/** The guest's name resolution. Loopback resolvers never appear. */
export interface VmDns {
  readonly nameservers: readonly string[];
  readonly search: readonly string[];
}

/** The attachment of one VM: what attaching prints, and what is kept on disk. */
export interface VmRecord {
  readonly version: 1;
  /** The VM's name. */
  readonly vm: string;
  /** The CNI container id: the SHA-256 of the name, in hexadecimal. */
  readonly id: string;
  readonly networkPlugin: "cni";
  /** The path of the VM's network namespace. */
  readonly netns: string;
  readonly interfaces: readonly VmInterface[];
  readonly dns: VmDns;
  readonly ports: readonly PortMapping[];
  /** Where nothing passes between the guest and the others of its networks. */
  readonly isolated?: true;
  /** Prefixes that the guest's new connections may not go to, and exceptions of them. */
  readonly denyEgress?: readonly string[];
  readonly allowEgress?: readonly string[];
  /** Prefixes from where the guest is reached by its own addresses. */
  readonly reachableFrom?: readonly string[];
  /** Limits that were asked for; absent, the host's defaults hold. */
  readonly maxConnections?: number | "none";
  readonly newConnections?: number | "none";
}

/** One of the kinds of things that an attachment consists of, in the order in which they are made. */
export type LayerName =
  | "netns"
  | "network"
  | "wire"
  | "guard"
  | "rules"
  | "policy"
  | "passes"
  | "sysctls"
  | "dhcp"
  | "record";

/** Something that is not as recorded. `object` and `problem` together are a sentence. */
export interface Difference {
  readonly layer: LayerName;
  /** What differs: `TAP "vm_eth0"`. */
  readonly object: string;
  /** How it differs: `is missing`. */
  readonly problem: string;
  /**
   * What attaching again does about it: repairs it while the guest runs, makes it and all that stands
   * on it anew, or nothing.
   */
  readonly repair: "live" | "recreate" | "none";
  /** A plugin said so right after its own ADD, too: it means nothing. */
  readonly ignored?: true;
  /** Of what a network's plugins made: which network, and what of it. */
  readonly place?: {
    readonly network: number;
    /** The plugin's place in the chain. */
    readonly plugin?: number;
    /** It was seen without asking a plugin, or is about what masquerades. */
    readonly kind?: "seen" | "masquerade";
  };
}

/** Something that attaching did. */
export interface Change {
  readonly layer: LayerName;
  readonly object: string;
  readonly change: "created" | "recreated" | "repaired" | "changed";
}

/** What attaching a VM did. */
export interface Attached {
  readonly record: VmRecord;
  /** Empty where nothing was to do. */
  readonly changes: readonly Change[];
  /** Whether a TAP was made anew, so that the VMM has to open it again. */
  readonly tapReplaced: boolean;
}

/** What became of one VM that was to be restored: its record, or why it is not back. */
export type Restored =
  | Attached & { readonly name: string; readonly error?: undefined }
  | { readonly name: string; readonly record?: undefined; readonly error: unknown };

/** What ports lead to: a VM, by its name, or an address that tapkit did not attach. */
export type PortTarget = string | { readonly to: string };

/** All mappings of one target. */
export type MappedPorts =
  & ({ readonly vm: string } | { readonly to: string })
  & { readonly ports: readonly PortMapping[] };

/** A dead VM's attachment that was collected, or why it is still there. */
export interface Collected {
  readonly name: string;
  readonly record?: undefined;
  readonly error?: unknown;
}

/** Where things are on this host; each falls back to the environment, then to its default. */
export interface HostOptions {
  /** Records and locks: `TAPKIT_STATE_DIR`, then `/var/lib/tapkit`. */
  readonly stateDir?: string;
  /** CNI configurations: `NETCONFPATH`, then `/etc/cni/net.d`. */
  readonly confDir?: string;
  /** CNI plugins: `CNI_PATH`, then `/opt/cni/bin` and `/usr/lib/cni`. */
  readonly binDirs?: readonly string[];
  /** How long a CNI plugin may take, in seconds: `TAPKIT_PLUGIN_TIMEOUT`, then 120. */
  readonly pluginTimeout?: number;
  /**
   * When it is raised, a call undoes what it began and throws the reason; a removal that has begun
   * goes on to its end. What is done already stays.
   */
  readonly signal?: AbortSignal;
  /**
   * Called when a call waits for a program of others, and holds nothing that calls for other VMs need:
   * they may begin.
   */
  readonly waits?: () => void;
  /** Called with each line of progress or warning meant for people. */
  readonly note?: (text: string) => void;
  /** Called with each line for whoever looks for a cause, that `note` sums up or leaves out. */
  readonly detail?: (text: string) => void;
  /** What several calls keep open between them; without it each opens and closes its own. */
  readonly session?: HostSession;
}

/** Sockets of the host that calls share. `openSession` makes one; dispose of it after the last. */
export interface HostSession extends Disposable {
  readonly nl: NetlinkConnection;
  /** The backend of that kind; without one, that which a new VM gets. */
  firewall(kind?: FirewallKind): Promise<Firewall>;
  /** That backend, and any other that may hold rules of tapkit's. */
  firewalls(kind: FirewallKind): Promise<readonly Firewall[]>;
  /** What is made once, and disposed of with the session. */
  keep<T extends Disposable>(key: string, make: () => T): T;
}

/** How ports are mapped to something that is there. */
export interface MapOptions extends HostOptions {
  /** Opens all of its ports also where ufw or firewalld denies what is not allowed. */
  readonly openFirewall?: boolean;
}

/** What is asked for one VM. Absent fields keep what is recorded, or take the default. */
export interface AttachRequest {
  /** 1–63 of `a-z A-Z 0-9 . _ -`, beginning with a letter or a digit. */
  readonly name: string;
  /** Published ports, each `"8080:80"`, `"127.0.0.1:8080:80/udp"`, … or a mapping; `"none"` clears them. */
  readonly ports?: readonly (string | PortMapping)[] | "none";
  /** The address to ask the network for; its prefix length only where nobody else knows it. */
  readonly ip?: string;
  /** A unicast MAC address. */
  readonly mac?: string;
  /** Bytes. */
  readonly mtu?: number;
  /** The path of an existing network namespace to use; it is never deleted. */
  readonly netns?: string;
  /** `USER[:GROUP]`, by name or number, who may open the TAP without being root. */
  readonly tapOwner?: string;
  /** What each interface may send and receive, in bits a second: `"100mbit"`. */
  readonly bandwidth?: string;
  /**
   * `builtin` executes no plugin, `exec` all; `auto` executes what is configured, but for tapkit's
   * own default network, and where a program is missing that is built in.
   */
  readonly plugins?: "auto" | "builtin" | "exec";
  readonly mode?: "auto" | AttachMode;
  /** What rules are made by; absent, nftables where the kernel has it. */
  readonly firewall?: FirewallKind;
  /** CNI network names: eth0 is on the first, eth1 on the second, … */
  readonly networks?: readonly string[];
  /**
   * Capability arguments of CNI that have no field of their own: `{ aliases: ["web"] }`. Each goes to
   * the plugins that declare the capability.
   */
  readonly capabilities?: Readonly<Record<string, unknown>>;
  /** What CNI_ARGS is made of, for all plugins: `{ K8S_POD_NAME: "web" }`. */
  readonly cniArgs?: Readonly<Record<string, string>>;
  /** Whether the guest's frames are held to its own MAC and addresses; true unless given. */
  readonly antispoof?: boolean;
  /**
   * The link-local IPv6 address of a guest that does not make it of its MAC (RFC 7217), `"any"` for one
   * that is not known, or `"eui64"`, the default.
   */
  readonly linkLocal?: string;
  /** Whether nothing may pass between the guest and the others of its networks. */
  readonly isolated?: boolean;
  /**
   * Prefixes or addresses, `"169.254.169.254"`, that the guest's new connections may not go to;
   * `"none"` clears them, and exceptions of them that are not given with it. Of these and {@linkcode allowEgress} the longest that matches decides, and of two
   * equal ones the exception.
   */
  readonly denyEgress?: readonly string[] | "none";
  readonly allowEgress?: readonly string[] | "none";
  /**
   * Prefixes from where connections to the guest's own addresses are let in, and towards which its
   * own are not masqueraded: networks that have a route to the guests'; `"none"` clears them.
   */
  readonly reachableFrom?: readonly string[] | "none";
  /**
   * How many connections are tracked that the guest opened, and how many that were opened to it. By
   * default a quarter of what the kernel tracks.
   */
  readonly maxConnections?: number | "none" | "default";
  /**
   * How many connections the guest may open a second, and sixteen times as many at once. By default
   * one in 512 of what the kernel tracks.
   */
  readonly newConnections?: number | "none" | "default";
  /** Whether published ports are open also where ufw or firewalld denies what is not allowed. */
  readonly openFirewall?: boolean;
}

/** The forms a record is printed in. */
export type OutputFormat = "json" | "env" | "cmdline" | "dracut" | "qemu";
