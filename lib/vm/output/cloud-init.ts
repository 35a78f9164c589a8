/**
 * A guest's network as cloud-init reads it.
 *
 * @module
 */

import { asPrefix } from "../../inet/ip.ts";
import type { VmDns, VmInterface, VmRecord } from "../types.ts";
import { type GuestRoute, routesOf } from "./values.ts";

/**
 * A network configuration of cloud-init, version 2, which is netplan's, as JSON on one line: JSON is
 * YAML. Interfaces are found by their MAC and get their names, addresses, routes and MTU. The name servers
 * are those of the first one.
 */
export function cloudInitNetwork({ interfaces, dns }: VmRecord): string {
  const ethernets = interfaces.map((link, index) => [
    link.name,
    ethernet(link, index === 0 ? dns : undefined),
  ]);
  return JSON.stringify({ version: 2, ethernets: Object.fromEntries(ethernets) });
}

function ethernet(link: VmInterface, dns: VmDns | undefined) {
  const { name, mac, mtu, addresses } = link;
  const all = routesOf(link);
  // cloud-init 22.4 writes ::/64 for ::/0 where it configures systemd-networkd.
  const gateway6 = all.find(({ to, via }) => to === "::/0" && via !== undefined);
  const routes = all.filter((route) => route !== gateway6);
  // Not every backend of cloud-init knows on-link.
  const gateways = all.flatMap(({ via, onLink }) => onLink ? [asPrefix(via!)] : []);
  const list = [
    ...[...new Set(gateways)].map((to) => ({ to, scope: "link" })),
    ...routes.map(routeEntry),
  ];
  return {
    match: { macaddress: mac },
    "set-name": name,
    mtu,
    dhcp4: false,
    dhcp6: false,
    ...addresses.length === 0 ? {} : { addresses: addresses.map(({ address }) => address) },
    ...gateway6 === undefined ? {} : { gateway6: gateway6.via },
    ...list.length === 0 ? {} : { routes: list },
    ...dns === undefined ? {} : resolvers(dns),
  };
}

function routeEntry({ to, via, onLink }: GuestRoute) {
  if (via === undefined) return { to, scope: "link" };
  return { to, via, ...onLink ? { "on-link": true } : {} };
}

function resolvers({ nameservers, search }: VmDns) {
  if (nameservers.length === 0 && search.length === 0) return {};
  return {
    nameservers: {
      ...nameservers.length === 0 ? {} : { addresses: nameservers },
      ...search.length === 0 ? {} : { search },
    },
  };
}
