/**
 * Asking the `static` IPAM for addresses.
 *
 * It has no pool but what is configured. Addresses that it is passed as `ips` displace all of these,
 * and their gateways; so what is wanted takes the place of a configured address in its subnet.
 *
 * @module
 */

import { declares } from "../../cni/plan.ts";
import type { NetworkConfigList } from "../../cni/types.ts";
import { InputError } from "../../errors.ts";
import { addressOf, cidrContains, parseCidr } from "../../inet/ip.ts";
import type { HostPaths } from "../record/paths.ts";
import { readVms, sidesOf } from "../record/store.ts";

/** What a network is, and which addresses it is to be asked for. */
interface Asked {
  readonly list: NetworkConfigList;
  readonly ips: readonly string[];
}

/**
 * Finds out how a network with this IPAM is asked for addresses, each with or without a prefix
 * length.
 *
 * @param strict of the VM of that name nothing is recorded: what cannot be had is refused, where
 * else it is passed over
 * @throws {InputError} for an address that is in no subnet, the gateway's, or another VM's
 */
export function askStatic(
  list: NetworkConfigList,
  wanted: readonly string[],
  strict?: { readonly host: HostPaths; readonly name: string },
): Asked {
  const at = list.plugins.findIndex(({ ipam }) => ipam?.type === "static");
  const plugin = list.plugins[at]!;
  const refuse = (ip: string, problem: string, mend = "choose another address") => {
    if (strict === undefined) return;
    throw new InputError(`network "${list.name}" cannot give the address ${ip}: ${problem}`, {
      mend,
    });
  };
  const configured = plugin.ipam?.addresses ?? [];
  // The plugin says what is wrong with it.
  if (!isStaticAddresses(configured)) return { list, ips: [] };
  const addresses = [...configured];
  const free = new Set(addresses.keys());
  const left = wanted.filter((text) => {
    const ip = addressOf(text);
    const holder = strict && findHolder(strict, list.name, ip);
    if (holder !== undefined) refuse(ip, `VM "${holder}" has it`);
    const place = [...free].find((index) => cidrContains(parseCidr(addresses[index]!.address), ip));
    if (place === undefined) return true;
    const { address, gateway } = addresses[place]!;
    if (gateway !== undefined && addressOf(gateway) === ip) refuse(ip, "it is the gateway's");
    free.delete(place);
    addresses[place] = {
      ...addresses[place]!,
      address: `${ip}/${parseCidr(address).prefixLength}`,
    };
    return false;
  });
  const [first] = left;
  if (first === undefined) return { list: withAddresses(addresses), ips: [] };
  const declared = declares(list, "ips");
  if (!declared && configured.length > 0) {
    const known = configured.map(({ address }) => address).join(", ");
    refuse(addressOf(first), `it has ${known}, and none in another subnet`);
    return { list: withAddresses(addresses), ips: [] };
  }
  if (!first.includes("/")) {
    refuse(first, "nothing says how long its prefix is", `write it as in ${first}/24`);
  }
  if (declared) return { list, ips: wanted };
  return { list: withAddresses(wanted.map((address) => ({ address }))), ips: [] };

  function withAddresses(addresses: readonly unknown[]): NetworkConfigList {
    const asked = { ...plugin, ipam: { ...plugin.ipam, addresses } };
    return { ...list, plugins: list.plugins.with(at, asked) };
  }
}

/** The VM that has an address on a network. */
function findHolder(
  { host, name }: { readonly host: HostPaths; readonly name: string },
  network: string,
  ip: string,
): string | undefined {
  const holder = readVms(host).flatMap(sidesOf).find(({ spec: { id }, facts: { networks } }) =>
    id.name !== name &&
    networks.some(({ attachment, link }) =>
      attachment.network === network &&
      link?.addresses.some(({ address }) => addressOf(address) === ip)
    )
  );
  return holder?.spec.id.name;
}

function isStaticAddresses(
  value: unknown,
): value is readonly { readonly address: string; readonly gateway?: string }[] {
  try {
    return Array.isArray(value) && value.every(({ address, gateway }) => {
      parseCidr(address);
      return gateway === undefined || addressOf(gateway) !== "";
    });
  } catch {
    return false;
  }
}
