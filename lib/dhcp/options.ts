/**
 * DHCP options: their numbers, and the encoding of their values.
 *
 * @module
 */

import { InputError, TapkitError } from "../errors.ts";
import { bytesToIp, ipToBytes, parseCidr } from "../inet/ip.ts";

/** A received frame or message is malformed. The server ignores it. */
export class DhcpFormatError extends TapkitError {
  override readonly name: string = "DhcpFormatError";
  /** The position of the error, in bytes from the start of the input. */
  readonly offset: number;

  constructor(problem: string, offset: number) {
    super(`${problem}, at byte ${offset}`);
    this.offset = offset;
  }
}

/** Option codes (RFC 2132, unless another RFC is given). */
export const DhcpOption = {
  PAD: 0,
  SUBNET_MASK: 1,
  ROUTER: 3,
  DOMAIN_NAME_SERVER: 6,
  HOST_NAME: 12,
  DOMAIN_NAME: 15,
  INTERFACE_MTU: 26,
  BROADCAST_ADDRESS: 28,
  REQUESTED_ADDRESS: 50,
  LEASE_TIME: 51,
  OVERLOAD: 52,
  MESSAGE_TYPE: 53,
  SERVER_IDENTIFIER: 54,
  PARAMETER_REQUEST_LIST: 55,
  MESSAGE: 56,
  MAXIMUM_MESSAGE_SIZE: 57,
  RENEWAL_TIME: 58,
  REBINDING_TIME: 59,
  CLIENT_IDENTIFIER: 61,
  /** RFC 3397. */
  DOMAIN_SEARCH: 119,
  /** RFC 3442. */
  CLASSLESS_ROUTES: 121,
  /** Microsoft's earlier number for option 121. */
  MICROSOFT_CLASSLESS_ROUTES: 249,
  END: 255,
} as const;

/** Option 53. */
export const DhcpType = {
  DISCOVER: 1,
  OFFER: 2,
  REQUEST: 3,
  DECLINE: 4,
  ACK: 5,
  NAK: 6,
  RELEASE: 7,
  INFORM: 8,
} as const;

/** The bits of option 52: which header fields carry options too. */
export const Overload = { FILE: 1, SNAME: 2 } as const;

/** The lengths of options that a server reads. */
export const OPTION_LENGTHS: Readonly<Record<number, number>> = {
  [DhcpOption.REQUESTED_ADDRESS]: 4,
  [DhcpOption.LEASE_TIME]: 4,
  [DhcpOption.OVERLOAD]: 1,
  [DhcpOption.MESSAGE_TYPE]: 1,
  [DhcpOption.SERVER_IDENTIFIER]: 4,
  [DhcpOption.MAXIMUM_MESSAGE_SIZE]: 2,
};

/** Options by code; the order of insertion is the order on the wire. */
export type DhcpOptions = ReadonlyMap<number, Uint8Array>;

/** The value of an option of one byte. */
export function optionU8(options: DhcpOptions, code: number): number | undefined {
  return options.get(code)?.[0];
}

/** The value of an option of two bytes in network order. */
export function optionU16be(options: DhcpOptions, code: number): number | undefined {
  const value = options.get(code);
  return value === undefined ? undefined : viewOf(value).getUint16(0, false);
}

/** The value of an option that is one IPv4 address. */
export function optionIp(options: DhcpOptions, code: number): string | undefined {
  const value = options.get(code);
  return value === undefined ? undefined : bytesToIp(value);
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** Two bytes in network order. */
export function u16be(value: number): Uint8Array {
  return Uint8Array.of(value >>> 8, value);
}

/** Four bytes in network order. */
export function u32be(value: number): Uint8Array {
  return Uint8Array.of(value >>> 24, value >>> 16, value >>> 8, value);
}

/** A name's length on the wire, its root label included (RFC 1035). */
const MAX_NAME = 255;

/** Whether a text is a domain name other than the root, with or without its final dot. */
export function isDomainName(name: string): boolean {
  const labels = name.replace(/\.$/, "").split(".");
  const wellFormed = labels.every((label) => /^[\x21-\x7e]{1,63}$/.test(label));
  return wellFormed && nameSize(labels) <= MAX_NAME;
}

function nameSize(labels: readonly string[]): number {
  return labels.reduce((size, label) => size + 1 + label.length, 1);
}

/**
 * Encodes domain names one after the other (option 119). Does not compress them: no client needs
 * that, and some get it wrong.
 *
 * @throws {InputError} when a name is not a domain name
 */
export function encodeDomainSearch(names: readonly string[]): Uint8Array {
  const bytes: number[] = [];
  for (const name of names) {
    if (!isDomainName(name)) {
      throw new InputError(`"${name}" is not a domain name`, {
        mend: "write labels of 1 to 63 characters, separated by dots",
      });
    }
    for (const label of name.replace(/\.$/, "").split(".")) {
      bytes.push(label.length, ...new TextEncoder().encode(label));
    }
    bytes.push(0);
  }
  return Uint8Array.from(bytes);
}

/** A route of option 121. Gateway 0.0.0.0 means that the destination is on the link. */
export interface ClasslessRoute {
  /** `"10.0.0.0/8"`. */
  readonly dst: string;
  readonly gateway: string;
}

/** Encodes option 121. A destination has only the bytes that its prefix length covers. */
export function encodeClasslessRoutes(routes: readonly ClasslessRoute[]): Uint8Array {
  const bytes: number[] = [];
  for (const { dst, gateway } of routes) {
    const { network, prefixLength } = parseCidr(dst);
    const significant = ipToBytes(network).subarray(0, Math.ceil(prefixLength / 8));
    bytes.push(prefixLength, ...significant, ...ipToBytes(gateway));
  }
  return Uint8Array.from(bytes);
}
