/**
 * The lease of one guest: its parameters, checked and encoded once for all requests.
 *
 * @module
 */

import { InputError } from "../errors.ts";
import {
  type Cidr,
  cidrContains,
  ipToBytes,
  isIp,
  isLoopback,
  isUnspecified,
  netmask,
  parseCidr,
} from "../inet/ip.ts";
import { formatMac, parseMac } from "../inet/mac.ts";
import {
  type ClasslessRoute,
  DhcpOption,
  type DhcpOptions,
  encodeClasslessRoutes,
  encodeDomainSearch,
  isDomainName,
  u16be,
  u32be,
} from "./options.ts";

/** The parameters of a guest. */
export interface DhcpGuest {
  /** The Ethernet address whose requests are answered. */
  readonly mac: string;
  /** Its IPv4 address and prefix: `"172.18.0.2/16"`. */
  readonly address: string;
  readonly gateway?: string | undefined;
  /**
   * Routes other than the default route. Without `gw`, a route uses the gateway, as in CNI. It is
   * on the link if there is no gateway, or if `dst` contains it. IPv6 routes are ignored.
   */
  readonly routes: readonly { readonly dst: string; readonly gw?: string | undefined }[];
  /** Name servers. IPv6, loopback and unspecified addresses are left out. */
  readonly nameservers: readonly string[];
  /** Search domains; the first is the guest's domain. */
  readonly search: readonly string[];
  /** Left out if it is not a domain name. */
  readonly hostname: string;
  /** Bytes. Left out if below IPv4's minimum of 68. */
  readonly mtu: number;
  /** Infinite when absent. */
  readonly leaseSeconds?: number | undefined;
  /** When the guest renews; after twice that time it broadcasts. Half the lease when absent. */
  readonly renewalSeconds?: number | undefined;
}

/** A guest's parameters, checked and encoded once for all requests. */
export interface DhcpLease {
  /** Canonical text. */
  readonly mac: string;
  readonly macBytes: Uint8Array;
  readonly address: string;
  readonly serverIdentifier: string;
  readonly mtu: number;
  /** All options that a reply may have, the most important first. */
  readonly options: DhcpOptions;
}

/**
 * The server's address for a guest that has no gateway in its network. Nothing owns this link-local
 * address: renewals to it are lost, and the client broadcasts instead, as RFC 2131 says.
 */
export const LINK_LOCAL_SERVER = "169.254.0.1";
const INFINITE_LEASE = 0xffffffff;

/** The smallest MTU of IPv4 (RFC 791). */
export const MINIMUM_MTU = 68;
const MAXIMUM_MTU = 0xffff;
/** No address, in a message, and no gateway, in a route. */
export const UNSPECIFIED = "0.0.0.0";

/**
 * Checks a guest's parameters and encodes them.
 *
 * @throws {InputError} when one of them is malformed. Name servers, search domains and a host name
 *   that a guest cannot use are left out instead, because the guest does not need them
 */
export function prepareLease(guest: DhcpGuest): DhcpLease {
  const cidr = parseCidr(guest.address);
  requireIpv4(cidr.address);
  const gateway = findGateway(guest);
  const inside = gateway !== undefined && gateway !== cidr.address && cidrContains(cidr, gateway);
  const macBytes = parseMac(guest.mac);
  return {
    mac: formatMac(macBytes),
    macBytes,
    address: cidr.address,
    serverIdentifier: inside ? gateway : LINK_LOCAL_SERVER,
    mtu: guest.mtu,
    options: new Map([
      ...leaseOptions(guest.leaseSeconds ?? INFINITE_LEASE, guest.renewalSeconds),
      ...networkOptions(guest, cidr, gateway),
      ...nameOptions(guest),
    ]),
  };
}

type OptionEntry = readonly [code: number, value: Uint8Array];

function leaseOptions(seconds: number, renewal?: number): OptionEntry[] {
  if (!Number.isInteger(seconds) || seconds < 1 || seconds > INFINITE_LEASE) {
    throw new InputError(`a lease of ${seconds} seconds cannot be given`, {
      mend: `use a whole number from 1 to ${INFINITE_LEASE}, which means forever`,
    });
  }
  const options: OptionEntry[] = [[DhcpOption.LEASE_TIME, u32be(seconds)]];
  if (seconds !== INFINITE_LEASE) {
    // RFC 2131's defaults, unless they are given; always in ascending order.
    const rebinding = Math.floor(seconds * 7 / 8);
    const times = renewal === undefined
      ? [Math.floor(seconds / 2), rebinding]
      : [Math.min(renewal, Math.floor(seconds / 2)), Math.min(2 * renewal, rebinding)];
    options.push([DhcpOption.RENEWAL_TIME, u32be(times[0]!)]);
    options.push([DhcpOption.REBINDING_TIME, u32be(times[1]!)]);
  }
  return options;
}

