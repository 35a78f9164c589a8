/**
 * The name servers a guest can use: its network's, else the host's, but never one that listens on a
 * loopback. The host's may come late, at boot, and change while the guest lives.
 *
 * @module
 */

import type { Dns } from "../cni/types.ts";
import { ipToBytes, isIp, isLoopback, isUnspecified } from "../inet/ip.ts";
import type { VmDns } from "./types.ts";

/**
 * The host's own file; then where those that put a stub on a loopback address there name the servers
 * behind it: systemd-resolved, NetworkManager, resolvconf with dnsmasq.
 */
const FILES = [
  "/etc/resolv.conf",
  "/run/systemd/resolve/resolv.conf",
  "/run/NetworkManager/no-stub-resolv.conf",
  "/run/NetworkManager/resolv.conf",
  "/run/dnsmasq/resolv.conf",
];

/** The servers of the first file that names any which a guest can reach; the first search list. */
export function hostResolvers(files: readonly string[] = FILES): VmDns {
  const found: VmDns[] = [];
  for (const file of files) {
    const dns = parseResolvConf(readIfThere(file));
    found.push(dns);
    if (dns.nameservers.length > 0) break;
  }
  return {
    nameservers: found.at(-1)?.nameservers ?? [],
    search: found.find(({ search }) => search.length > 0)?.search ?? [],
  };
}

/** The host's resolvers, read again when a file of theirs has changed. */
export class HostResolvers {
  readonly #files: readonly string[];
  #state = "";
  #dns: VmDns = { nameservers: [], search: [] };

  constructor(files: readonly string[] = FILES) {
    this.#files = files;
    this.refresh();
  }

  /** As they were at the last {@linkcode refresh}. */
  get current(): VmDns {
    return this.#dns;
  }

  /** @returns whether they are others than before */
  refresh(): boolean {
    const state = this.#files.map(stateOf).join();
    if (state === this.#state) return false;
    this.#state = state;
    const before = JSON.stringify(this.#dns);
    this.#dns = hostResolvers(this.#files);
    return JSON.stringify(this.#dns) !== before;
  }
}

/** What a VM is told: by its networks, and where they name no servers, by the host. */
export function resolversOf(networks: readonly (Dns | undefined)[], host: VmDns): VmDns {
  const nameservers = networks.flatMap((dns) => dns?.nameservers ?? []).filter(isReachable);
  const search = networks.flatMap((dns) => dns?.search ?? (dns?.domain ? [dns.domain] : []))
    .filter((domain) => typeof domain === "string");
  if (nameservers.length > 0) return { nameservers, search };
  return { nameservers: host.nameservers, search: search.length > 0 ? search : host.search };
}

/** What says who names a VM's resolvers. */
interface Named {
  readonly dns: VmDns;
  readonly networks: readonly {
    readonly attachment: { readonly result?: { readonly dns?: Dns } };
  }[];
}

/** What a recorded VM is told now; what is recorded as long as the host has none. */
export function currentResolvers({ dns, networks }: Named, host: VmDns): VmDns {
  const named = networks.map(({ attachment }) => attachment.result?.dns);
  return resolversOf(named, host.nameservers.length > 0 ? host : dns);
}

/** Reads resolv.conf(5): the reachable name servers and the search list. */
export function parseResolvConf(text: string): VmDns {
  const nameservers: string[] = [];
  let search: string[] = [];
  for (const line of text.split("\n")) {
    const [keyword, ...values] = line.trim().split(/\s+/);
    const value = values[0];
    if (keyword === "nameserver" && value !== undefined && isReachable(value)) {
      nameservers.push(value);
    } else if (keyword === "search" || keyword === "domain") {
      // The last of either wins.
      search = values;
    }
  }
  return { nameservers, search: search.filter((domain) => domain !== ".") };
}

/**
 * Whether a guest can use a name server: no loopback, no unspecified address, which means the same, and
 * no link-local one of IPv6, which is of the host's link.
 */
export function isReachable(server: unknown): boolean {
  if (typeof server !== "string" || isIp(server) === 0) return false;
  const bytes = ipToBytes(server);
  const linkLocal = bytes.length === 16 && bytes[0] === 0xfe && (bytes[1]! & 0xc0) === 0x80;
  return !linkLocal && !isLoopback(server) && !isUnspecified(server);
}

function readIfThere(path: string): string {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    // Missing or unreadable: the same as naming no server.
    return "";
  }
}

/** What changes with a file, also where it is replaced by another one. */
function stateOf(path: string): string {
  try {
    const { dev, ino, mtime, size } = Deno.statSync(path);
    return `${dev}:${ino}:${mtime?.getTime()}:${size}`;
  } catch {
    return "";
  }
}
