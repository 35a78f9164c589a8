/**
 * The hosts of the network, as they were named.
 *
 * @module
 */

import { InputError } from "../errors.ts";
import { isIp } from "../inet/ip.ts";
import { withoutPort } from "./report.ts";

/** A host of the network. */
export interface Peer {
  /** As it was given: an address or a name, with a port or without. */
  readonly peer: string;
  /** Its address; the name where that cannot be resolved. */
  readonly address: string;
  /** Whether it is this host. */
  readonly own: boolean;
}

/**
 * Looks up the addresses of peers.
 *
 * @param ownAddresses this host's
 */
export async function resolvePeers(
  peers: readonly string[],
  ownAddresses: ReadonlySet<string>,
): Promise<Peer[]> {
  return await Promise.all(peers.map(async (peer) => {
    const address = await lookUp(withoutPort(peer));
    // A host's own name often stands for 127.0.1.1.
    const own = ownAddresses.has(address) || address.startsWith("127.");
    return { peer, address, own };
  }));
}

async function lookUp(host: string): Promise<string> {
  if (isIp(host) !== 0) return host;
  const dns = await import("node:dns");
  return await new Promise((resolve) => {
    dns.lookup(host, 4, (error, address) => resolve(error === null ? address : host));
  });
}

/**
 * Reads addresses or names of peers, separated by commas or spaces.
 *
 * @throws {InputError} when one is malformed, or there is none
 */
export function parsePeers(text: string, where: string): string[] {
  const peers = text.split(/[\s,]+/).filter((peer) => peer !== "");
  if (peers.length === 0) {
    throw new InputError(`${where} names no peer`, {
      mend: `write ${where} 192.0.2.10,192.0.2.11`,
    });
  }
  for (const written of peers) {
    const peer = withoutPort(written);
    const digits = /^[\d.]+$/.test(peer);
    const name = /^(?=.{1,253}$)[A-Za-z0-9]([\w-]*\w)?(\.[A-Za-z0-9]([\w-]*\w)?)*$/.test(peer);
    if (isIp(peer) === 4 || (name && !digits)) continue;
    const why = isIp(peer) === 6 ? "is an IPv6 address, by which Weave Net does not connect" : "";
    throw new InputError(`${where}: the peer ${JSON.stringify(written)} ${why || "is malformed"}`, {
      mend: "write the IPv4 address of a host, or its name",
    });
  }
  return [...new Set(peers)];
}
