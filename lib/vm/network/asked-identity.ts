/**
 * What of an address and a MAC that are asked for cannot be had, found out before anything is made.
 *
 * @module
 */

import type { IpamConfig, NetworkConfigList, PluginConfig } from "../../cni/types.ts";
import { InputError } from "../../errors.ts";
import { cidrContains, parseCidr } from "../../inet/ip.ts";
import { formatMac, parseMac } from "../../inet/mac.ts";
import { getLink, listLinks } from "../../netlink/link.ts";
import type { NetlinkConnection } from "../../netlink/connection.ts";
import type { HostPaths } from "../record/paths.ts";
import { readVms, sidesOf } from "../record/store.ts";

/** What the bridge plugin takes where none is named. */
const DEFAULT_BRIDGE = "cni0";

/** The host, and the VM that asks. */
interface Asking {
  readonly host: HostPaths;
  readonly hostNl: NetlinkConnection;
  readonly name: string;
}

/**
 * Refuses a prefix length that is not the network's: the guest would take others for neighbours
 * than the network does.
 *
 * @param ip an address, with or without a prefix length
 * @throws {InputError} naming the network's
 */
export function refuseOtherPrefix(list: NetworkConfigList, ip: string): void {
  if (!ip.includes("/")) return;
  const { address, prefixLength } = parseCidr(ip);
  const subnet = list.plugins.flatMap(({ ipam }) => subnetsOf(ipam ?? {}))
    .find((candidate) => cidrContains(candidate, address));
  if (subnet === undefined || subnet.prefixLength === prefixLength) return;
  throw new InputError(
    `the addresses of network "${list.name}" have the prefix length ${subnet.prefixLength}, ` +
      `not ${prefixLength}`,
    { mend: `write --ip ${address}, or ${address}/${subnet.prefixLength}` },
  );
}

/** The subnets that a configuration names, as far as it can be read; the plugin says what is wrong. */
function subnetsOf({ subnet, ranges, addresses }: IpamConfig) {
  const nested = [ranges, addresses].flatMap((value) => Array.isArray(value) ? value.flat() : []);
  const texts = [subnet, ...nested.flatMap((entry) => [entry?.subnet, entry?.address])];
  return texts.flatMap((text) => {
    try {
      return typeof text === "string" ? parseCidr(text) : [];
    } catch (error) {
      if (error instanceof InputError) return [];
      throw error;
    }
  });
}

/**
 * Refuses a MAC that another VM of the network has, or the host itself on its bridge: frames would
 * go now to one and now to the other.
 *
 * @throws {InputError} naming who has it
 */
export function refuseTakenMac(
  { host, hostNl, name }: Asking,
  list: NetworkConfigList,
  mac: string,
) {
  const wanted = formatMac(parseMac(mac));
  const bridges = bridgesOf(list.plugins);
  const holder = takenByVm() ?? bridges.map(takenByHost).find(Boolean);
  if (holder === undefined) return;
  throw new InputError(
    `the MAC address ${wanted} is on network "${list.name}" already: ${holder}`,
    {
      mend: "choose another, or leave --mac out",
    },
  );

  function takenByVm(): string | undefined {
    const other = readVms(host).flatMap(sidesOf).find(({ spec: { id }, facts: { networks } }) =>
      id.name !== name &&
      networks.some(({ attachment: { network, plugins }, link }) => {
        const own = bridgesOf(plugins.map(({ config }) => config));
        const shared = network === list.name || own.some((bridge) => bridges.includes(bridge));
        return shared && link?.mac === wanted;
      })
    );
    return other && `VM "${other.spec.id.name}" has it`;
  }

  function takenByHost(bridge: string): string | undefined {
    const link = getLink(hostNl, bridge);
    if (link === undefined) return undefined;
    if (link.mac === wanted) return `it is that of the bridge "${bridge}"`;
    const port = listLinks(hostNl, { master: link.index }).find((one) => one.mac === wanted);
    return port && `it is that of the host's link "${port.name}"`;
  }
}

/** The host's bridges that a network's interfaces are made on. */
function bridgesOf(plugins: readonly PluginConfig[]): string[] {
  return plugins.filter(({ type }) => type === "bridge")
    .map(({ bridge }) => typeof bridge === "string" && bridge !== "" ? bridge : DEFAULT_BRIDGE);
}
