/**
 * What a guest is told of routes: those that its interface has in the VM's namespace, and no other.
 *
 * A gateway in a plugin's result is an address, no route: a network without a default route, as for
 * storage, names one too. Some plugins make a default route and do not name it.
 *
 * @module
 */

import type { IpConfig, RouteConfig } from "../../cni/types.ts";
import { type Cidr, cidrContains, parseCidr } from "../../inet/ip.ts";
import type { Route } from "../../netlink/route.ts";
import type { GuestLink } from "../record/attachment.ts";

/** What plugins gave an interface. */
export interface GivenIdentity {
  /** Its addresses, with the gateways that the network names. */
  readonly ips: readonly IpConfig[];
  /** The routes that the network names. */
  readonly named: readonly RouteConfig[];
  /** The namespace's routes; absent where those that are named are known to be there. */
  readonly seen?: readonly Route[];
  /** The interface's index. */
  readonly oif: number;
  /** The VM's interfaces before this one: a default route that one of them has stays. */
  readonly before?: readonly Pick<GuestLink, "routes">[];
}

/** Its addresses, each with its router where it has one, and its routes with their next hops. */
export function guestIdentity(
  { ips, named, seen, oif, before = [] }: GivenIdentity,
): Pick<GuestLink, "addresses" | "routes"> {
  const given = ips.map(({ address, gateway }) => ({ cidr: parseCidr(address), address, gateway }));
  const taken = before.flatMap(({ routes }) => routes.map(({ dst }) => parseCidr(dst)))
    .filter(isDefault).map(({ family }) => family);
  const routes = (seen === undefined ? named : inNamespace(named, seen, oif))
    .map(({ dst, gw }) => {
      const to = parseCidr(dst);
      const gateway = given.find(({ cidr }) => cidr.family === to.family)?.gateway;
      // As in CNI: a route that names no next hop goes by the gateway, unless it leads there.
      const hop = gw ?? (leadsTo(to, gateway) ? undefined : gateway);
      return { to, route: { dst, ...hop === undefined ? {} : { gw: hop } } };
    })
    .filter(({ to }) => !(isDefault(to) && taken.includes(to.family)));
  const routers = routes.filter(({ to }) => isDefault(to))
    .flatMap(({ to: { family }, route: { gw } }) => gw === undefined ? [] : [{ family, gw }]);
  const addresses = given.map(({ cidr, address }) => {
    const router = routers.find(({ family }) => family === cidr.family)?.gw;
    if (router === undefined) return { address };
    const family = given.filter((one) => one.cidr.family === cidr.family);
    // One that is in none of the prefixes, as 169.254.1.1, is the first address's.
    const its = family.find((one) => cidrContains(one.cidr, router)) ?? family[0];
    return { address, ...its?.address === address ? { gateway: router } : {} };
  });
  return { addresses, routes: routes.map(({ route }) => route) };
}

function isDefault({ prefixLength }: Cidr): boolean {
  return prefixLength === 0;
}

function leadsTo(to: Cidr, gateway: string | undefined): boolean {
  return !isDefault(to) && gateway !== undefined && cidrContains(to, gateway);
}

/** The named ones that no other interface has instead, and a default one that was not named. */
function inNamespace(
  named: readonly RouteConfig[],
  seen: readonly Route[],
  oif: number,
): RouteConfig[] {
  const textOf = (dst: string) => {
    const { network, prefixLength } = parseCidr(dst);
    return `${network}/${prefixLength}`;
  };
  const held = named.flatMap((route) => {
    const same = seen.filter(({ dst }) => dst === textOf(route.dst));
    const own = same.find((one) => one.oif === oif);
    if (own === undefined) return same.length === 0 ? [route] : [];
    const gw = route.gw ?? own.gateway;
    return [gw === undefined ? route : { ...route, gw }];
  });
  const unnamed = seen.filter((route) =>
    route.oif === oif && route.dst.endsWith("/0") && route.type === "unicast" &&
    route.protocol !== "ra" && !held.some(({ dst }) => textOf(dst) === route.dst)
  );
  return [
    ...held,
    ...unnamed.map(({ dst, gateway }) => ({
      dst,
      ...gateway === undefined ? {} : { gw: gateway },
    })),
  ];
}
