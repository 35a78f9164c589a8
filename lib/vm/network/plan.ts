/**
 * Which networks a VM goes on, and on which interface.
 *
 * @module
 */

import { findNetwork, parseConfig } from "../../cni/conflist.ts";
import { DEFAULT_NETWORK, installDefaultCni } from "../../cni/default-network.ts";
import { declares, type NetworkAttachment, planNetwork, portMappings } from "../../cni/plan.ts";
import { AddressHeldError } from "../../cni/types.ts";
import { hasExecuted } from "../../cni/runtime.ts";
import { assertNoOverlap } from "../../cni/subnets.ts";
import { CniError, type IpConfig, type NetworkConfigList, type Result } from "../../cni/types.ts";
import { InputError, TapkitError } from "../../errors.ts";
import { addressOf, parseCidr } from "../../inet/ip.ts";
import type { NetlinkConnection } from "../../netlink/connection.ts";
import { requireLink } from "../../netlink/link.ts";
import { listRoutes, RT_TABLE } from "../../netlink/route.ts";
import type { GuestLink, NetworkFact, Spec } from "../record/attachment.ts";
import { claimsBy } from "../record/derive.ts";
import { nameOfId } from "../record/ids.ts";
import type { HostPaths } from "../record/paths.ts";
import type { Host } from "../session.ts";
import { unboundPorts } from "../record/served.ts";
import { guestIdentity } from "./routers.ts";
import { movesIdentity } from "../wire/wires.ts";

/**
 * Plans a VM's networks: eth0 on the first, eth1 on the second, …
 *
 * Where the directory holds no configuration and none is named, the default one is installed.
 *
 * @param before what the VM had: its addresses and MACs are asked for again
 * @throws {TapkitError} for a network that is not there, is broken, or overlaps the host's routes
 */
export async function planNetworks(
  { host, hostNl }: Place,
  spec: Spec,
  before: readonly NetworkFact[] = [],
): Promise<NetworkAttachment[]> {
  const { ip, mac, bandwidth, mode, plugins, capabilities, cniArgs, id } = spec;
  const ports = unboundPorts(claimsBy(spec.claims, "attach"), before[0]?.link);
  const again = before.length > 0;
  const names = spec.networks.length === 0 ? [undefined] : spec.networks;
  const lists = names.map((name) => readOnce({ host, hostNl }, name, again));
  const undeclared = Object.keys(capabilities)
    .find((name) => !lists.some((list) => declares(list, name)));
  if (undeclared !== undefined) {
    throw new InputError(`no plugin of ${labelOf(lists)} declares the capability "${undeclared}"`, {
      mend:
        `add "capabilities": {"${undeclared}": true} to the plugin that takes it, or leave it out`,
    });
  }
  const plans: NetworkAttachment[] = [];
  for (const [index, configured] of lists.entries()) {
    const had = before[index]?.link;
    const wanted = had?.addresses.map(({ address }) => address) ??
      (index > 0 || ip === undefined ? [] : [ip]);
    if (index === 0 && had === undefined && (mac !== undefined || ip?.includes("/"))) {
      const { refuseOtherPrefix, refuseTakenMac } = await import("./asked-identity.ts");
      if (ip !== undefined) refuseOtherPrefix(configured, ip);
      if (mac !== undefined) refuseTakenMac({ host, hostNl, name: id.name }, configured, mac);
    }
    const isStatic = configured.plugins.some(({ ipam }) => ipam?.type === "static");
    const { list, ips } = isStatic && wanted.length > 0
      ? (await import("./static-addresses.ts")).askStatic(
        configured,
        wanted,
        had === undefined ? { host, name: id.name } : undefined,
      )
      : { list: configured, ips: wanted };
    const isDefault = list.name === DEFAULT_NETWORK;
    if (bandwidth !== undefined && !declares(list, "bandwidth")) {
      throw new InputError(`network "${list.name}" cannot limit bandwidth`, {
        mend: 'add {"type": "bandwidth", "capabilities": {"bandwidth": true}} to ' +
          `${list.path}, or leave --bandwidth out`,
      });
    }
    const planned = planNetwork({
      list,
      containerId: id.containerId,
      ifName: `eth${index}`,
      choice: { mode: plugins, isDefault, host },
      cniArgs,
      // An address, a MAC and ports are asked for the VM's first interface.
      runtimeConfig: {
        ...capabilities,
        ...index > 0 || mac === undefined ? {} : { mac },
        ...had === undefined ? {} : { mac: had.mac },
        ...ips.length === 0 ? {} : { ips },
        ...index > 0 || ports.length === 0 || !declares(list, "portMappings")
          ? {}
          : { portMappings: portMappings(ports) },
        ...bandwidth === undefined ? {} : { bandwidth: shape(bandwidth) },
      },
    });
    if (mode !== "auto" && movesIdentity(mode) && isLeased(planned)) {
      throw new InputError(
        `network "${list.name}" gets its addresses by the dhcp plugin, which cannot renew them in ` +
          `mode ${mode}`,
        { mend: "leave --mode out, or use --mode tc-redirect" },
      );
    }
    refuseSecond(planned, plans);
    plans.push(planned);
  }
  return keepFailures(plans, before.map(({ attachment }) => attachment));
}

