/**
 * What a bridged and a routed network have in common: a veth pair, of which one end is the interface
 * in the namespace. Its names, addresses, routes, IPv6 settings and CHECK.
 *
 * The host's end is named and tagged so that it is found without the namespace.
 *
 * @module
 */

import type { Finding } from "../../finding.ts";
import { parseCidr } from "../../inet/ip.ts";
import { randomMac } from "../../inet/mac.ts";
import {
  addAddress,
  addressAddition,
  type AddressRequest,
  IFA_F,
  listAddresses,
} from "../../netlink/address.ts";
import type { NetlinkConnection } from "../../netlink/connection.ts";
import {
  bridgePortChange,
  type BridgePortOptions,
  createVeth,
  deleteLink,
  getLink,
  GONE_GROUP,
  type Link,
  linkChange,
  listLinks,
  requireLink,
  setLink,
} from "../../netlink/link.ts";
import type { Change } from "../../netlink/requests.ts";
import { addRoute, listRoutes, routeAddition } from "../../netlink/route.ts";
import { linksOut } from "../../netlink/routing.ts";
import { failedWith, tolerate } from "../../sys/libc.ts";
import { withNetns } from "../../sys/netns.ts";
import { writeSysctl } from "../../sys/sysctl.ts";
import type { AddContext, BuiltinFinding, CheckContext, Holder, IpamResult } from "../plugin.ts";
import { CniCode, CniError, type PluginConfig, type RouteConfig } from "../types.ts";

/** The alias of links that tapkit made. */
export const ALIAS = "tapkit";
/** The group of the links that tapkit makes in a VM's namespace, which are deleted together. */
export const LINK_GROUP = 0x746b;
const DEFAULT_MTU = 1500;
/** How long duplicate address detection may take. */
const DAD_TIMEOUT_MS = 10_000;

/** The name of the host's end: the same for the same attachment, so that it is found after a crash. */
export function hostVethName({ containerId, ifName }: Holder): string {
  // FNV-1a, 64 bits, of which 44 fit beside "veth" into IFNAMSIZ.
  let hash = 0xcbf29ce484222325n;
  for (const byte of new TextEncoder().encode(`${containerId}/${ifName}`)) {
    hash = BigInt.asUintN(64, (hash ^ BigInt(byte)) * 0x100000001b3n);
  }
  return `veth${(hash >> 20n).toString(16).padStart(11, "0")}`;
}

function hostVethAlias({ containerId, ifName }: Holder): string {
  return `${ALIAS}:${containerId}:${ifName}`;
}

/**
 * The host's end, by its name or, where someone renamed it, by its alias.
 *
 * @param vmNl of the namespace, if it is there: without the other end there is no renamed one
 */
export function findHostVeth(
  nl: NetlinkConnection,
  owner: Holder,
  vmNl?: NetlinkConnection,
): Link | undefined {
  const named = findNamedVeth(nl, owner);
  if (named !== undefined) return named;
  if (vmNl !== undefined && getLink(vmNl, owner.ifName) === undefined) return undefined;
  return listLinks(nl, { kind: "veth" })
    .find(({ alias, group }) => alias === hostVethAlias(owner) && group !== GONE_GROUP);
}

function findNamedVeth(nl: NetlinkConnection, owner: Holder): Link | undefined {
  const link = getLink(nl, hostVethName(owner));
  if (link?.kind !== "veth") return undefined;
  // Without an alias it was left by a process that was killed before it could set it.
  const alias = link.alias ?? "";
  return alias === "" || alias === hostVethAlias(owner) ? link : undefined;
}

/** @throws {CniError} when a link has the name of either end; what a removal left is deleted */
function refuseTaken(plugin: string, context: AddContext): void {
  const { hostNl, vmNl, netnsPath, ifName } = context;
  const name = hostVethName(context);
  const former = getLink(hostNl, name);
  if (former?.group === GONE_GROUP) deleteLink(hostNl, former.index);
  const taken = getLink(vmNl, ifName) !== undefined
    ? `"${ifName}" in ${netnsPath}`
    : former !== undefined && former.group !== GONE_GROUP
    ? `"${name}"`
    : undefined;
  if (taken === undefined) return;
  throw new CniError(`link ${taken} already exists`, {
    plugin,
    code: CniCode.INVALID_ENVIRONMENT_VARIABLES,
  }, { mend: "remove the attachment first, or choose another interface name" });
}

/** The largest MTU that every link of the host's default route carries; 1500 without one. */
export function defaultRouteMtu(nl: NetlinkConnection): number {
  const mtus = linksOut(nl).map(({ mtu }) => mtu);
  return mtus.length === 0 ? DEFAULT_MTU : Math.min(...mtus);
}

/** What a pair is to be. */
export interface PairRequest {
  /** Of the end in the namespace. */
  readonly mac: string;
  /** Of both ends, in bytes. */
  readonly mtu: number;
  /** The index of the bridge that the host's end is to be a port of. */
  readonly master?: number;
  /** Whether the network has IPv6; else it is off on both ends. */
  readonly ipv6: boolean;
  /** Whether duplicate address detection is to run in the namespace. */
  readonly enabledad: boolean;
  /** How the host's end is a port of the bridge. */
  readonly port?: BridgePortOptions;
}

