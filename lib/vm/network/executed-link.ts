/**
 * The interface that executed plugins made: brought to what the VM needs, and looked at without
 * them. Versions of the specification before 0.4.0 have no CHECK, and others overlook things.
 *
 * @module
 */

import { checkFirst } from "../../cni/reference-faults.ts";
import type { MadeAttachment, NetworkAttachment, PluginHost, SeenLink } from "../../cni/plan.ts";
import { writeCache } from "../../cni/cache.ts";
import { type Added, type CheckEnvironment, checkNetwork } from "../../cni/runtime.ts";
import { CniCode, CniError, type Result } from "../../cni/types.ts";
import { parseCidr } from "../../inet/ip.ts";
import { formatMac, parseMac } from "../../inet/mac.ts";
import type { Finding } from "../../finding.ts";
import type { NetlinkConnection } from "../../netlink/connection.ts";
import { NetlinkError } from "../../netlink/errors.ts";
import { addAddress, listAddresses } from "../../netlink/address.ts";
import { getLink, type Link, requireLink, setBridgePort, setLink } from "../../netlink/link.ts";
import { addRoute, listRoutes, RT_TABLE } from "../../netlink/route.ts";
import { MAX_TAP_MTU } from "../../sys/tap.ts";
import { findHostEnd, type LinkEnds } from "./host-end.ts";
import { isLeased } from "./plan.ts";
import type { GuestLink } from "../record/attachment.ts";

/** What an interface is brought to. */
export interface SettleOptions extends LinkEnds, CheckEnvironment {
  readonly vmNl: NetlinkConnection;
  readonly plugins: PluginHost;
  /** In bytes; what the network gave unless it is said. */
  readonly mtu?: number;
  readonly mac?: string;
  /** Whether the namespace is tapkit's own. */
  readonly ownNetns: boolean;
  /** The interface as it was before, where it is to be the same again. */
  readonly had?: GuestLink;
}

/**
 * Brings what a network's plugins made to what is wanted and can be carried, and remembers what is
 * seen of it, and what their CHECK says though nothing is wrong.
 *
 * Equivalent to: `ip link set eth0 mtu N` on both ends of the pair, `ip link set eth0 address MAC`
 *
 * @throws {CniError} when a plugin that was to keep the address gave another one
 */
export async function settleLink(added: Added, options: SettleOptions): Promise<Added> {
  if (options.keepsLease) requireSame(added, options.had);
  const { plugins: host, netnsPath: netns } = options;
  const { note, outside } = options;
  const attachment = await checkFirst(added.attachment, { host, netns, note, outside });
  setMtu(attachment, options);
  const settled = await giveMac({ ...added, attachment }, options);
  const seen = lookAtLink(settled.attachment, options);
  return { ...settled, attachment: { ...settled.attachment, seen } };
}

function requireSame({ attachment, result }: Added, had: GuestLink | undefined): void {
  const now = result.ips.map(({ address }) => address);
  const before = had?.addresses.map(({ address }) => address) ?? [];
  if (before.every((address) => now.includes(address))) return;
  const { plugins: [maker], network } = attachment;
  throw new CniError(`network "${network}" gave ${now.join(", ")}, not ${before.join(", ")}`, {
    plugin: maker!.type,
    code: CniCode.INTERNAL,
    taken: true,
  });
}

/**
 * Gives the interface the MAC that is wanted where its plugins took none, unless their CHECK then
 * says that it has to be another one. In a namespace of somebody else's it stays as it is.
 */
async function giveMac(added: Added, options: SettleOptions): Promise<Added> {
  const { attachment } = added;
  const { mac: wanted, ownNetns, vmNl, plugins } = options;
  const inner = requireLink(vmNl, attachment.ifName);
  const mac = wanted === undefined ? undefined : formatMac(parseMac(wanted));
  if (mac === undefined || inner.mac === mac || !ownNetns || isLeased(attachment)) return added;
  try {
    setLink(vmNl, inner.index, { mac });
  } catch (error) {
    // An ipvlan, say, has that of the link below.
    if (error instanceof NetlinkError) return added;
    throw error;
  }
  const changed = withMac(attachment, mac);
  const findings = await checkNetwork(changed, options);
  if (findings.every(({ executed, ignored }) => executed === undefined || ignored)) {
    writeCache(plugins.stateDir, changed, options.netnsPath);
    return { ...added, attachment: changed, result: changed.result };
  }
  setLink(vmNl, inner.index, { mac: inner.mac! });
  return added;
}