/** Plugins that name what they make by the container alone, so that a second of one network collides. */
const ONE_A_CONTAINER: readonly string[] = ["weave-net"];

/** @throws {InputError} for a network that is given twice, and whose plugin cannot do that */
function refuseSecond(planned: NetworkAttachment, plans: readonly NetworkAttachment[]): void {
  const { network, plugins: [maker] } = planned;
  const twice = plans.some((plan) => plan.network === network);
  if (!twice || maker?.implementation !== "exec" || !ONE_A_CONTAINER.includes(maker.type)) return;
  throw new InputError(
    `network "${network}" cannot be given twice: its plugin "${maker.type}" names links and ` +
      "addresses by the container, of which it makes one interface",
    { mend: "give it once, or another network beside it" },
  );
}

/** Explains why ADD of a network that is given twice failed, where that may be why. */
export function explainSecond(
  error: unknown,
  network: string,
  earlier: readonly NetworkAttachment[],
): unknown {
  const twice = earlier.some((attachment) => attachment.network === network);
  if (!(error instanceof CniError) || !error.taken || !twice) return error;
  return new TapkitError(error.message, {
    mend: `give network "${network}" once: its plugin may make one interface a container`,
    cause: error,
  });
}

/** Networks planned anew, of whose plugins it is known that they fail CHECK though nothing is wrong. */
function keepFailures(
  networks: readonly NetworkAttachment[],
  before: readonly NetworkAttachment[] = [],
): NetworkAttachment[] {
  return networks.map((attachment, index) => ({
    ...attachment,
    plugins: attachment.plugins.map((plugin, place) => {
      const { type, checkFailure } = before[index]?.plugins[place] ?? {};
      const is = type === plugin.type && before[index]?.network === attachment.network;
      return is && checkFailure !== undefined ? { ...plugin, checkFailure } : plugin;
    }),
  }));
}

function labelOf(lists: readonly NetworkConfigList[]): string {
  return `network ${lists.map(({ name }) => `"${name}"`).join(", ")}`;
}

/** Whether the dhcp plugin's daemon leases its addresses, and listens on the interface for it. */
export function isLeased({ plugins }: NetworkAttachment): boolean {
  return plugins.some(({ config }) => config.ipam?.type === "dhcp");
}

/** Whether Weave Net's router gives it its addresses. */
export function allocatedByWeave({ plugins: [maker] }: NetworkAttachment): boolean {
  if (maker?.type !== "weave-net" || maker.implementation !== "exec") return false;
  return [undefined, "", "weave-ipam"].includes(maker.config.ipam?.type);
}

/** The `bandwidth` capability: the same both ways, with room for what comes at once. */
function shape(rate: number) {
  const burst = Math.min(Math.max(rate / BURSTS_A_SECOND, MIN_BURST_BITS), MAX_BURST_BITS);
  return { ingressRate: rate, ingressBurst: burst, egressRate: rate, egressBurst: burst };
}

const BURSTS_A_SECOND = 50;
const MIN_BURST_BITS = 512 * 1024;
const MAX_BURST_BITS = 2 ** 31 - 1;

/**
 * What a network gave an interface, as the kernel and the network's result have it.
 *
 * @param before the VM's interfaces before this one
 */
export function describeLink(
  vmNl: NetlinkConnection,
  attachment: NetworkAttachment,
  result: Result,
  before: readonly Pick<GuestLink, "routes">[],
): GuestLink {
  const { ifName } = attachment;
  const { mac = "", mtu, index } = requireLink(vmNl, ifName);
  const isOurs = ({ interface: place }: IpConfig) => {
    const link = place === undefined ? undefined : result.interfaces[place];
    return link === undefined || (link.name === ifName && (link.sandbox ?? "") !== "");
  };
  const ips = result.ips.filter(isOurs);
  // Plugins that are built in say what they did.
  const seen = hasExecuted(attachment) ? { seen: listRoutes(vmNl, { table: RT_TABLE.MAIN }) } : {};
  return {
    mac,
    mtu,
    ...guestIdentity({ ips, named: result.routes, ...seen, oif: index, before }),
    ...isLeased(attachment) ? { leased: true } : {},
  };
}

/** What was asked of a network for an interface, or given before. */
export interface AskedLink {
  readonly network: string;
  readonly ifName: string;
  readonly ip?: string | undefined;
  readonly mac?: string | undefined;
  readonly before?: GuestLink | undefined;
}

