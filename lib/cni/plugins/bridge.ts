/**
 * The `bridge` plugin: a veth pair between the namespace and a bridge of the host.
 *
 * It reads the reference plugin's configuration, gives its result, and shares bridge and pool with
 * containers that the reference plugin attaches. It differs where a VM behind the interface needs it:
 *
 * - The host's end has a name that follows from the attachment, and an alias with it, so that it is found
 *   without the namespace.
 * - The port's hairpin flag is always on. With bridge-nf-call-iptables a guest reaches itself by its
 *   own published port only so, and promiscMode does not help. Reflected frames that are not
 *   such answers are dropped behind eth0.
 * - Without an IPv6 range, IPv6 is off on both ends: each new guest's multicast would be
 *   flooded to every port. The guest's own IPv6 frames pass all the same.
 *
 * @module
 */

import type { Finding } from "../../finding.ts";
import { parseCidr } from "../../inet/ip.ts";
import { randomMac } from "../../inet/mac.ts";
import { addAddress, IFA_F, listAddresses } from "../../netlink/address.ts";
import type { NetlinkConnection } from "../../netlink/connection.ts";
import { NetlinkError } from "../../netlink/errors.ts";
import {
  createVeth,
  deleteLink,
  getLink,
  requireLink,
  setBridgePort,
  setLink,
} from "../../netlink/link.ts";
import { addRoute, type RouteRequest } from "../../netlink/route.ts";
import { linksOut } from "../../netlink/routing.ts";
import { Errno } from "../../sys/libc.ts";
import { withNetns } from "../../sys/netns.ts";
import { writeSysctl } from "../../sys/sysctl.ts";
import type { AddContext, AddOutcome, BuiltinPlugin, CheckContext, DelContext } from "../plugin.ts";
import {
  CniCode,
  CniError,
  type IpConfig,
  type PluginConfig,
  type Result,
  type RouteConfig,
} from "../types.ts";
import {
  type BridgeConfig,
  hasIpv6,
  leastMtu,
  parseBridge,
  refuseUnusable,
  supportsBridge,
} from "./bridge-config.ts";
import { checkBridge } from "./bridge-check.ts";
import { ensureBridge, ensureGateway, LINK_GROUP, removeBridgeIfUnused } from "./bridge-device.ts";
import { findHostVeth, findNamedVeth, hostVethAlias, hostVethName } from "./bridge-veth.ts";
import { allocate, release } from "./host-local.ts";

const DEFAULT_MTU = 1500;
/** Index of the namespace's interface in a result. */
const GUEST_INTERFACE = 2;
/** How long duplicate address detection may take. */
const DAD_TIMEOUT_MS = 10_000;

/** The built-in `bridge`. */
export const bridge: BuiltinPlugin = {
  supports: supportsBridge,

  validate(conf: PluginConfig, cniArgs: Readonly<Record<string, string>>): void {
    refuseUnusable(conf, parseBridge(conf, cniArgs));
  },

  add(context: AddContext): AddOutcome {
    const { conf, hostNl, vmNl, undo, ifName } = context;
    const config = parseBridge(conf, context.cniArgs);
    refuseTaken(context);
    const mtu = chooseMtu(context, config);
    const addresses = requestAddresses(context, config);
    const bridgeIndex = ensureBridge(hostNl, config, mtu, undo);
    const mac = config.mac ?? randomMac();
    const host = makeVeth(context, config, bridgeIndex, mac, mtu);
    // Read again: the MAC of a bridge that others made may follow its ports.
    const bridge = requireLink(hostNl, bridgeIndex);
    const eth = requireLink(vmNl, ifName).index;
    const routes = configure(context, config, eth, addresses);
    if (config.isGateway) {
      for (const { address, gateway } of addresses.ips) {
        const { prefixLength } = parseCidr(address);
        const wanted = `${gateway}/${prefixLength}`;
        ensureGateway(hostNl, bridge, wanted, config.forceAddress, undo);
      }
    }
    const guestAddresses = addresses.ips.map(({ address }) => parseCidr(address).address);
    const result: Result = {
      cniVersion: conf.cniVersion ?? "1.0.0",
      interfaces: [
        { name: bridge.name, ...(bridge.mac === undefined ? {} : { mac: bridge.mac }) },
        host,
        { name: ifName, mac, sandbox: context.netnsPath },
      ],
      ...addresses,
      routes,
      dns: conf.dns !== undefined && Object.keys(conf.dns).length > 0 ? conf.dns : addresses.dns,
    };
    return {
      result,
      guest: {
        link: bridge.name,
        addresses: guestAddresses,
        ...(config.ipMasq ? { masquerade: true } : {}),
      },
    };
  },

  del(context: DelContext): void {
    const { hostNl, prevResult } = context;
    const config = parseBridge(withoutRequests(context.conf), {});
    const veth = findHostVeth(hostNl, context, context.vmNl);
    if (veth !== undefined) deleteLink(hostNl, veth.index);
    if (config.ipam !== undefined) {
      const known = prevResult?.ips.map(({ address }) => parseCidr(address).address);
      release(config.ipam, context, known);
    }
    removeBridgeIfUnused(hostNl, config.bridge);
  },

  check(context: CheckContext): Finding[] {
    const config = parseBridge(withoutRequests(context.conf), {});
    return checkBridge(context, config);
  },
};