/** A pair that was made. */
export interface MadePair {
  /** The host's end, as results name it. */
  readonly host: { readonly name: string; readonly mac: string };
  /** The index of the end in the namespace. */
  readonly inner: number;
}

/**
 * Makes the pair and sets the host's end up.
 *
 * @throws {CniError} when a link has the name of either end
 */
export function makePair(plugin: string, context: AddContext, request: PairRequest): MadePair {
  const { mac, mtu, master, ipv6, enabledad, port } = request;
  const { hostNl, vmNl, netns, ifName, undo } = context;
  const host = { name: hostVethName(context), mac: randomMac() };
  const peer = { name: ifName, mac, mtu, netnsFd: netns.fd, group: LINK_GROUP };
  let taken = false;
  undo.push(`link "${host.name}"`, () => {
    const veth = taken ? undefined : findNamedVeth(hostNl, context);
    if (veth !== undefined) deleteLink(hostNl, veth.index);
  });
  const create = () =>
    createVeth(hostNl, { ...host, mtu, ...(master === undefined ? {} : { master }), peer });
  let made = tolerate(["EEXIST"], create);
  if (made === undefined) {
    taken = true;
    refuseTaken(plugin, context);
    made = create();
    taken = false;
  }
  const { index, peerIndex } = made;
  withNetns(netns, () => prepareIpv6(context, ipv6, enabledad));
  if (ipv6) writeSysctl(`net/ipv6/conf/${host.name}/accept_ra`, "0");
  else writeSysctl(`net/ipv6/conf/${host.name}/disable_ipv6`, "1");
  hostNl.changeAll([
    ...port === undefined ? [] : [bridgePortChange(hostNl, index, port)],
    linkChange(hostNl, index, { alias: hostVethAlias(context), up: true }),
  ]);
  return { host, inner: peerIndex ?? requireLink(vmNl, ifName).index };
}

/** IPv6 settings of the namespace: all of it where it is tapkit's own, else the interface's. */
function prepareIpv6({ ownNetns, ifName }: AddContext, ipv6: boolean, enabledad: boolean): void {
  if (!ipv6) {
    writeSysctl(`net/ipv6/conf/${ownNetns ? "all" : ifName}/disable_ipv6`, "1");
    return;
  }
  for (const link of ["lo", ifName]) writeSysctl(`net/ipv6/conf/${link}/disable_ipv6`, "0");
  writeSysctl(`net/ipv6/conf/${ifName}/accept_dad`, enabledad ? "1" : "0");
  if (enabledad) writeSysctl(`net/ipv6/conf/${ifName}/enhanced_dad`, "1");
}

/**
 * Gives the namespace's interface its addresses and routes, which go with it.
 *
 * @param up whether to set it up
 * @returns the routes that it has: where another interface has one already, as the default route of the
 * VM's first network, that one stays
 */
export function configureInterface(
  { vmNl }: AddContext,
  index: number,
  { ips, routes }: IpamResult,
  { enabledad, up }: { readonly enabledad: boolean; readonly up: boolean },
): RouteConfig[] {
  const first = [
    ...ips.map(({ address }) => addressAddition(vmNl, addressRequest(index, address, !enabledad))),
    ...up ? [linkChange(vmNl, index, { up: true })] : [],
  ];
  const then = routes.map(({ dst, gw, mtu, priority }): Change => {
    const { family } = parseCidr(dst);
    const gateway = gw ?? ips.find(({ address }) => parseCidr(address).family === family)?.gateway;
    const addition = routeAddition(vmNl, {
      dst,
      oif: index,
      ...(gateway === undefined ? {} : { gateway }),
      ...(mtu === undefined ? {} : { mtu }),
      ...(priority === undefined ? {} : { metric: priority }),
    });
    return {
      ...addition,
      refused: (error) => {
        if (!failedWith(error, "EEXIST")) throw error;
      },
    };
  });
  if (!enabledad) {
    const done = vmNl.changeAll([...first, ...then]);
    return routes.filter((_, index) => done[first.length + index]);
  }
  vmNl.changeAll(first);
  awaitDad(vmNl, index);
  const done = vmNl.changeAll(then);
  return routes.filter((_, index) => done[index]);
}

/**
 * Adds an address to a link, an IPv4 one with its broadcast address.
 *
 * @param noDad whether duplicate address detection is left out for an IPv6 one
 */
export function addAddressTo(
  nl: NetlinkConnection,
  index: number,
  address: string,
  noDad = true,
): void {
  addAddress(nl, addressRequest(index, address, noDad));
}

function addressRequest(index: number, address: string, noDad: boolean): AddressRequest {
  const { family, prefixLength, broadcast } = parseCidr(address);
  return {
    index,
    address,
    ...(family === 6 && noDad ? { noDad } : {}),
    ...(family === 4 && prefixLength < 31 ? { broadcast } : {}),
  };
}

