/**
 * The types of the library's calls: the record that is printed, requests, options and results. No
 * code, so importing it costs nothing.
 *
 * @module
 */

import type { Firewall } from "../firewall/firewall.ts";
import type { FirewallKind } from "../firewall/store.ts";
import type { PortMapping } from "../inet/ports.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import type { SpareNetns } from "./spare-netns.ts";

/** What makes a VM's network: CNI's plugins, or Docker (deprecated). */
export type NetworkPlugin = "cni" | "docker-bridge";

/** How frames pass between a VM's TAP and its interface. */
export type AttachMode = "tc-redirect" | "dhcp-bridge";

/** One address of an interface. */
export interface VmAddress {
  /** With its prefix length: `"172.18.0.2/16"`. */
  readonly address: string;
  /** The network's router, without a prefix length. */
  readonly gateway?: string;
}

/** A route that the guest gets. */
export interface VmRoute {
  /** `"0.0.0.0/0"` for the default route. */
  readonly dst: string;
  /**
   * The router's address. Without it the router is the network's gateway, unless `dst` is not the
   * default and contains the gateway: then there is none.
   */
  readonly gw?: string;
}

/** One network interface of a VM. */
export interface VmInterface {
  /** Its name in the VM's namespace: `"eth0"`. */
  readonly name: string;
  /** The network that it is on: `"ignite-cni-bridge"`; of Docker's, `"bridge"`. */
  readonly network: string;
  /** How frames pass between its TAP and the interface. */
  readonly mode: AttachMode;
  /** The TAP device that the VMM opens: `"vm_eth0"`. */
  readonly tap: string;
  /** In mode `dhcp-bridge`, the bridge of the TAP and the interface: `"br_eth0"`. */
  readonly bridge?: string;
  /** False if the kernel cannot drop DHCP between guest and network. */
  readonly dhcpGuard?: false;
  /** False if the guest may send from other MACs and addresses. */
  readonly antispoof?: false;
  /** A link-local address in addition to the one derived from the MAC; or `any`. */
  readonly linkLocal?: string;
  /** True if the dhcp plugin's daemon leases its addresses and gets the servers' answers. */
  readonly leased?: true;
  /** Lower case, colons. CNI gave it to the interface, and the guest must use it. */
  readonly mac: string;
  /** Bytes. */
  readonly mtu: number;
  /** How many queues of the TAP the VMM may open, if more than one. */
  readonly queues?: number;
  /** The guest's addresses. */
  readonly addresses: readonly VmAddress[];
  /** The guest's routes. */
  readonly routes: readonly VmRoute[];
}

/** The guest's name resolution. Loopback resolvers never appear. */
export interface VmDns {
  /** The addresses of resolvers. */
  readonly nameservers: readonly string[];
  /** Domains that short names are looked up in. */
  readonly search: readonly string[];
}

/** The attachment of one VM, as it is printed. */
export interface VmRecord {
  /** The version of the record's format. */
  readonly version: 1;
  /** The VM's name. */
  readonly vm: string;
  /** The CNI container id: the SHA-256 of the name, in hexadecimal. */
  readonly id: string;
  /** What made its networks. */
  readonly networkPlugin: NetworkPlugin;
  /** The path of the VM's network namespace. */
  readonly netns: string;
  /** In the order of its networks: eth0, eth1, … */
  readonly interfaces: readonly VmInterface[];
  /** What the guest resolves names by. */
  readonly dns: VmDns;
  /** The published ports, those of attach-vm and of map-port. */
  readonly ports: readonly PortMapping[];
  /** True if nothing passes between the guest and others on its networks. */
  readonly isolated?: true;
  /** Prefixes that the guest's new connections may not go to, and exceptions. */
  readonly denyEgress?: readonly string[];
  /** The exceptions: prefixes that the guest may open connections to all the same. */
  readonly allowEgress?: readonly string[];
  /** Prefixes that reach the guest by its own addresses. */
  readonly reachableFrom?: readonly string[];
  /** Limits that were requested. Without them the host's defaults apply. */
  readonly maxConnections?: number | "none";
  /** The most connections that the guest may open per second. */
  readonly newConnections?: number | "none";
}

/** The parts of an attachment, in the order in which they are created. */
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

/** Something that differs from the record. `object` and `problem` together are a sentence. */
export interface Difference {
  /** The part of the attachment that differs. */
  readonly layer: LayerName;
  /** `TAP "vm_eth0"`. */
  readonly object: string;
  /** `is missing`. */
  readonly problem: string;
  /**
   * What attaching again does: `live` repairs it while the guest runs, `recreate` makes it and all
   * that depends on it again, `none` does nothing.
   */
  readonly repair: "live" | "recreate" | "none";
  /** The plugin reported this right after its ADD too, so it is not a problem. */
  readonly ignored?: true;
  /** For the work of network plugins: which network, and which part. */
  readonly place?: {
    readonly network: number;
    /** The plugin's place in the chain. */
    readonly plugin?: number;
    /** It was seen without asking a plugin, it concerns masquerading, or it is of a built-in plugin. */
    readonly kind?: "seen" | "masquerade" | "builtin";
  };
}