/**
 * Compares what an interface was given with what was asked of its network, which only some can be asked.
 *
 * @throws {TapkitError} when the address or the MAC of the request was not given
 */
export function assertAsAsked(
  link: GuestLink,
  { network, ifName, ip, mac, before }: AskedLink,
  note: (text: string) => void,
): void {
  const addresses = link.addresses.map(({ address }) => addressOf(address));
  const now = addresses.join(", ") || "none";
  if (before !== undefined) {
    const had = before.addresses.map(({ address }) => addressOf(address));
    if (had.some((address) => !addresses.includes(address))) {
      note(`warning: "${ifName}" had the address ${had.join(", ")}, now it has ${now}`);
    }
    if (before.mac !== link.mac) {
      note(`warning: "${ifName}" had the MAC address ${before.mac}, now it has ${link.mac}`);
    }
    return;
  }
  if (ip !== undefined && !addresses.includes(addressOf(ip))) {
    throw new TapkitError(`network "${network}" gave the address ${now}, not ${ip}`, {
      mend: "leave --ip out: this network's IPAM cannot be asked for an address",
    });
  }
  if (ip?.includes("/") && !link.addresses.some(({ address }) => sameCidr(address, ip))) {
    throw new TapkitError(`network "${network}" gave another prefix length than that of ${ip}`, {
      mend: `write --ip ${addressOf(ip)}: the length is the network's`,
    });
  }
  if (mac !== undefined && mac !== link.mac) {
    throw new TapkitError(`network "${network}" gave the MAC ${link.mac}, not ${mac}`, {
      mend:
        'add {"type": "tuning", "capabilities": {"mac": true}} to its configuration, or leave ' +
        "--mac out",
    });
  }
}

function sameCidr(a: string, b: string): boolean {
  const [one, other] = [parseCidr(a), parseCidr(b)];
  return one.address === other.address && one.prefixLength === other.prefixLength;
}

/** A host whose networks are read. */
interface Place {
  readonly host: Host;
  readonly hostNl: NetlinkConnection;
}

/** What a session has read. */
class ReadNetwork implements Disposable {
  readonly list: NetworkConfigList;

  constructor(list: NetworkConfigList) {
    this.list = list;
  }

  [Symbol.dispose](): void {}
}

/**
 * The configuration of a network, or of the first one, read once a session.
 *
 * @throws {TapkitError} for the default network, when it overlaps the host's routes; how others go
 * together with them is their makers' business
 */
function readOnce(
  { host, hostNl }: Place,
  name: string | undefined,
  again: boolean,
): NetworkConfigList {
  return host.session.keep(`network ${name ?? ""} of ${host.confDir}`, () => {
    const list = name === undefined ? firstNetwork(host) : requireNetwork(host, name, again);
    if (list.name === DEFAULT_NETWORK) assertNoOverlap(list, hostNl);
    return new ReadNetwork(list);
  }).list;
}

/** The first network of the directory; the default one is installed where there is none. */
function firstNetwork(host: Host): NetworkConfigList {
  return findNetwork(host.confDir) ?? installFirst(host);
}

function installFirst(host: Host): NetworkConfigList {
  const { confDir } = host;
  if (host.onlyLooks) {
    const { path, text, network, subnet } = installDefaultCni({ confDir, print: true });
    host.note(`would install ${path}: network ${network}, ${subnet}`);
    return parseConfig(text!, path);
  }
  const installed = installDefaultCni({ confDir });
  host.note(`installed ${installed.path}: network ${installed.network}, ${installed.subnet}`);
  return requireNetwork(host, installed.network);
}

/** @param again whether the VM was on it before: on a bare host the default one is installed again */
function requireNetwork(host: Host, name?: string, again = false): NetworkConfigList {
  if (again && name === DEFAULT_NETWORK && findNetwork(host.confDir) === undefined) {
    return installFirst(host);
  }
  const found = findNetwork(host.confDir, name);
  if (found !== undefined) return found;
  throw new TapkitError(`${host.confDir} holds no CNI configuration`, {
    mend: "run install-default-cni",
  });
}

/** An error that says whose an address is, with the VM's name in place of its container id. */
export function nameHolder(host: HostPaths, error: unknown): unknown {
  if (!(error instanceof AddressHeldError)) return error;
  const { containerId } = error.holder;
  const vm = nameOfId(host, containerId);
  if (vm === undefined) return error;
  const message = error.message.replace(`${error.plugin}: `, "")
    .replace(`container ${containerId}`, `VM "${vm}"`);
  const mend = `ask for another address, or run attach-vm ${vm} --remove`;
  return new AddressHeldError(message, error.address, error.holder, mend);
}