/** Waits until no address is tentative; routes that name one as source need that. */
function awaitDad(nl: NetlinkConnection, index: number): void {
  const cell = new Int32Array(new SharedArrayBuffer(4));
  const end = Date.now() + DAD_TIMEOUT_MS;
  while (listAddresses(nl, { index }).some(({ flags }) => (flags & IFA_F.TENTATIVE) !== 0)) {
    if (Date.now() > end) return;
    Atomics.wait(cell, 0, 0, 20);
  }
}

/** Whether a link has an address. */
export function hasAddress(nl: NetlinkConnection, index: number, address: string): boolean {
  const wanted = parseCidr(address);
  return listAddresses(nl, { index }).some((found) => isSameCidr(parseCidr(found.address), wanted));
}

/** Whether two addresses and their prefix lengths are the same. */
export function isSameCidr(
  a: { readonly address: string; readonly prefixLength: number },
  b: { readonly address: string; readonly prefixLength: number },
): boolean {
  return a.address === b.address && a.prefixLength === b.prefixLength;
}

/**
 * CHECK of the host's end.
 *
 * @param name as the result has it
 * @param checkMore what is to be looked at of it besides
 */
export function checkHostEnd(
  context: CheckContext,
  name: string | undefined,
  checkMore: (end: Link) => Finding[],
): BuiltinFinding[] {
  const end = findHostVeth(context.hostNl, context);
  if (end === undefined) return [{ object: `link "${name}" in the host`, problem: "is gone" }];
  const down = { object: `link "${end.name}"`, problem: "is down" };
  return [...checkMore(end), ...(end.up ? [] : [down])].map(asLive);
}

/** CHECK of the end in the namespace: the link, its MAC, its addresses and routes. */
export function checkInterface(context: CheckContext): BuiltinFinding[] {
  const { vmNl, prevResult, ifName, netnsPath, identityMoved = false } = context;
  if (vmNl === undefined) return [{ object: `network namespace ${netnsPath}`, problem: "is gone" }];
  const link = getLink(vmNl, ifName);
  const object = `link "${ifName}"`;
  if (link === undefined) return [{ object: `${object} in ${netnsPath}`, problem: "is gone" }];
  const found: Finding[] = [];
  if (!link.up) found.push({ object, problem: "is down" });
  if (identityMoved) return found.map(asLive);
  const mac = prevResult.interfaces.find((one) => one.name === ifName && one.sandbox)?.mac;
  if (mac !== undefined && link.mac !== mac) {
    found.push({ object, problem: `has the MAC ${link.mac}, not ${mac}` });
  }
  for (const { address } of prevResult.ips) {
    if (hasAddress(vmNl, link.index, address)) continue;
    found.push({ object, problem: `lacks the address ${address}` });
  }
  const routes = listRoutes(vmNl, { oif: link.index });
  for (const { dst, gw } of prevResult.routes) {
    if (routes.some((route) => route.dst === dst && (gw === undefined || route.gateway === gw))) {
      continue;
    }
    const by = gw === undefined ? "" : ` by ${gw}`;
    found.push({ object: `the route to ${dst}${by}`, problem: "is gone" });
  }
  return found.map(asLive);
}

/** A finding that goes while the guest runs. */
export function asLive(finding: Finding): BuiltinFinding {
  return { ...finding, live: true };
}

/** Brings back what {@linkcode checkInterface} finds of an interface that is there. */
export function mendInterface(context: CheckContext): void {
  const { vmNl, prevResult, ifName, identityMoved = false } = context;
  const link = vmNl && getLink(vmNl, ifName);
  if (vmNl === undefined || link === undefined) return;
  const mac = prevResult.interfaces.find((one) => one.name === ifName && one.sandbox)?.mac;
  const lostMac = !identityMoved && mac !== undefined && link.mac !== mac;
  if (!link.up || lostMac) {
    setLink(vmNl, link.index, { up: true, ...(lostMac ? { mac } : {}) });
  }
  if (identityMoved) return;
  const { ips, routes } = prevResult;
  const lacking = ips.filter(({ address }) => !hasAddress(vmNl, link.index, address));
  for (const { address } of lacking) addAddressTo(vmNl, link.index, address);
  const present = listRoutes(vmNl, { oif: link.index });
  for (const { dst, gw } of routes) {
    if (present.some((route) => route.dst === dst && (gw === undefined || route.gateway === gw))) {
      continue;
    }
    addRoute(vmNl, { dst, oif: link.index, ...(gw === undefined ? {} : { gateway: gw }) });
  }
}

/** A configuration without what was asked for: DEL and CHECK go by what is there. */
export function withoutRequests(conf: PluginConfig): PluginConfig {
  const { args: _, runtimeConfig = {}, ...rest } = conf;
  const { ips: __, mac: ___, ...kept } = runtimeConfig;
  return { ...rest, runtimeConfig: kept };
}