/** One thing that attaching did. */
export interface Change {
  /** The part of the attachment that was changed. */
  readonly layer: LayerName;
  /** What was changed, in words. */
  readonly object: string;
  /** What was done to it. */
  readonly change: "created" | "recreated" | "repaired" | "changed" | "removed";
}

/** What a call would do. */
export interface Plan {
  /** Empty if nothing has to be done. */
  readonly changes: readonly Change[];
  /** Whether a TAP would be created again, so that the VMM must open it again. */
  readonly tapReplaced: boolean;
}

/** What attaching a VM did. */
export interface Attached {
  /** The record after the call. */
  readonly record: VmRecord;
  /** Empty if nothing had to be done. */
  readonly changes: readonly Change[];
  /** Whether a TAP was created again, so that the VMM must open it again. */
  readonly tapReplaced: boolean;
}

/** The result of restoring one VM: its record, or the error. */
export type Restored =
  | Attached & { readonly name: string; readonly error?: undefined }
  | { readonly name: string; readonly record?: undefined; readonly error: unknown };

/** The target of ports: a VM, by its name, or an address that tapkit did not attach. */
export type PortTarget = string | { readonly to: string };

/** All mappings of one target. */
export type MappedPorts =
  & ({ readonly vm: string } | { readonly to: string })
  & { readonly ports: readonly PortMapping[] };

/** The result of removing one VM of several. */
export type Removed =
  | { readonly name: string; readonly removed: boolean; readonly error?: undefined }
  | { readonly name: string; readonly removed?: undefined; readonly error: unknown };

/** The result of removing one dead attachment. With an error, it is still there. */
export interface Collected {
  /** The VM's name. */
  readonly name: string;
  /** Always absent. {@linkcode Restored} has one. */
  readonly record?: undefined;
  /** Why it could not be removed; absent if it is gone. */
  readonly error?: unknown;
}

/** Directories and callbacks of a call. A directory is from here, the environment, or fixed. */
export interface HostOptions {
  /** Records and locks: `TAPKIT_STATE_DIR`, then `/var/lib/tapkit`. */
  readonly stateDir?: string;
  /** CNI configurations: `NETCONFPATH`, then `/etc/cni/net.d`. */
  readonly confDir?: string;
  /** CNI plugins: `CNI_PATH`, then `/opt/cni/bin` and `/usr/lib/cni`. */
  readonly binDirs?: readonly string[];
  /** The time limit of a CNI plugin, in seconds: `TAPKIT_PLUGIN_TIMEOUT`, then 120. */
  readonly pluginTimeout?: number;
  /**
   * When it is aborted, a call undoes what it began and throws the reason. A removal that has begun
   * continues to its end. Finished work stays.
   */
  readonly signal?: AbortSignal;
  /**
   * Called when a call waits for an external program and has released the locks that calls for other
   * VMs need. These may begin then.
   */
  readonly waits?: () => void;
  /** Called with each line of progress or warning for the user. */
  readonly note?: (text: string) => void;
  /** Called with each line for debugging, which `note` summarizes or leaves out. */
  readonly detail?: (text: string) => void;
  /** The sockets that several calls share. Without it each call opens and closes its own. */
  readonly session?: HostSession;
}

/** Sockets that calls share. `openSession` returns one; dispose of it after the last call. */
export interface HostSession extends Disposable {
  /**
   * A netlink connection of the host's namespace.
   *
   * @internal
   */
  readonly nl: NetlinkConnection;
  /** Whether it is for several VMs. */
  readonly batch?: boolean;
  /**
   * The backend of a kind; without a kind, the one that a new VM gets.
   *
   * @internal
   */
  firewall(kind?: FirewallKind): Promise<Firewall>;
  /**
   * That backend, and the other one if it may have rules of tapkit.
   *
   * @internal
   */
  firewalls(kind: FirewallKind): Promise<readonly Firewall[]>;
  /**
   * A namespace that is ready for a new VM.
   *
   * @internal
   */
  readonly spareNetns?: SpareNetns | undefined;
  /** Returns an object that is made once and disposed of with the session. */
  keep<T extends Disposable>(key: string, make: () => T): T;
  /**
   * Returns an object that notices by itself what has changed. A process that goes on keeps it for other
   * sessions too.
   */
  share<T extends Disposable>(key: string, make: () => T): T;
}