function withMac(attachment: MadeAttachment, mac: string): MadeAttachment {
  const { ifName } = attachment;
  const change = (result: Result): Result => ({
    ...result,
    interfaces: result.interfaces.map((one) =>
      one.name === ifName && (one.sandbox ?? "") !== "" ? { ...one, mac } : one
    ),
  });
  return {
    ...attachment,
    result: change(attachment.result),
    plugins: attachment.plugins.map((plugin) =>
      plugin.prevResult === undefined
        ? plugin
        : { ...plugin, prevResult: change(plugin.prevResult) }
    ),
  };
}

/** A TAP takes less than a veth pair does, and what one end drops the other has to know of. */
function setMtu({ ifName, network }: MadeAttachment, options: SettleOptions): void {
  const { vmNl, hostNl, had, note } = options;
  const inner = requireLink(vmNl, ifName);
  const mtu = options.mtu ?? Math.min(inner.mtu, MAX_TAP_MTU);
  if (options.mtu === undefined && mtu === inner.mtu) return;
  if (options.mtu === undefined) {
    note(
      `"${ifName}" gets an MTU of ${mtu}: network "${network}" gave ${inner.mtu}, a TAP takes no more`,
    );
  }
  setLink(vmNl, inner.index, { mtu });
  const end = findHostEnd(ifName, options);
  if (end === undefined) return;
  setLink(hostNl, end.link.index, { mtu });
  if (options.mtu === undefined || had !== undefined || end.master === undefined) return;
  const bridge = requireLink(hostNl, end.master.index);
  if (bridge.mtu <= mtu) return;
  note(
    `warning: "${bridge.name}" of network "${network}" keeps its MTU of ${bridge.mtu}: of what the ` +
      `host sends to "${ifName}", packets of more than ${mtu} bytes are lost: ` +
      "set the network's own MTU instead",
  );
}

/** What is seen of an interface, which {@linkcode checkSeen} compares later. */
export function lookAtLink(
  { ifName }: Pick<MadeAttachment, "ifName">,
  ends: LinkEnds,
): SeenLink {
  const end = findHostEnd(ifName, ends);
  const routes = madeRoutes(requireLink(ends.vmNl, ifName), ends);
  if (end === undefined) return { routes };
  const { link, master } = end;
  return {
    hostEnd: {
      name: link.name,
      ...link.mac === undefined ? {} : { mac: link.mac },
      mtu: link.mtu,
      ...master === undefined ? {} : { master: master.name },
      ...link.bridgePort?.hairpin ? { hairpin: true } : {},
    },
    routes,
  };
}

/** An interface's routes, but for those that the kernel has by itself; gateways' own come first. */
function madeRoutes({ index }: Link, { vmNl }: LinkEnds): SeenLink["routes"] {
  return listRoutes(vmNl, { table: RT_TABLE.MAIN, oif: index })
    .filter(({ protocol }) => protocol !== "kernel" && protocol !== "ra")
    .map(({ dst, gateway }) => ({ dst, ...gateway === undefined ? {} : { gw: gateway } }))
    .sort((a, b) => Number(a.gw !== undefined) - Number(b.gw !== undefined));
}

/** A difference, and what mends it where that can be done without the plugin. */
interface Difference extends Finding {
  readonly mend?: () => void;
}

/**
 * What differs of an interface from what was seen of it.
 *
 * @param link as recorded
 */
export function checkSeen(
  attachment: SeenAttachment,
  link: GuestLink,
  options: SeenOptions,
): Finding[] {
  return compare(attachment, link, options).map(({ object, problem }) => ({ object, problem }));
}

/** An interface, and what was seen of it. */
type SeenAttachment = Pick<NetworkAttachment, "ifName" | "seen">;

/** Where an interface is looked at. */
export interface SeenOptions extends LinkEnds {
  /** Whether address, MAC and routes of the interface were moved to the guest. */
  readonly identityMoved: boolean;
}

/**
 * Mends what {@linkcode checkSeen} says, as far as that can be done without the plugin.
 *
 * @returns whether nothing differs any more
 */
