/**
 * Addresses of links: `struct ifaddrmsg`, IFA attributes, and `ip address`.
 *
 * @module
 */

import { bytesToIp, type Cidr, ipToBytes, isLoopback, parseCidr } from "../inet/ip.ts";
import { failedWith, tolerate } from "../sys/libc.ts";
import type { NetlinkConnection } from "./connection.ts";
import type { Change } from "./requests.ts";
import { DecodeError, type Subject } from "./errors.ts";
import { linkLabel } from "./link.ts";
import { AF, NLM_F, RTM } from "./message.ts";
import { Decoder, Encoder } from "./wire.ts";

/** Address attributes (linux/if_addr.h). */
const IFA = { ADDRESS: 1, LOCAL: 2, BROADCAST: 4, FLAGS: 8 } as const;

/** Address flags (linux/if_addr.h). */
export const IFA_F = {
  NODAD: 0x02,
  TENTATIVE: 0x40,
  PERMANENT: 0x80,
} as const;

/** `enum rt_scope_t` (linux/rtnetlink.h), by its names in `ip`. */
export const RT_SCOPE = { global: 0, site: 200, link: 253, host: 254, nowhere: 255 } as const;

/** The scope of an address or a route. */
export type Scope = keyof typeof RT_SCOPE;

const SCOPES = new Map<number, Scope>(
  Object.entries(RT_SCOPE).map(([name, value]) => [value, name as Scope]),
);

/** The scope for a number; global if the number has no name. */
export function scopeOf(value: number): Scope {
  return SCOPES.get(value) ?? "global";
}

/** The IP version of a kernel address family; undefined for other families. */
export function ipFamily(family: number): 4 | 6 | undefined {
  return family === AF.INET ? 4 : family === AF.INET6 ? 6 : undefined;
}

/** The kernel's address family for an IP version; AF_UNSPEC without a version. */
export function addressFamily(family: 4 | 6 | undefined): number {
  return family === undefined ? AF.UNSPEC : family === 4 ? AF.INET : AF.INET6;
}

/** Reads an attribute that is an address of the family. */
export function decodeIp(value: Decoder, family: 4 | 6): string {
  const size = family === 4 ? 4 : 16;
  if (value.remaining !== size) {
    throw new DecodeError(`an IPv${family} address of ${value.remaining} bytes`, value.offset);
  }
  return bytesToIp(value.asBytes());
}

/** An address of a link. */
export interface Address {
  /** The link's index. */
  readonly index: number;
  /** With its prefix length: `"10.0.0.2/24"`. */
  readonly address: string;
  readonly family: 4 | 6;
  readonly scope: Scope;
  /** Bits of {@linkcode IFA_F}. */
  readonly flags: number;
}

/** An address to add to a link. */
export interface AddressRequest {
  readonly index: number;
  /** With its prefix length: `"10.0.0.2/24"`. */
  readonly address: string;
  readonly broadcast?: string;
  /** Skips IPv6's duplicate address detection. */
  readonly noDad?: boolean;
}

/** The payload of RTM_NEWADDR and RTM_DELADDR. */
function encodeAddress(request: AddressRequest): Uint8Array<ArrayBuffer> {
  const cidr = parseCidr(request.address);
  const bytes = ipToBytes(cidr.address);
  // struct ifaddrmsg: family, prefix length, flags, scope, index.
  const encoder = new Encoder(64).u8(addressFamily(cidr.family)).u8(cidr.prefixLength)
    .u8(request.noDad ? IFA_F.NODAD : 0).u8(RT_SCOPE[addressScope(cidr)]).u32(request.index);
  encoder.attrBytes(IFA.LOCAL, bytes);
  if (request.broadcast !== undefined) {
    encoder.attrBytes(IFA.BROADCAST, ipToBytes(request.broadcast));
  }
  return encoder.attrBytes(IFA.ADDRESS, bytes).finish();
}

function addressScope(cidr: Cidr): Scope {
  return cidr.family === 4 && isLoopback(cidr.address) ? "host" : "global";
}

/**
 * Reads the payload of RTM_NEWADDR.
 *
 * @returns undefined for a family other than IPv4 and IPv6
 * @throws {DecodeError} when it is malformed
 */
