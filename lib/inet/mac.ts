/**
 * Ethernet addresses.
 *
 * @module
 */

import { InputError } from "../errors.ts";

/** Length of an Ethernet address in bytes (`ETH_ALEN`). */
export const ETH_ALEN = 6;
const GROUP_BIT = 0x01;
const LOCAL_BIT = 0x02;

/**
 * Parses a unicast Ethernet address written `aa:bb:cc:dd:ee:ff`.
 *
 * @returns its six bytes
 * @throws {InputError} when it is malformed, a group address or all zero
 */
export function parseMac(text: string): Uint8Array<ArrayBuffer> {
  if (!/^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$/.test(text)) {
    throw new InputError(`MAC address "${text}" is malformed`, {
      mend: "write six pairs of hexadecimal digits, as in 02:00:00:00:00:01",
    });
  }
  const bytes = Uint8Array.fromHex(text.replaceAll(":", ""));
  if ((bytes[0]! & GROUP_BIT) !== 0) {
    throw new InputError(`MAC address "${text}" is a group address`, {
      mend: "use an address whose first byte is even",
    });
  }
  if (bytes.every((byte) => byte === 0)) {
    throw new InputError(`MAC address "${text}" is all zero`, { mend: "choose another" });
  }
  return bytes;
}

/** Writes six bytes as `aa:bb:cc:dd:ee:ff`. */
export function formatMac(bytes: Uint8Array): string {
  return bytes.toHex().replaceAll(/..(?=.)/g, "$&:");
}

/** A random locally administered unicast Ethernet address. */
export function randomMac(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(ETH_ALEN));
  bytes[0] = (bytes[0]! & ~GROUP_BIT) | LOCAL_BIT;
  return formatMac(bytes);
}