/** How to map ports to an attached VM or to an address. */
export interface MapOptions extends HostOptions {
  /** Opens all its ports in ufw and firewalld too. */
  readonly openFirewall?: boolean;
}

/** A request for one VM. Absent fields keep their recorded values, or get the defaults. */
export interface AttachRequest {
  /** 1–63 of `a-z A-Z 0-9 . _ -`. It starts with a letter or a digit. */
  readonly name: string;
  /** Published ports: `"8080:80"`, `"127.0.0.1:8080:80/udp"`, … or mappings. `"none"`: no ports. */
  readonly ports?: readonly (string | PortMapping)[] | "none";
  /** The address to ask the network for. Add a prefix length only if the network has none. */
  readonly ip?: string;
  /** A unicast MAC address. */
  readonly mac?: string;
  /** Bytes. */
  readonly mtu?: number;
  /** The path of an existing network namespace to use. It is never deleted. */
  readonly netns?: string;
  /** The `USER[:GROUP]`, by name or number, that may open the TAP without being root. */
  readonly tapOwner?: string;
  /**
   * How many queues of each TAP the VMM may open, 1 to 256, usually one for each processor of the guest.
   * A TAP of several is opened with IFF_MULTI_QUEUE, which Firecracker does not do. Default: 1.
   */
  readonly queues?: number;
  /** The rate of each interface, each way, in bits per second: `"100mbit"`. */
  readonly bandwidth?: string;
  /**
   * `builtin` executes no plugin, `exec` all. `auto` executes the configured plugins, except for
   * tapkit's own default network and for missing programs that are built in.
   */
  readonly plugins?: "auto" | "builtin" | "exec";
  /** How frames pass. `auto`, the default, is `tc-redirect` if the kernel has it. */
  readonly mode?: "auto" | AttachMode;
  /** The backend of rules. The default is nftables if the kernel has it. */
  readonly firewall?: FirewallKind;
  /** What makes the network of a new VM. The default is `TAPKIT_NETWORK_PLUGIN`, then `"cni"`. */
  readonly networkPlugin?: NetworkPlugin;
  /** With `docker-bridge`: the image of the sandbox container, whose program has to keep running. */
  readonly image?: string;
  /** With `docker-bridge`: a running container whose interface the VM gets. It is never removed. */
  readonly container?: string;
  /** Network names: eth0 is on the first, eth1 on the second, … Docker's bridge is one alone. */
  readonly networks?: readonly string[];
  /**
   * CNI capability arguments that have no field of their own: `{ aliases: ["web"] }`. Plugins that
   * declare the capability get them.
   */
  readonly capabilities?: Readonly<Record<string, unknown>>;
  /** The content of CNI_ARGS, for all plugins: `{ K8S_POD_NAME: "web" }`. */
  readonly cniArgs?: Readonly<Record<string, string>>;
  /** Whether frames from another MAC or address than the guest's are dropped. Default: true. */
  readonly antispoof?: boolean;
  /**
   * The link-local IPv6 address of a guest that does not derive it from its MAC (RFC 7217), `"any"` if
   * it is not known, or `"eui64"`, the default.
   */
  readonly linkLocal?: string;
  /** Whether nothing may pass between the guest and others on its networks. */
  readonly isolated?: boolean;
  /**
   * Prefixes or addresses, `"169.254.169.254"`, that the guest's new connections may not go to.
   * `"none"` clears them, and exceptions that are not given with it. Of these and
   * {@linkcode allowEgress} the longest match wins, and of two equal ones the exception.
   */
  readonly denyEgress?: readonly string[] | "none";
  /** The exceptions of {@linkcode denyEgress}. `"none"` clears them. */
  readonly allowEgress?: readonly string[] | "none";
  /**
   * Prefixes that may connect to the guest's own addresses. The guest's connections to them are not
   * masqueraded. They need a route to the guest's network. `"none"` clears them.
   */
  readonly reachableFrom?: readonly string[] | "none";
  /**
   * The most tracked connections from the guest, and as many to it. Default: a quarter of the kernel's
   * limit.
   */
  readonly maxConnections?: number | "none" | "default";
  /**
   * The most connections that the guest may open per second, with a burst of sixteen times as many.
   * Default: 1/512 of the kernel's limit.
   */
  readonly newConnections?: number | "none" | "default";
  /** Whether to open published ports in ufw and firewalld too. */
  readonly openFirewall?: boolean;
}

/** The formats of a printed record. */
export type OutputFormat =
  | "json"
  | "env"
  | "cmdline"
  | "dracut"
  | "qemu"
  | "cloud-hypervisor"
  | "libvirt"
  | "firecracker"
  | "mmds"
  | "cloud-init";
