/**
 * What several formats of a record need.
 *
 * @module
 */

import { type Cidr, cidrContains, netmask, parseCidr } from "../../inet/ip.ts";
import { ipv4Of } from "../record/derive.ts";
import type { VmInterface, VmRecord } from "../types.ts";

/** A route of a guest, as the guest has to make it. */
export interface GuestRoute {
  readonly to: string;
  /** Absent if the destination is on the link. */
  readonly via?: string;
  /** Whether the gateway is outside of the guest's prefixes, and on the link all the same. */
  readonly onLink: boolean;
}

/** Addresses that are on every link. */
const LINK_LOCAL = parseCidr("fe80::/10");

/** The values of an interface that takes only one address: the IPv4 address, if there is one. */
export function interfaceValues(link: VmInterface) {
  const main = ipv4Of(link) ?? link.addresses[0];
  const cidr = main && parseCidr(main.address);
  return {
    tap: link.tap,
    mac: link.mac,
    mtu: String(link.mtu),
    queues: String(link.queues ?? 1),
    ip: cidr?.address ?? "",
    netmask: cidr === undefined
      ? ""
      : cidr.family === 4
      ? netmask(cidr.prefixLength)
      : String(cidr.prefixLength),
    gateway: main?.gateway ?? "",
  };
}

/** The addresses of a family. */
export function addressesOf(link: VmInterface, family: 4 | 6): Cidr[] {
  return link.addresses.map(({ address }) => parseCidr(address))
    .filter((cidr) => cidr.family === family);
}

/** The gateway of a family's default route, or `""`. A network's gateway alone is no route. */
export function defaultGateway(link: VmInterface, family: 4 | 6): string {
  return routesOf(link).find(({ to }) => isDefault(to) && isOf(to, family))?.via ?? "";
}

/**
 * The routes of an interface. One without `gw` uses the network's gateway, as in CNI, unless its
 * destination has the gateway, or there is none.
 */
export function routesOf(link: VmInterface): GuestRoute[] {
  const prefixes = link.addresses.map(({ address }) => parseCidr(address));
  return link.routes.map(({ dst, gw }) => {
    const family = isOf(dst, 6) ? 6 : 4;
    const gateway = link.addresses.find((entry) => isOf(entry.address, family))?.gateway;
    const via = gw ?? (isDefault(dst) || !contains(dst, gateway) ? gateway : undefined);
    if (via === undefined) return { to: dst, onLink: false };
    const inside = [...prefixes, LINK_LOCAL].some((prefix) => cidrContains(prefix, via));
    return { to: dst, via, onLink: !inside };
  });
}

function contains(prefix: string, address: string | undefined): boolean {
  return address !== undefined && cidrContains(parseCidr(prefix), address);
}

function isOf(text: string, family: 4 | 6): boolean {
  return text.includes(":") === (family === 6);
}

/** Whether a route is a default route. */
export function isDefault(dst: string): boolean {
  return dst === "0.0.0.0/0" || dst === "::/0";
}

/** The guest's host name. RFC 1123 does not allow an underscore. */
export function hostname({ vm }: Pick<VmRecord, "vm">): string {
  return vm.replaceAll("_", "-");
}