/**
 * The MTU of both ends: what was asked for, else the configuration's, else what the bridge that is
 * there and the way out can carry.
 */
function chooseMtu({ hostNl, mtu: asked, fresh, note }: AddContext, config: BridgeConfig): number {
  const bridge = getLink(hostNl, config.bridge);
  const carried = bridge?.mtu ?? Infinity;
  const wanted = asked ?? config.mtu;
  if (wanted === undefined) {
    return Math.max(leastMtu(config.ipam), Math.min(carried, defaultRouteMtu(hostNl)));
  }
  if (wanted < leastMtu(config.ipam)) {
    refuseMtu(`an MTU of ${wanted} is too small for IPv6, which this network has`, {
      mend: `choose at least ${leastMtu(config.ipam)}`,
    });
  }
  if (wanted > carried) {
    const what = `bridge "${config.bridge}" carries ${carried} bytes, not ${wanted}`;
    // What was attached already keeps what it has.
    if (asked === undefined || !fresh) note(`warning: ${what}: larger packets are lost there`);
    // The kernel gives a bridge what its smallest port has, unless somebody set it.
    else refuseMtu(what, { mend: `choose at most ${carried}, as its other ports have` });
  } else if (asked !== undefined && fresh) {
    const narrow = linksOut(hostNl).find(({ mtu }) => mtu < asked);
    if (narrow !== undefined) {
      note(
        `warning: the host's way out, "${narrow.name}", carries ${narrow.mtu} bytes, not ${asked}: ` +
          "larger packets are for this network only",
      );
    }
  }
  return wanted;
}

function refuseMtu(message: string, { mend }: { mend: string }): never {
  const where = { plugin: "bridge", code: CniCode.INVALID_ENVIRONMENT_VARIABLES };
  throw new CniError(message, where, { mend });
}

function refuseTaken({ hostNl, vmNl, netnsPath, containerId, ifName }: AddContext): void {
  const name = hostVethName(containerId, ifName);
  const taken = getLink(vmNl, ifName) !== undefined
    ? `"${ifName}" in ${netnsPath}`
    : getLink(hostNl, name) !== undefined
    ? `"${name}"`
    : undefined;
  if (taken === undefined) return;
  throw new CniError(`link ${taken} already exists`, {
    plugin: "bridge",
    code: CniCode.INVALID_ENVIRONMENT_VARIABLES,
  }, { mend: "remove the attachment first, or choose another interface name" });
}

interface Addresses {
  readonly ips: readonly IpConfig[];
  readonly routes: readonly RouteConfig[];
  readonly dns: Result["dns"];
}

/** What IPAM gives, with the gateways' default routes. */
function requestAddresses(context: AddContext, config: BridgeConfig): Addresses {
  if (config.ipam === undefined) return { ips: [], routes: [], dns: {} };
  const given = allocate(config.ipam, context, context.undo, context.fresh);
  const routes = [...given.routes];
  for (const { address, gateway } of config.isDefaultGateway ? given.ips : []) {
    const dst = parseCidr(address).family === 4 ? "0.0.0.0/0" : "::/0";
    if (gateway === undefined || routes.some((route) => route.dst === dst && route.gw)) continue;
    routes.push({ dst, gw: gateway });
  }
  return {
    ips: given.ips.map((ip) => ({ ...ip, interface: GUEST_INTERFACE })),
    routes,
    dns: given.dns,
  };
}