export function mendSeen(
  attachment: SeenAttachment,
  link: GuestLink,
  options: SeenOptions,
): boolean {
  for (const { mend } of compare(attachment, link, options)) {
    if (mend === undefined) return false;
    mend();
  }
  return compare(attachment, link, options).length === 0;
}

function compare(
  { ifName, seen }: SeenAttachment,
  recorded: GuestLink,
  options: SeenOptions,
): Difference[] {
  const { vmNl, identityMoved } = options;
  const inner = getLink(vmNl, ifName);
  if (seen === undefined || inner === undefined) return [];
  return [
    ...seen.hostEnd === undefined ? [] : compareHostEnd(ifName, seen.hostEnd, options),
    ...compareState(vmNl, inner, recorded.mtu),
    ...identityMoved ? [] : compareAddresses(inner, recorded, seen, options),
  ];
}

function compareHostEnd(
  ifName: string,
  { name, mtu, master, hairpin }: NonNullable<SeenLink["hostEnd"]>,
  ends: LinkEnds,
): Difference[] {
  const { hostNl } = ends;
  const end = findHostEnd(ifName, ends);
  if (end === undefined) {
    return [{ object: `the host's end of "${ifName}", "${name}",`, problem: "is gone" }];
  }
  const { link } = end;
  const differences = compareState(hostNl, link, mtu);
  const setHairpin = () => setBridgePort(hostNl, link.index, { hairpin: hairpin ?? false });
  if (master !== end.master?.name) {
    const wanted = master === undefined ? undefined : getLink(hostNl, master);
    const object = `link "${link.name}"`;
    const problem = master === undefined
      ? `has become a port of "${end.master!.name}"`
      : `is not a port of "${master}"${wanted === undefined ? ", which is gone" : ""}`;
    // What is not a kernel bridge learns of its ports by other means.
    const mend = wanted?.kind === "bridge"
      ? () => {
        setLink(hostNl, link.index, { master: wanted.index });
        setHairpin();
      }
      : undefined;
    differences.push({ object, problem, ...mend === undefined ? {} : { mend } });
  } else if (hairpin && link.bridgePort?.hairpin !== true) {
    const object = `bridge port "${link.name}"`;
    differences.push({ object, problem: "has its hairpin flag off", mend: setHairpin });
  }
  return differences;
}

function compareState(nl: LinkEnds["hostNl"], link: Link, mtu: number): Difference[] {
  const differences: Difference[] = [];
  const object = `link "${link.name}"`;
  if (!link.up) {
    const mend = () => setLink(nl, link.index, { up: true });
    differences.push({ object, problem: "is down", mend });
  }
  if (link.mtu !== mtu) {
    const problem = `has MTU ${link.mtu}, not ${mtu}`;
    differences.push({ object, problem, mend: () => setLink(nl, link.index, { mtu }) });
  }
  return differences;
}

function compareAddresses(
  { index, name }: Link,
  recorded: GuestLink,
  seen: SeenLink,
  { vmNl }: LinkEnds,
): Difference[] {
  const present = listAddresses(vmNl, { index }).map(({ address }) => address);
  const routes = listRoutes(vmNl, { table: RT_TABLE.MAIN, oif: index });
  const isThere = ({ dst, gw }: SeenLink["routes"][number]) =>
    routes.some((route) => route.dst === dst && route.gateway === gw);
  return [
    ...recorded.addresses.flatMap(({ address }): Difference[] => {
      const { address: ip, prefixLength, family, broadcast } = parseCidr(address);
      if (present.includes(`${ip}/${prefixLength}`)) return [];
      const more = family === 4 && prefixLength < 31 ? { broadcast } : { noDad: true };
      const mend = () => void addAddress(vmNl, { index, address, ...more });
      return [{ object: `link "${name}"`, problem: `lacks the address ${address}`, mend }];
    }),
    ...seen.routes.filter((route) => !isThere(route)).map(({ dst, gw }): Difference => ({
      object: `the route to ${dst}${gw === undefined ? "" : ` by ${gw}`}`,
      problem: `is gone from "${name}"`,
      mend: () =>
        void addRoute(vmNl, { dst, oif: index, ...gw === undefined ? {} : { gateway: gw } }),
    })),
  ];
}
