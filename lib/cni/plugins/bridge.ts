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
import { addressOf, parseCidr } from "../../inet/ip.ts";
import { randomMac } from "../../inet/mac.ts";
import {
  deleteLink,
  getLink,
  type Link,
  requireLink,
  setBridgePort,
  setLink,
} from "../../netlink/link.ts";
import { linksOut } from "../../netlink/routing.ts";
import { failedWith } from "../../sys/libc.ts";
import { UndoStack } from "../../undo.ts";
import type {
  AddContext,
  AddOutcome,
  BuiltinFinding,
  BuiltinPlugin,
  CheckContext,
  DelContext,
  IpamResult,
} from "../plugin.ts";
import { CniCode, CniError, type IpConfig, type PluginConfig, type Result } from "../types.ts";
import {
  type BridgeConfig,
  hasIpv6,
  leastMtu,
  parseBridge,
  refuseUnusable,
  supportsBridge,
} from "./bridge-config.ts";
import { ensureBridge, ensureGateway, isOurBridge, removeBridgeIfUnused } from "./bridge-device.ts";
import { allocate, holdsAddress, release } from "./host-local.ts";
import {
  checkHostEnd,
  checkInterface,
  configureInterface,
  defaultRouteMtu,
  findHostVeth,
  hasAddress,
  makePair,
  mendInterface,
  withoutRequests,
} from "./veth.ts";

/** Index of the namespace's interface in a result. */
const GUEST_INTERFACE = 2;

/** The built-in `bridge`. */
export const bridge: BuiltinPlugin = {
  supports: supportsBridge,

  validate(conf: PluginConfig, cniArgs: Readonly<Record<string, string>>): void {
    refuseUnusable(conf, parseBridge(conf, cniArgs));
  },

  add(context: AddContext): AddOutcome {
    const { conf, hostNl, undo, ifName } = context;
    const config = parseBridge(conf, context.cniArgs);
    const found = getLink(hostNl, config.bridge);
    const mtu = chooseMtu(context, config, found);
    const addresses = requestAddresses(context, config);
    const bridgeIndex = ensureBridge(hostNl, config, { mtu, undo, found });
    const mac = config.mac ?? randomMac();
    const ipv6 = hasIpv6(config.ipam);
    const enabledad = config.enabledad && ipv6;
    const { host, inner } = explainFull(config.bridge, () =>
      makePair("bridge", context, {
        mac,
        mtu,
        master: bridgeIndex,
        ipv6,
        enabledad,
        port: { hairpin: true, ...(config.portIsolation ? { isolated: true } : {}) },
      }));
    // Read again: the MAC of a bridge that others made may follow its ports.
    const bridge = found !== undefined && isOurBridge(found)
      ? found
      : requireLink(hostNl, bridgeIndex);
    const up = !config.disableContainerInterface;
    const routes = configureInterface(context, inner, addresses, { enabledad, up });
    for (const gateway of gatewaysOf(config, addresses.ips)) {
      ensureGateway(hostNl, bridge, gateway, config.forceAddress, undo);
    }
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
        addresses: bareAddresses(result),
        ...(config.ipMasq ? { masquerade: true } : {}),
      },
    };
  },

  del(context: DelContext): void {
    const { hostNl, prevResult } = context;
    const config = parseBridge(withoutRequests(context.conf), {});
    const { together } = context;
    const veth = findHostVeth(hostNl, context, context.vmNl);
    // One that cannot be marked goes at once.
    if (veth !== undefined && together?.mark(veth, config.bridge) !== true) {
      deleteLink(hostNl, veth.index);
    }
    if (config.ipam !== undefined) {
      release(config.ipam, context, prevResult && bareAddresses(prevResult));
    }
    if (together === undefined) removeBridgeIfUnused(hostNl, config.bridge);
  },

  check(context: CheckContext): BuiltinFinding[] {
    const config = parseBridge(withoutRequests(context.conf), {});
    return [
      ...checkHost(context, config),
      ...checkInterface(context),
      ...checkPool(context, config),
    ];
  },

  mend(context: CheckContext): void {
    const { hostNl, prevResult } = context;
    const config = parseBridge(withoutRequests(context.conf), {});
    const veth = findHostVeth(hostNl, context, context.vmNl);
    if (veth === undefined) return;
    // What is made here stays: it was there before.
    const found = getLink(hostNl, config.bridge);
    const index = ensureBridge(hostNl, config, { mtu: veth.mtu, undo: new UndoStack(), found });
    const { mac } = prevResult.interfaces[0] ?? {};
    // The guests know the gateway by it.
    if (mac !== undefined && requireLink(hostNl, index).mac !== mac) {
      setLink(hostNl, index, { mac });
    }
    const { portIsolation: isolated } = config;
    setLink(hostNl, veth.index, { ...(veth.master === index ? {} : { master: index }), up: true });
    setBridgePort(hostNl, veth.index, { hairpin: true, ...(isolated ? { isolated } : {}) });
    const bridge = requireLink(hostNl, index);
    for (const gateway of gatewaysOf(config, prevResult.ips)) {
      ensureGateway(hostNl, bridge, gateway, config.forceAddress, new UndoStack());
    }
    mendInterface(context);
  },
};