function makeVeth(
  context: AddContext,
  config: BridgeConfig,
  bridgeIndex: number,
  mac: string,
  mtu: number,
): { name: string; mac: string } {
  const { hostNl, netns, ifName, undo, containerId } = context;
  const ipv6 = hasIpv6(config.ipam);
  const host = { name: hostVethName(containerId, ifName), mac: randomMac() };
  undo.push(`link "${host.name}"`, () => {
    const veth = findNamedVeth(hostNl, context);
    if (veth !== undefined) deleteLink(hostNl, veth.index);
  });
  const peer = { name: ifName, mac, mtu, netnsFd: netns.fd, group: LINK_GROUP };
  const index = explainFull(
    config.bridge,
    () => createVeth(hostNl, { ...host, mtu, master: bridgeIndex, peer }),
  );
  // Before either end comes up.
  withNetns(netns, () => prepareIpv6(context, ipv6, config.enabledad));
  if (ipv6) writeSysctl(`net/ipv6/conf/${host.name}/accept_ra`, "0");
  else writeSysctl(`net/ipv6/conf/${host.name}/disable_ipv6`, "1");
  setBridgePort(hostNl, index, {
    hairpin: true,
    ...(config.portIsolation ? { isolated: true } : {}),
  });
  setLink(hostNl, index, { alias: hostVethAlias(context), up: true });
  return host;
}

/** A bridge has port numbers of 10 bits (`BR_PORT_BITS` of net/bridge/br_private.h), and none is 0. */
const MAX_PORTS = 1023;

function explainFull<T>(bridge: string, join: () => T): T {
  try {
    return join();
  } catch (cause) {
    if (!(cause instanceof NetlinkError) || cause.errno !== Errno.EXFULL) throw cause;
    throw new CniError(
      `bridge "${bridge}" is full: it has ${MAX_PORTS} ports, the kernel's limit`,
      {
        plugin: "bridge",
        code: CniCode.TRY_AGAIN_LATER,
      },
      { mend: "remove a VM of it, or use a network with another bridge: --network NET", cause },
    );
  }
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
 * Addresses and routes of the namespace's interface; they go with it.
 *
 * @returns the routes that it has: where another interface has one already, as the default route of the
 * VM's first network, that one stays
 */
function configure(
  { vmNl }: AddContext,
  config: BridgeConfig,
  index: number,
  { ips, routes }: Addresses,
): RouteConfig[] {
  for (const { address } of ips) {
    const { family, prefixLength, broadcast } = parseCidr(address);
    addAddress(vmNl, {
      index,
      address,
      ...(family === 6 && !config.enabledad ? { noDad: true } : {}),
      ...(family === 4 && prefixLength < 31 ? { broadcast } : {}),
    });
  }
  if (!config.disableContainerInterface) setLink(vmNl, index, { up: true });
  if (config.enabledad && hasIpv6(config.ipam)) awaitDad(vmNl, index);
  return routes.filter(({ dst, gw, mtu, priority }) => {
    const { family } = parseCidr(dst);
    const gateway = gw ?? ips.find(({ address }) => parseCidr(address).family === family)?.gateway;
    return addIfFree(vmNl, {
      dst,
      oif: index,
      ...(gateway === undefined ? {} : { gateway }),
      ...(mtu === undefined ? {} : { mtu }),
      ...(priority === undefined ? {} : { metric: priority }),
    });
  });
}

function addIfFree(nl: NetlinkConnection, request: RouteRequest): boolean {
  try {
    addRoute(nl, request);
    return true;
  } catch (error) {
    if (error instanceof NetlinkError && error.errno === Errno.EEXIST) return false;
    throw error;
  }
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

/** What every link that the host's default route leaves by can carry; 1500 without one. */
function defaultRouteMtu(nl: NetlinkConnection): number {
  const mtus = linksOut(nl).map(({ mtu }) => mtu);
  return mtus.length === 0 ? DEFAULT_MTU : Math.min(...mtus);
}

/** DEL and CHECK go by what is there, not by what was asked for. */
function withoutRequests(conf: PluginConfig): PluginConfig {
  const { args: _, runtimeConfig = {}, ...rest } = conf;
  const { ips: __, mac: ___, ...kept } = runtimeConfig;
  return { ...rest, runtimeConfig: kept };
}
