/**
 * Addresses that tapkit did not attach, and ports are mapped to.
 *
 * @module
 */

import { InputError, TapkitError } from "../../errors.ts";
import { canonicalIp, isIp, isLoopback, isMulticast } from "../../inet/ip.ts";
import { linkTowards } from "../../netlink/route.ts";
import type { AddressAttachment } from "../record/address.ts";
import { readVms, sidesOf } from "../record/store.ts";
import type { Host } from "../session.ts";

/**
 * Checks that ports can be mapped to an address, and brings it to canonical form.
 *
 * @throws {InputError} when they cannot
 */
export function validateAddress(text: string): string {
  const mend = "name one address of another machine, as 192.0.2.7 or 2001:db8::7";
  if (isIp(text) === 0) throw new InputError(`"${text}" is not an IP address`, { mend });
  const to = canonicalIp(text);
  const special = isLoopback(to) || isMulticast(to) || /^(0\.|::$|255\.255\.255\.255$)/.test(to) ||
    /^fe[89ab][0-9a-f]:|^::ffff:/.test(to);
  if (special) throw new InputError(`nothing can be mapped to the address ${to}`, { mend });
  return to;
}

/**
 * What is known of an address before anything is mapped to it.
 *
 * @throws {InputError} when it is that of an attached VM
 * @throws {TapkitError} when the host has no route there
 */
export async function newAddress(host: Host, text: string): Promise<AddressAttachment> {
  const to = validateAddress(text);
  const vm = readVms(host).flatMap(sidesOf).find(({ facts }) =>
    facts.networks.some(({ reach }) => reach?.addresses.includes(to))
  )?.spec.id.name;
  if (vm !== undefined) {
    throw new InputError(`${to} is the address of VM "${vm}"`, { mend: `write map-port ${vm} …` });
  }
  const link = linkTowards(host.session.nl, to);
  if (link === undefined) {
    throw new TapkitError(`the host has no route to ${to}`, { mend: "add one first" });
  }
  const { kind: firewall } = await host.session.firewall();
  return { to, firewall, link, claims: [], openPorts: false };
}