export function decodeAddress(payload: Uint8Array): Address | undefined {
  const decoder = new Decoder(payload);
  const family = ipFamily(decoder.u8());
  const prefixLength = decoder.u8();
  let flags = decoder.u8();
  const scope = scopeOf(decoder.u8());
  const index = decoder.u32();
  if (family === undefined) return undefined;
  let local: string | undefined;
  let address: string | undefined;
  for (const { type, value } of decoder.attributes()) {
    if (type === IFA.LOCAL) local = decodeIp(value, family);
    else if (type === IFA.ADDRESS) address = decodeIp(value, family);
    else if (type === IFA.FLAGS) flags = value.asU32();
  }
  // On a point-to-point link IFA_ADDRESS is the other end's.
  const own = local ?? address;
  if (own === undefined) throw new DecodeError("an address message without address", 0);
  return { index, address: `${own}/${prefixLength}`, family, scope, flags };
}

/**
 * The addresses of the namespace, or of one link, or of one family.
 *
 * Equivalent to: `ip [-4|-6] address show [dev NAME]`
 *
 * @throws {NetlinkError} ENODEV when no link has that index
 */
export function listAddresses(
  nl: NetlinkConnection,
  filter: { readonly index?: number; readonly family?: 4 | 6 } = {},
): Address[] {
  const payload = new Encoder(8).u8(addressFamily(filter.family)).zero(3)
    .u32(filter.index ?? 0).finish();
  const subject = { action: "list", object: "addresses" };
  const addresses: Address[] = [];
  for (const message of nl.dump(RTM.GETADDR, payload, subject)) {
    if (message.type !== RTM.NEWADDR) continue;
    const address = decodeAddress(message.payload);
    if (address === undefined) continue;
    if (filter.index !== undefined && address.index !== filter.index) continue;
    if (filter.family !== undefined && address.family !== filter.family) continue;
    addresses.push(address);
  }
  return addresses;
}

/**
 * Adds an address to a link.
 *
 * Equivalent to: `ip address add ADDRESS/LENGTH [broadcast ADDRESS] dev NAME [nodad]`
 *
 * @returns false if the link has it already
 * @throws {InputError} when the address is malformed
 * @throws {NetlinkError} EEXIST when the link has the IPv6 address with another prefix length
 */
export function addAddress(nl: NetlinkConnection, request: AddressRequest): boolean {
  return nl.change(addressAddition(nl, request));
}

/** What {@linkcode addAddress} asks for. */
export function addressAddition(nl: NetlinkConnection, request: AddressRequest): Change {
  return {
    type: RTM.NEWADDR,
    flags: NLM_F.CREATE | NLM_F.EXCL,
    payload: encodeAddress(request),
    subject: subjectOf(nl, "add", request),
    refused: (error) => {
      if (!failedWith(error, "EEXIST")) throw error;
      // IPv6 compares addresses without their prefix lengths.
      const { address, prefixLength } = parseCidr(request.address);
      const present = listAddresses(nl, { index: request.index });
      if (present.some((other) => other.address === `${address}/${prefixLength}`)) return;
      throw error;
    },
  };
}

/** All addresses of the namespace, without prefix lengths. */
export function ownAddresses(nl: NetlinkConnection): Set<string> {
  return new Set(listAddresses(nl).map(({ address }) => address.split("/", 1)[0]!));
}

/**
 * Deletes an address of a link.
 *
 * Equivalent to: `ip address delete ADDRESS/LENGTH dev NAME`
 *
 * @returns whether it existed; false also if the link is gone
 * @throws {InputError} when the address is malformed
 */
export function deleteAddress(
  nl: NetlinkConnection,
  request: { readonly index: number; readonly address: string },
): boolean {
  const payload = encodeAddress(request);
  const subject = subjectOf(nl, "delete", request);
  return tolerate(
    ["EADDRNOTAVAIL", "ENODEV"],
    () => nl.request(RTM.DELADDR, 0, payload, subject),
  ) !== undefined;
}

function subjectOf(
  nl: NetlinkConnection,
  action: string,
  request: { readonly index: number; readonly address: string },
): Subject {
  return {
    action,
    object: () => `address ${request.address} of ${linkLabel(nl, request.index)}`,
    feature: request.address.includes(":") ? "CONFIG_IPV6" : "CONFIG_INET",
  };
}
