/**
 * CHECK of the `bridge` plugin.
 *
 * @module
 */

import type { Finding } from "../../finding.ts";
import { parseCidr } from "../../inet/ip.ts";
import { getLink } from "../../netlink/link.ts";
import { listRoutes } from "../../netlink/route.ts";
import type { CheckContext } from "../plugin.ts";
import type { BridgeConfig } from "./bridge-config.ts";
import { hasAddress } from "./bridge-device.ts";
import { findHostVeth } from "./bridge-veth.ts";
import { holdsAddress } from "./host-local.ts";

/** Differences between what ADD made and what is there; settings are the firewall's to check. */
export function checkBridge(context: CheckContext, config: BridgeConfig): Finding[] {
  return [
    ...checkHost(context, config),
    ...checkGuest(context),
    ...checkPool(context, config),
  ];
}

function checkHost(context: CheckContext, config: BridgeConfig): Finding[] {
  const { hostNl, prevResult } = context;
  const link = getLink(hostNl, config.bridge);
  const object = `bridge "${config.bridge}"`;
  if (link === undefined) return [{ object, problem: "is gone" }];
  if (link.kind !== "bridge") {
    return [{ object: `link "${config.bridge}"`, problem: "is no bridge" }];
  }
  const found: Finding[] = [];
  if (!link.up) found.push({ object, problem: "is down" });
  if (config.promiscMode && !link.promiscuous) {
    found.push({ object, problem: "is not promiscuous" });
  }
  const veth = findHostVeth(hostNl, context);
  if (veth === undefined) {
    const name = prevResult.interfaces[1]?.name;
    found.push({ object: `link "${name}" in the host`, problem: "is gone" });
  } else {
    const host = `link "${veth.name}"`;
    if (veth.master !== link.index) {
      found.push({ object: host, problem: `is no port of ${object}` });
    } else if (veth.bridgePort?.hairpin !== true) {
      found.push({ object: `bridge port "${veth.name}"`, problem: "has its hairpin flag off" });
    }
    if (!veth.up) found.push({ object: host, problem: "is down" });
  }
  if (!config.isGateway) return found;
  for (const { address, gateway } of prevResult.ips) {
    const wanted = `${gateway}/${parseCidr(address).prefixLength}`;
    if (!hasAddress(hostNl, link.index, wanted)) {
      found.push({ object, problem: `lacks the gateway's address ${wanted}` });
    }
  }
  return found;
}

function checkGuest(context: CheckContext): Finding[] {
  const { vmNl, prevResult, ifName, netnsPath, identityMoved = false } = context;
  if (vmNl === undefined) return [{ object: `network namespace ${netnsPath}`, problem: "is gone" }];
  const link = getLink(vmNl, ifName);
  const object = `link "${ifName}"`;
  if (link === undefined) return [{ object: `${object} in ${netnsPath}`, problem: "is gone" }];
  const found: Finding[] = [];
  if (!link.up) found.push({ object, problem: "is down" });
  if (identityMoved) return found;
  const mac = prevResult.interfaces.find((one) => one.name === ifName && one.sandbox)?.mac;
  if (mac !== undefined && link.mac !== mac) {
    found.push({ object, problem: `has the MAC ${link.mac}, not ${mac}` });
  }
  for (const { address } of prevResult.ips) {
    if (!hasAddress(vmNl, link.index, address)) {
      found.push({ object, problem: `lacks the address ${address}` });
    }
  }
  const routes = listRoutes(vmNl, { oif: link.index });
  for (const { dst, gw } of prevResult.routes) {
    if (routes.some((route) => route.dst === dst && (gw === undefined || route.gateway === gw))) {
      continue;
    }
    const by = gw === undefined ? "" : ` by ${gw}`;
    found.push({ object: `the route to ${dst}${by}`, problem: "is gone" });
  }
  return found;
}

function checkPool(context: CheckContext, { ipam }: BridgeConfig): Finding[] {
  if (ipam === undefined) return [];
  return context.prevResult.ips
    .map(({ address }) => parseCidr(address).address)
    .filter((ip) => !holdsAddress(ipam, context, ip))
    .map((ip) => ({
      object: `address ${ip}`,
      problem: `is not reserved in ${ipam.directory}`,
    }));
}
