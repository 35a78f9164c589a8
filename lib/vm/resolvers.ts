/**
 * The name servers a guest can use: the host's, but never one that listens on its loopback.
 *
 * @module
 */

import { isIp, isLoopback } from "../inet/ip.ts";
import type { VmDns } from "./types.ts";

/** The host's own file; then what systemd-resolved writes its upstream servers to. */
const FILES = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/**
 * The resolvers of this host that a guest can reach, from the first file that names any.
 *
 * A stub on a loopback address, as systemd-resolved and dnsmasq put there, is no use to a
 * guest; its upstream servers are taken instead.
 */
export function hostResolvers(files: readonly string[] = FILES): VmDns {
  for (const file of files) {
    const dns = parseResolvConf(readIfThere(file));
    if (dns.nameservers.length > 0) return dns;
  }
  return { nameservers: [], search: [] };
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

/** Whether a guest can use a name server: no loopback, no zone. */
export function isReachable(server: string): boolean {
  return isIp(server) !== 0 && !isLoopback(server);
}

function readIfThere(path: string): string {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    // Missing or unreadable: the same as naming no server.
    return "";
  }
}