function networkOptions(
  guest: DhcpGuest,
  cidr: Cidr,
  gateway: string | undefined,
): OptionEntry[] {
  // RFC 2132 wants the mask before the router.
  const options: OptionEntry[] = [
    [DhcpOption.SUBNET_MASK, ipToBytes(netmask(cidr.prefixLength))],
  ];
  if (gateway !== undefined) options.push([DhcpOption.ROUTER, ipToBytes(gateway)]);
  if (guest.mtu >= MINIMUM_MTU) {
    options.push([DhcpOption.INTERFACE_MTU, u16be(Math.min(guest.mtu, MAXIMUM_MTU))]);
  }
  const routes = classlessRoutes(guest, cidr, gateway);
  if (routes.length > 0) {
    const encoded = encodeClasslessRoutes(routes);
    options.push([DhcpOption.CLASSLESS_ROUTES, encoded]);
    options.push([DhcpOption.MICROSOFT_CLASSLESS_ROUTES, encoded]);
  }
  // In /31 and /32 every address can be a host's.
  if (cidr.prefixLength < 31) {
    options.push([DhcpOption.BROADCAST_ADDRESS, ipToBytes(cidr.broadcast)]);
  }
  return options;
}

function nameOptions(guest: DhcpGuest): OptionEntry[] {
  const options: OptionEntry[] = [];
  const resolvers = [...new Set(guest.nameservers.filter(usableResolver))];
  if (resolvers.length > 0) {
    const addresses = resolvers.flatMap((ip) => [...ipToBytes(ip)]);
    options.push([DhcpOption.DOMAIN_NAME_SERVER, Uint8Array.from(addresses)]);
  }
  if (isDomainName(guest.hostname)) {
    options.push([DhcpOption.HOST_NAME, new TextEncoder().encode(guest.hostname)]);
  }
  const search = guest.search.filter(isDomainName);
  if (search[0] !== undefined) {
    const domain = new TextEncoder().encode(search[0].replace(/\.$/, ""));
    options.push([DhcpOption.DOMAIN_NAME, domain]);
    options.push([DhcpOption.DOMAIN_SEARCH, encodeDomainSearch(search)]);
  }
  return options;
}

function usableResolver(ip: string): boolean {
  return isIp(ip) === 4 && !isLoopback(ip) && !isUnspecified(ip);
}

function requireIpv4(ip: string): string {
  if (isIp(ip) === 4) return ip;
  throw new InputError(`"${ip}" is not an IPv4 address`, {
    mend: "DHCP has IPv4 addresses only",
  });
}

/** The gateway: the given one, or that of a default route. */
function findGateway({ gateway, routes }: DhcpGuest): string | undefined {
  if (gateway !== undefined) return requireIpv4(gateway);
  return routes.find(({ dst, gw }) => dst === "0.0.0.0/0" && isIp(gw ?? "") === 4)?.gw;
}

/**
 * The routes of option 121; none if mask and router are enough. A client that uses them ignores the
 * router option, so they include the default route. A gateway outside the guest's network gets a
 * route of its own.
 */
function classlessRoutes(
  guest: DhcpGuest,
  cidr: Cidr,
  gateway: string | undefined,
): ClasslessRoute[] {
  const onLink: ClasslessRoute[] = [];
  const routed: ClasslessRoute[] = [];
  for (const { dst, gw } of guest.routes) {
    const destination = parseCidr(dst);
    if (destination.family !== 4 || destination.prefixLength === 0) continue;
    if (
      gw === undefined && destination.network === cidr.network &&
      destination.prefixLength === cidr.prefixLength
    ) continue;
    const byGateway = gateway !== undefined && !cidrContains(destination, gateway);
    const next = requireIpv4(gw ?? (byGateway ? gateway : UNSPECIFIED));
    const route = { dst: `${destination.network}/${destination.prefixLength}`, gateway: next };
    (next === UNSPECIFIED ? onLink : routed).push(route);
  }
  const outside = gateway !== undefined && !cidrContains(cidr, gateway);
  if (onLink.length + routed.length === 0 && !outside) return [];
  if (gateway !== undefined) routed.push({ dst: "0.0.0.0/0", gateway });
  for (const { gateway: next } of routed) {
    const reached = cidrContains(cidr, next) ||
      onLink.some(({ dst }) => cidrContains(parseCidr(dst), next));
    if (!reached) onLink.push({ dst: `${next}/32`, gateway: UNSPECIFIED });
  }
  return [...onLink, ...routed];
}
