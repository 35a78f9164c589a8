/**
 * Which networks a VM goes on, and on which interface.
 *
 * @module
 */

import { findNetwork } from "../cni/conflist.ts";
import { installDefaultCni } from "../cni/default-network.ts";
import { type NetworkAttachment, planNetwork } from "../cni/plan.ts";
import { assertNoOverlap } from "../cni/subnets.ts";
import type { NetworkConfigList } from "../cni/types.ts";
import { TapkitError } from "../errors.ts";
import { parseCidr } from "../inet/ip.ts";
import { expandPorts, type PortMapping } from "../inet/ports.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import type { HostPaths } from "./state.ts";
import type { AttachRequest, VmInterface } from "./types.ts";

/**
 * Plans a VM's networks: eth0 on the first, eth1 on the second, …
 *
 * Where the directory holds no configuration and none is named, the default one is installed.
 *
 * @param ports of eth0, their host ports chosen
 * @param before the interfaces the VM had: their networks, addresses and MACs are asked for again
 * @throws {TapkitError} for a network that is not there, is broken, or overlaps the host's routes
 */
export function planNetworks(
  host: HostPaths,
  hostNl: NetlinkConnection,
  containerId: string,
  request: AttachRequest,
  ports: readonly PortMapping[],
  before: readonly VmInterface[] = [],
): NetworkAttachment[] {
  const { networks = [], ip, mac } = request;
  const lists = networks.length === 0
    ? [firstNetwork(host, before[0]?.network)]
    : networks.map((name) => requireNetwork(host, name));
  return lists.map((list, index) => {
    assertNoOverlap(list, hostNl);
    return planNetwork({
      list,
      containerId,
      ifName: `eth${index}`,
      // An address, a MAC and ports are asked for the VM's first interface.
      runtimeConfig: {
        ...index > 0 || ip === undefined ? {} : { ips: [ip] },
        ...index > 0 || mac === undefined ? {} : { mac },
        ...identity(before[index]),
        ...index > 0 || !declares(list, "portMappings")
          ? {}
          : { portMappings: portMappings(ports) },
      },
    });
  });
}

/** What asks for the addresses and the MAC that an interface had. */
function identity(link: VmInterface | undefined): { ips?: string[]; mac?: string } {
  if (link === undefined) return {};
  return { ips: link.addresses.map(({ address }) => parseCidr(address).address), mac: link.mac };
}

/** @param name of the network that was the first when the VM was attached before */
function firstNetwork(host: HostPaths, name?: string): NetworkConfigList {
  const found = findNetwork(host.confDir);
  if (found !== undefined) return name === undefined ? found : requireNetwork(host, name);
  const installed = installDefaultCni({ confDir: host.confDir });
  host.note(`installed ${installed.path}: network ${installed.network}, ${installed.subnet}`);
  return requireNetwork(host, installed.network);
}

function requireNetwork(host: HostPaths, name?: string): NetworkConfigList {
  const found = findNetwork(host.confDir, name);
  if (found !== undefined) return found;
  throw new TapkitError(`${host.confDir} holds no CNI configuration`, {
    mend: "run install-default-cni",
  });
}

function declares({ plugins }: NetworkConfigList, capability: string): boolean {
  return plugins.some(({ capabilities }) => capabilities?.[capability] === true);
}

/** The `portMappings` capability knows no ranges. */
function portMappings(ports: readonly PortMapping[]) {
  return ports.flatMap(expandPorts).map(({ hostIP, hostPort, vmPort, protocol }) => ({
    hostPort,
    containerPort: vmPort,
    protocol,
    ...hostIP === "" ? {} : { hostIP },
  }));
}
