/**
 * CHECK of the `bridge` plugin.
 *
 * @module
 */

import { parseCidr } from "../../inet/ip.ts";
import { getLink } from "../../netlink/link.ts";
import { listRoutes } from "../../netlink/route.ts";
import type { CheckContext } from "../plugin.ts";
import type { BridgeConfig } from "./bridge-config.ts";
import { hasAddress } from "./bridge-device.ts";
import { findHostVeth } from "./bridge-veth.ts";
import { holdsAddress } from "./host-local.ts";

/** Differences between what ADD made and what is there; settings are the firewall's to check. */
export function checkBridge(context: CheckContext, config: BridgeConfig): string[] {
  return [
    ...checkHost(context, config),
    ...checkGuest(context),
    ...checkPool(context, config),
  ];
}

function checkHost(context: CheckContext, config: BridgeConfig): string[] {
  const { hostNl, prevResult } = context;
  const link = getLink(hostNl, config.bridge);
  if (link === undefined) return [`bridge "${config.bridge}" is gone`];
  if (link.kind !== "bridge") return [`link "${config.bridge}" is no bridge`];
  const problems: string[] = [];
  if (!link.up) problems.push(`bridge "${link.name}" is down`);
  if (config.promiscMode && !link.promiscuous) {
    problems.push(`bridge "${link.name}" is not promiscuous`);
  }
  const veth = findHostVeth(hostNl, context);
  if (veth === undefined) {
    problems.push(`link "${prevResult.interfaces[1]?.name}" in the host is gone`);
  } else {
    if (veth.master !== link.index) {
      problems.push(`link "${veth.name}" is no port of bridge "${link.name}"`);
    } else if (veth.bridgePort?.hairpin !== true) {
      problems.push(`bridge port "${veth.name}" has its hairpin flag off`);
    }
    if (!veth.up) problems.push(`link "${veth.name}" is down`);
  }
  if (!config.isGateway) return problems;
  for (const { address, gateway } of prevResult.ips) {
    const wanted = `${gateway}/${parseCidr(address).prefixLength}`;
    if (!hasAddress(hostNl, link.index, wanted)) {
      problems.push(`bridge "${link.name}" lacks the gateway's address ${wanted}`);
    }
  }
  return problems;
}

function checkGuest(context: CheckContext): string[] {
  const { vmNl, prevResult, ifName, netnsPath, identityMoved = false } = context;
  if (vmNl === undefined) return [`network namespace ${netnsPath} is gone`];
  const link = getLink(vmNl, ifName);
  if (link === undefined) return [`link "${ifName}" in ${netnsPath} is gone`];
  const problems: string[] = [];
  if (!link.up) problems.push(`link "${ifName}" is down`);
  if (identityMoved) return problems;
  const mac = prevResult.interfaces.find((one) => one.name === ifName && one.sandbox)?.mac;
  if (mac !== undefined && link.mac !== mac) {
    problems.push(`link "${ifName}" has the MAC ${link.mac}, not ${mac}`);
  }
  for (const { address } of prevResult.ips) {
    if (!hasAddress(vmNl, link.index, address)) {
      problems.push(`link "${ifName}" lacks the address ${address}`);
    }
  }
  const routes = listRoutes(vmNl, { oif: link.index });
  for (const { dst, gw } of prevResult.routes) {
    if (routes.some((route) => route.dst === dst && (gw === undefined || route.gateway === gw))) {
      continue;
    }
    problems.push(`the route to ${dst}${gw === undefined ? "" : ` by ${gw}`} is gone`);
  }
  return problems;
}

function checkPool(context: CheckContext, { ipam }: BridgeConfig): string[] {
  if (ipam === undefined) return [];
  return context.prevResult.ips
    .map(({ address }) => parseCidr(address).address)
    .filter((ip) => !holdsAddress(ipam, context, ip))
    .map((ip) => `address ${ip} is not reserved in ${ipam.directory}`);
}
