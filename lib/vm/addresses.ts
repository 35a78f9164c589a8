/**
 * Addresses that tapkit did not attach, and that ports are mapped to: what is kept of them, and
 * how they are reached.
 *
 * @module
 */

import { InputError, TapkitError } from "../errors.ts";
import { discardFile, replaceFile } from "../files.ts";
import type { Firewall } from "../firewall/firewall.ts";
import type { GuestRules } from "../firewall/model.ts";
import type { FirewallKind } from "../firewall/store.ts";
import { canonicalIp, isIp, isLoopback, isMulticast, parseCidr } from "../inet/ip.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { getRoute, linkTowards } from "../netlink/route.ts";
import type { Host } from "./session.ts";
import { bringSettings } from "./settings.ts";
import { isVersioned, PORTS_SHAPE, RULES_SHAPE, type Shape } from "./shape.ts";
import {
  addressesDir,
  addressNames,
  addressOwner,
  type HostPaths,
  inDirectory,
} from "./host-paths.ts";
import { type MappedPort, readEach, readJson, readRecords } from "./state.ts";
import type { VmInterface } from "./types.ts";

/** What is mapped to an address. */
export interface AddressRecord {
  readonly version: 1;
  /** The address, canonical. */
  readonly to: string;
  readonly rules: GuestRules;
  readonly mapPort: readonly MappedPort[];
  /** What the rules are made by. */
  readonly firewall: FirewallKind;
}

const addressPath = (host: HostPaths, to: string) => `${addressesDir(host)}/${to}.json`;

/**
 * Reads what is mapped to an address.
 *
 * @returns `undefined` when nothing is
 * @throws {TapkitError} when the file is torn or foreign
 */
export function readAddress(host: HostPaths, to: string): AddressRecord | undefined {
  const shape: Shape = { rules: RULES_SHAPE, mapPort: PORTS_SHAPE, firewall: "string" };
  return readJson(
    addressPath(host, to),
    (value): value is AddressRecord =>
      isVersioned(value, shape) && (value as AddressRecord).to === to,
    `move the file away, then map what you want to ${to} anew`,
  );
}

/** All that can be read; what cannot is passed to `host.note`. */
export function readAddresses(host: HostPaths): AddressRecord[] {
  return readEach(host, addressNames(host), (to) => readAddress(host, to));
}

/** Puts what is mapped to an address on disk. */
export function writeAddress(host: HostPaths, record: AddressRecord): void {
  const text = `${JSON.stringify(record)}\n`;
  inDirectory(addressesDir(host), () => replaceFile(addressPath(host, record.to), text));
}

/** Forgets what was mapped to an address. */
export function deleteAddress(host: HostPaths, to: string): void {
  discardFile(addressPath(host, to));
}

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
export function newAddress(
  host: HostPaths,
  nl: NetlinkConnection,
  to: string,
  firewall: FirewallKind,
): AddressRecord {
  const vm = readRecords(host).find(({ made }) =>
    made.guests.some(({ addresses }) => addresses.includes(to))
  )?.vm;
  if (vm !== undefined) {
    throw new InputError(`${to} is the address of VM "${vm}"`, { mend: `write map-port ${vm} …` });
  }
  const link = linkTowards(nl, to);
  if (link === undefined) {
    throw new TapkitError(`the host has no route to ${to}`, { mend: "add one first" });
  }
  return {
    version: 1,
    to,
    rules: {
      owner: addressOwner(to),
      link,
      addresses: [to],
      masquerade: false,
      forward: true,
      ports: [],
      relayed: true,
    },
    mapPort: [],
    firewall,
  };
}

/** Puts the rules of an address back, after a reboot say. */
export async function restoreAddress(
  host: Host,
  firewall: Firewall,
  record: AddressRecord,
): Promise<void> {
  firewall.add(record.rules);
  await bringSettings(host, [record.rules], { firewall });
}

/**
 * How a VM is reached by ports whose network says nothing of it: by which link, and whether its
 * answers come back by the host. Where another firewall drops what is forwarded, it is let pass.
 */
export function locateVm(nl: NetlinkConnection, rules: GuestRules, link: VmInterface): GuestRules {
  const [first] = link.addresses;
  if (rules.link !== "" || rules.relayed || first === undefined) return rules;
  const { gateway } = first;
  if (gateway === undefined || getRoute(nl, gateway)?.type !== "local") {
    return { ...rules, forward: true, relayed: true };
  }
  const towards = linkTowards(nl, parseCidr(first.address).address) ?? "";
  return { ...rules, forward: true, link: towards };
}
