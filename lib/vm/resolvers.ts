/**
 * The name servers a guest can use: its network's, else the host's, never one on loopback. The
 * host's may appear late at boot, and change while the guest runs.
 *
 * @module
 */

import type { Dns } from "../cni/types.ts";
import { readText } from "../sys/text.ts";
import { ipToBytes, isIp, isLoopback, isUnspecified } from "../inet/ip.ts";
import type { VmDns } from "./types.ts";

/**
 * The host's own file, then the files of programs that put a stub on a loopback address there. They
 * name the servers behind the stub: systemd-resolved, NetworkManager, resolvconf with dnsmasq.
 */
const FILES = [
  "/etc/resolv.conf",
  "/run/systemd/resolve/resolv.conf",
  "/run/NetworkManager/no-stub-resolv.conf",
  "/run/NetworkManager/resolv.conf",
  "/run/dnsmasq/resolv.conf",
];

/** The servers of the first file with any that a guest can reach, and the first search list. */
export function hostResolvers(files: readonly string[] = FILES): VmDns {
  const found: VmDns[] = [];
  for (const file of files) {
    const dns = parseResolvConf(readable(() => readText(file)) ?? "");
    found.push(dns);
    if (dns.nameservers.length > 0) break;
  }
  return {
    nameservers: found.at(-1)?.nameservers ?? [],
    search: found.find(({ search }) => search.length > 0)?.search ?? [],
  };
}

/** The host's resolvers, read again when a file changes. */
export class HostResolvers {
  readonly #files: readonly string[];
  #state = "";
  #dns: VmDns = { nameservers: [], search: [] };

  constructor(files: readonly string[] = FILES) {
    this.#files = files;
    this.refresh();
  }

  /** The resolvers at the last {@linkcode refresh}. */
  get current(): VmDns {
    return this.#dns;
  }

  /** @returns whether they changed */
  refresh(): boolean {
    const state = this.#files.map((file) => readable(() => stateOf(file))).join();
    if (state === this.#state) return false;
    this.#state = state;
    const before = JSON.stringify(this.#dns);
    this.#dns = hostResolvers(this.#files);
    return JSON.stringify(this.#dns) !== before;
  }
}

/** The resolvers of a VM: its networks', or the host's if the networks name no servers. */
export function resolversOf(networks: readonly (Dns | undefined)[], host: VmDns): VmDns {
  const nameservers = networks.flatMap((dns) => dns?.nameservers ?? []).filter(isReachable);
  const search = networks.flatMap((dns) => dns?.search ?? (dns?.domain ? [dns.domain] : []))
    .filter((domain) => typeof domain === "string");
  if (nameservers.length > 0) return { nameservers, search };
  return { nameservers: host.nameservers, search: search.length > 0 ? search : host.search };
}

/** A VM's recorded resolvers, and those that its networks name. */
interface Named {
  readonly dns: VmDns;
  readonly networks: readonly {
    readonly attachment: { readonly result?: { readonly dns?: Dns } };
  }[];
}

/** The present resolvers of a recorded VM. While the host has none, the recorded ones. */
export function currentResolvers({ dns, networks }: Named, host: VmDns): VmDns {
  const named = networks.map(({ attachment }) => attachment.result?.dns);
  return resolversOf(named, host.nameservers.length > 0 ? host : dns);
}

/** Reads resolv.conf(5): the name servers that a guest can reach, and the search list. */
function parseResolvConf(text: string): VmDns {
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
 * Whether a guest can use a name server: not if it is a loopback address, the unspecified address,
 * which means the same, or an IPv6 link-local one, which belongs to the host's link.
 */
export function isReachable(server: unknown): boolean {
  if (typeof server !== "string" || isIp(server) === 0) return false;
  const bytes = ipToBytes(server);
  const linkLocal = bytes.length === 16 && bytes[0] === 0xfe && (bytes[1]! & 0xc0) === 0x80;
  return !linkLocal && !isLoopback(server) && !isUnspecified(server);
}

/** A file that is missing or unreadable names no server. */
function readable<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch {
    return undefined;
  }
}

/** Changes when a file is written or replaced. */
function stateOf(path: string): string {
  const { dev, ino, mtime, size } = Deno.statSync(path);
  return `${dev}:${ino}:${mtime?.getTime()}:${size}`;
}
