/**
 * The types of setting Weave Net up. No code.
 *
 * @module
 */

import type { CniDirs } from "./conflist.ts";
import type { PeerConnection } from "./report.ts";

/** What is wanted of Weave Net on this host. What is absent stays as it was asked for before. */
export interface WeaveRequest {
  /** Addresses or names of hosts of the network; this one alone unless given. */
  readonly peers?: readonly string[];
  /** `"weaveworks/weave-kube:2.5.2"` unless given. */
  readonly image?: string;
  /** What addresses are given from, the same on all hosts: `"10.32.0.0/12"` unless given. */
  readonly range?: string;
  /** Of the bridge and the VMs, in bytes; 1376 unless given. */
  readonly mtu?: number;
  /** A file that holds the network's password; `"none"` for none. */
  readonly passwordFile?: string;
  /** How long to wait until addresses are given out, in seconds; 60 unless given. */
  readonly wait?: number;
}

/** Weave Net on this host. */
export interface WeaveState {
  /** The container's id; absent if there is none. */
  readonly container?: string;
  /** The image that the container is of, or would be. */
  readonly image: string;
  /** The address by which peers reach this host. */
  readonly primaryIP: string;
  /** Addresses or names, as they were given. */
  readonly peers: readonly string[];
  /** Whether it gives out addresses, has its bridge, and its configuration and plugins are there. */
  readonly ready: boolean;
  /** The path of its CNI configuration. */
  readonly conflist: string;
  /** This host's own are none. */
  readonly connections: readonly PeerConnection[];
  /** What this call changed, for people. */
  readonly changes?: readonly string[];
  /** With `check`: what is not as it should be, none when all is well. */
  readonly problems?: readonly string[];
}

/** A VM that Weave Net gave an address. */
export interface WeaveVm {
  readonly name: string;
  /** The container id by which its address is owned. */
  readonly id: string;
  /** With their prefix lengths. */
  readonly addresses: readonly string[];
}

/** What is known of this host's VMs and firewalls, which are above this. */
export interface WeaveHost {
  readonly dirs: CniDirs;
  readonly note: (text: string) => void;
  readonly signal?: AbortSignal | undefined;
  /** The VMs on a network. */
  usersOf(network: string): readonly string[];
  /** The VMs on Weave Net. */
  attached(): readonly WeaveVm[];
  /** Tells the router, which may have lost its data, the addresses of the VMs. */
  claim(): Promise<void>;
  /** Lets the bridge's traffic pass this host's firewalls. Returns whether that was new. */
  allow(): Promise<boolean>;
  revoke(): Promise<void>;
  /** What is wrong with that. */
  barred(): Promise<readonly string[]>;
}