/**
 * The MTU of both ends: what was asked for, else the configuration's, else what the bridge that is
 * there and the way out can carry.
 */
function chooseMtu(
  { hostNl, mtu: asked, fresh, note }: AddContext,
  config: BridgeConfig,
  bridge: Link | undefined,
): number {
  const carried = bridge?.mtu ?? Infinity;
  const wanted = asked ?? config.mtu;
  if (wanted === undefined) {
    return Math.max(leastMtu(config.ipam), Math.min(carried, defaultRouteMtu(hostNl)));
  }
  if (wanted < leastMtu(config.ipam)) {
    const message = `an MTU of ${wanted} is too small for IPv6, which this network has`;
    refuseMtu(message, `choose at least ${leastMtu(config.ipam)}`);
  }
  if (wanted > carried) {
    const what = `bridge "${config.bridge}" carries ${carried} bytes, not ${wanted}`;
    // An attachment that is made again keeps its MTU.
    if (asked === undefined || !fresh) note(`warning: ${what}: larger packets are lost there`);
    // A bridge has the MTU of its smallest port, unless somebody set it.
    else refuseMtu(what, `choose at most ${carried}, as its other ports have`);
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

function refuseMtu(message: string, mend: string): never {
  const where = { plugin: "bridge", code: CniCode.INVALID_ENVIRONMENT_VARIABLES };
  throw new CniError(message, where, { mend });
}

/** The addresses and routes of IPAM, with default routes by the gateways. */
function requestAddresses(context: AddContext, config: BridgeConfig): IpamResult {
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

/** The addresses that the bridge is to have, with their prefix length. */
function gatewaysOf({ isGateway }: BridgeConfig, ips: readonly IpConfig[]): string[] {
  if (!isGateway) return [];
  return ips.map(({ address, gateway }) => `${gateway}/${parseCidr(address).prefixLength}`);
}

/** A bridge has port numbers of 10 bits (`BR_PORT_BITS` of net/bridge/br_private.h), and none is 0. */
const MAX_PORTS = 1023;

function explainFull<T>(bridge: string, join: () => T): T {
  try {
    return join();
  } catch (cause) {
    if (!failedWith(cause, "EXFULL")) throw cause;
    const message = `bridge "${bridge}" is full: it has ${MAX_PORTS} ports, the kernel's limit`;
    const where = { plugin: "bridge", code: CniCode.TRY_AGAIN_LATER };
    const mend = "remove a VM of it, or use a network with another bridge: --network NET";
    throw new CniError(message, where, { mend, cause });
  }
}

/** CHECK of the bridge and its port; settings are the firewall's to check. */
function checkHost(context: CheckContext, config: BridgeConfig): BuiltinFinding[] {
  const { hostNl, prevResult } = context;
  const link = getLink(hostNl, config.bridge);
  const object = `bridge "${config.bridge}"`;
  if (link === undefined) return [{ object, problem: "is gone", live: true }];
  if (link.kind !== "bridge") {
    return [{ object: `link "${config.bridge}"`, problem: "is not a bridge" }];
  }
  const found: BuiltinFinding[] = [];
  if (!link.up) found.push({ object, problem: "is down", live: true });
  if (config.promiscMode && !link.promiscuous) {
    found.push({ object, problem: "is not promiscuous", live: true });
  }
  found.push(...checkHostEnd(context, prevResult.interfaces[1]?.name, (port): Finding[] => {
    if (port.master !== link.index) {
      return [{ object: `link "${port.name}"`, problem: `is not a port of ${object}` }];
    }
    if (port.bridgePort?.hairpin === true) return [];
    return [{ object: `bridge port "${port.name}"`, problem: "has its hairpin flag off" }];
  }));
  for (const gateway of gatewaysOf(config, prevResult.ips)) {
    if (hasAddress(hostNl, link.index, gateway)) continue;
    found.push({ object, problem: `lacks the gateway's address ${gateway}`, live: true });
  }
  return found;
}

function checkPool(context: CheckContext, { ipam }: BridgeConfig): Finding[] {
  if (ipam === undefined) return [];
  const problem = `is not reserved in ${ipam.directory}`;
  return bareAddresses(context.prevResult).filter((ip) => !holdsAddress(ipam, context, ip))
    .map((ip) => ({ object: `address ${ip}`, problem }));
}

function bareAddresses({ ips }: Pick<Result, "ips">): string[] {
  return ips.map(({ address }) => addressOf(address));
}
