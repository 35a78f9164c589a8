/**
 * A guest's network as words of its kernel's command line.
 *
 * @module
 */

import { netmask } from "../../inet/ip.ts";
import type { VmInterface, VmRecord } from "../types.ts";
import { addressesOf, defaultGateway, hostname, isDefault, routesOf } from "./values.ts";

/**
 * ip=CLIENT:SERVER:GATEWAY:NETMASK:HOST:DEVICE:AUTOCONF:DNS0:DNS1 (Linux, admin-guide/nfs/nfsroot.rst).
 * The kernel takes the last of several. Empty without IPv4.
 */
export function kernelArgument(record: VmRecord): string {
  const links = record.interfaces.map((link) => ({ link, address: addressesOf(link, 4)[0] }));
  const first = links.find(({ address }) => address !== undefined);
  if (first?.address === undefined) return "";
  const { link, address: { address, prefixLength } } = first;
  const servers = record.dns.nameservers.filter((server) => !server.includes(":")).slice(0, 2);
  const router = defaultGateway(link, 4);
  const fields = [address, "", router, netmask(prefixLength), hostname(record), link.name, "off"];
  return `ip=${[...fields, ...servers].join(":")}`;
}

/** ip=CLIENT:PEER:GATEWAY:NETMASK:HOST:DEVICE:none:MTU, rd.route=NET:GATEWAY:DEVICE, nameserver=ADDRESS. */
export function dracutArguments(record: VmRecord): string {
  const bracketed = (text: string) => text.includes(":") ? `[${text}]` : text;
  const of = ([family, link]: readonly [4 | 6, VmInterface]) => {
    const { name, mtu } = link;
    const router = bracketed(defaultGateway(link, family));
    return addressesOf(link, family).map(({ address, prefixLength }) => {
      const mask = family === 4 ? netmask(prefixLength) : prefixLength;
      return `ip=${bracketed(address)}::${router}:${mask}:${hostname(record)}:${name}:none:${mtu}`;
    });
  };
  const routes = record.interfaces.flatMap((link) =>
    routesOf(link).flatMap(({ to, via }) =>
      via === undefined || isDefault(to)
        ? []
        : [`rd.route=${bracketed(to)}:${bracketed(via)}:${link.name}`]
    )
  );
  return [
    ...record.interfaces.flatMap((link) => ([[4, link], [6, link]] as const).flatMap(of)),
    ...routes,
    ...record.dns.nameservers.map((server) => `nameserver=${bracketed(server)}`),
  ].join(" ");
}
