/**
 * The default network: Ignite's, on a subnet that this host does not use yet.
 *
 * @module
 */

import { describe, InputError, TapkitError } from "../errors.ts";
import { readIfThere, removeIfThere, sweepTemporaries, writeFileOnce } from "../files.ts";
import { parseCidr } from "../inet/ip.ts";
import { listAddresses } from "../netlink/address.ts";
import { NetlinkConnection } from "../netlink/connection.ts";
import { getLink } from "../netlink/link.ts";
import { isSame } from "../same.ts";
import { listConfigFiles, parseConfig, validateInterfaceName } from "./conflist.ts";
import {
  chooseIpv6,
  chooseSubnet,
  findOverlap,
  formatPrefix,
  networkOverlap,
  parsePrefix,
  usedByConfigurations,
  usesOf,
} from "./subnets.ts";
import type { NetworkConfigList } from "./types.ts";

/** The name of its file. */
export const DEFAULT_NETWORK_FILE = "10-ignite.conflist";
/** The default network's name. */
export const DEFAULT_NETWORK = "ignite-cni-bridge";
const BRIDGE = "ignite0";
const MIN_MTU = 68; // RFC 791
const MIN_MTU_IPV6 = 1280; // RFC 8200
const MAX_MTU = 65535;

/** What the default network is made of. */
export interface DefaultNetwork {
  /** IPv4 prefix: `"172.18.0.0/16"`. */
  readonly subnet: string;
  /** IPv6 prefix: `"fd12:3456:789a:1::/64"`. */
  readonly ipv6?: string;
  /** The bridge's name: `"ignite0"`. */
  readonly bridge: string;
  /** In bytes; absent, the bridge plugin takes that of the host's default route at each ADD. */
  readonly mtu?: number;
  /** Installed although the host uses a part of the subnet. */
  readonly allowOverlap?: boolean;
}

/** How to install, print, check or remove the default network. */
export interface DefaultCniOptions {
  /** `"/etc/cni/net.d"`. */
  readonly confDir: string;
  /** IPv4 prefix; else the first candidate that nothing uses. */
  readonly subnet?: string;
  /** IPv6 prefix, or `"auto"` for a random one; else the network has no IPv6. */
  readonly ipv6?: string;
  /** `"ignite0"` unless given. */
  readonly bridge?: string;
  /** In bytes. */
  readonly mtu?: number;
  /** Take an explicit prefix although the host uses a part of it. */
  readonly force?: boolean;
  /** Return what would be written, and write nothing. */
  readonly print?: boolean;
  /** Compare what is there with what tapkit would have written. */
  readonly check?: boolean;
  /** Remove the file, if tapkit wrote it and nobody edited it. */
  readonly remove?: boolean;
  /** Names of the VMs on the network; it is not removed while there are any. */
  readonly inUse?: readonly string[];
  /**
   * A connection of the host's namespace; one is opened if none is given.
   *
   * @internal
   */
  readonly nl?: NetlinkConnection;
}

/** What {@linkcode installDefaultCni} found or did. */
export interface DefaultCniReport extends Partial<Omit<DefaultNetwork, "allowOverlap">> {
  /** The default network's file. */
  readonly path: string;
  /** Whether this call wrote it; with `check`, whether tapkit's own is there. */
  readonly installed: boolean;
  /** The network's name: `"ignite-cni-bridge"`. */
  readonly network?: string;
  /** Why it was not written, or not removed. */
  readonly reason?: string;
  /** With `print`: the file's text. */
  readonly text?: string;
  /** With `check`: differences, none when all is well. */
  readonly problems?: readonly string[];
  /** With `remove`: whether the file was there. */
  readonly removed?: boolean;
}

/**
 * Writes `10-ignite.conflist`, unless the directory holds a CNI configuration already.
 *
 * @throws {InputError} for a malformed or overlapping prefix, a bridge's name, an MTU
 * @throws {TapkitError} when no candidate is free, or the directory cannot be written
 */
export function installDefaultCni(options: DefaultCniOptions): DefaultCniReport {
  const path = `${options.confDir.replace(/\/+$/, "")}/${DEFAULT_NETWORK_FILE}`;
  if ([options.print, options.check, options.remove].filter((flag) => flag === true).length > 1) {
    throw new InputError("print, check and remove exclude each other", { mend: "choose one" });
  }
  validateOptions(options);
  if (options.remove) return remove(path, options.inUse ?? []);
  using opened = options.nl === undefined ? NetlinkConnection.open() : undefined;
  const nl = options.nl ?? opened!;
  if (options.check) return check(path, options, nl);
  const present = listConfigFiles(options.confDir);
  if (present[0] !== undefined && !options.print) return alreadyThere(path, present);
  const network = choose(options, path, nl);
  const text = renderDefaultNetwork(network);
  if (options.print) return { path, installed: false, ...describeNetwork(network), text };
  if (!writeFileOnce(path, text)) return alreadyThere(path, [path]);
  return { path, installed: true, ...describeNetwork(network) };
}

/** Removes temporary files of a process that was killed while it installed the network. */
export function tidyDefaultCni(confDir: string): void {
  sweepTemporaries(confDir, DEFAULT_NETWORK_FILE);
}

/** The file's text. */
export function renderDefaultNetwork(network: DefaultNetwork): string {
  const { subnet, ipv6, bridge, mtu, allowOverlap } = network;
  const pool = ipv6 === undefined ? { subnet } : { ranges: [[{ subnet }], [{ subnet: ipv6 }]] };
  const list = {
    cniVersion: "0.4.0",
    name: DEFAULT_NETWORK,
    ...(allowOverlap ? { tapkit: { allowOverlap } } : {}),
    plugins: [
      {
        type: "bridge",
        bridge,
        isGateway: true,
        isDefaultGateway: true,
        promiscMode: true,
        ipMasq: true,
        ...(mtu === undefined ? {} : { mtu }),
        ipam: { type: "host-local", ...pool },
      },
      { type: "portmap", capabilities: { portMappings: true } },
      { type: "firewall" },
    ],
  };
  return `${JSON.stringify(list, undefined, 2)}\n`;
}

/** The network that a text was rendered from; undefined if the text is not exactly tapkit's. */
export function recognizeDefaultNetwork(text: string): DefaultNetwork | undefined {
  let list: NetworkConfigList;
  try {
    list = parseConfig(text, DEFAULT_NETWORK_FILE);
  } catch (error) {
    if (error instanceof TapkitError) return undefined;
    throw error;
  }
  const conf = list.plugins[0]!;
  const { subnet, ranges } = conf.ipam ?? {};
  const [first, second] = Array.isArray(ranges) ? ranges.flat() : [{ subnet }];
  const network = {
    subnet: String(first?.subnet),
    bridge: String(conf.bridge),
    ...(second?.subnet === undefined ? {} : { ipv6: String(second.subnet) }),
    ...(typeof conf.mtu === "number" ? { mtu: conf.mtu } : {}),
    ...(list.allowOverlap ? { allowOverlap: true } : {}),
  };
  return renderDefaultNetwork(network) === text ? network : undefined;
}

/** Ignite's own subnets: the documentation's, and the later default. */
const IGNITE_SUBNETS = ["172.18.0.0/16", "10.61.0.0/16"];

/** Whether a text is tapkit's, or says what Ignite itself writes, in any layout. */
export function isDefaultNetwork(text: string): boolean {
  if (recognizeDefaultNetwork(text) !== undefined) return true;
  try {
    const found = JSON.parse(text);
    return IGNITE_SUBNETS.some((subnet) =>
      isSame(found, JSON.parse(renderDefaultNetwork({ subnet, bridge: BRIDGE })))
    );
  } catch {
    return false;
  }
}

function validateOptions({ subnet, ipv6, bridge, mtu }: DefaultCniOptions): void {
  if (subnet !== undefined) parsePrefix(subnet, 4);
  if (ipv6 !== undefined && ipv6 !== "auto") parsePrefix(ipv6, 6);
  if (bridge !== undefined) validateInterfaceName(bridge);
  const least = ipv6 === undefined ? MIN_MTU : MIN_MTU_IPV6;
  if (mtu !== undefined && !(Number.isInteger(mtu) && mtu >= least && mtu <= MAX_MTU)) {
    throw new InputError(`MTU ${mtu} is out of range`, {
      mend: `choose one of ${least} to ${MAX_MTU}`,
    });
  }
}

function choose(
  options: DefaultCniOptions,
  path: string,
  nl: NetlinkConnection,
): DefaultNetwork {
  const { bridge = BRIDGE, subnet, ipv6, mtu, force = false } = options;
  const link = getLink(nl, bridge);
  if (link !== undefined && link.kind !== "bridge") {
    throw new InputError(`link "${bridge}" is there already and is not a bridge`, {
      mend: "choose another name with --bridge",
    });
  }
  const promised = usedByConfigurations(options.confDir, path);
  const wanted = [subnet, ipv6]
    .flatMap((text) => text === undefined || text === "auto" ? [] : [parseCidr(text)]);
  const uses = usesOf(nl, wanted, bridge);
  const overlaps = wanted.flatMap((prefix, index) => {
    const other = uses[index] ?? findOverlap(prefix, promised);
    return other === undefined ? [] : [{ prefix, other }];
  });
  if (overlaps[0] !== undefined && !force) {
    const { prefix, other } = overlaps[0];
    throw new InputError(`subnet ${formatPrefix(prefix)} overlaps the ${other.what}`, {
      mend: "choose another, or add --force",
    });
  }
  const present = link === undefined ? [] : listAddresses(nl, { index: link.index })
    .filter(({ family, scope }) => family === 4 && scope === "global")
    .map(({ address }) => parseCidr(address));
  const place = { bridge, present, promised };
  return {
    subnet: subnet ?? chooseSubnet(nl, place),
    ...(ipv6 === undefined ? {} : { ipv6: ipv6 === "auto" ? chooseIpv6(nl, place) : ipv6 }),
    bridge,
    ...(mtu === undefined ? {} : { mtu }),
    ...(overlaps.length > 0 ? { allowOverlap: true } : {}),
  };
}

function alreadyThere(path: string, present: readonly string[]): DefaultCniReport {
  const ours = present.includes(path) ? recognizeDefaultNetwork(read(path) ?? "") : undefined;
  return {
    path,
    installed: false,
    ...(ours === undefined ? {} : describeNetwork(ours)),
    reason: `${present[0]} is already there`,
  };
}

function check(path: string, options: DefaultCniOptions, nl: NetlinkConnection): DefaultCniReport {
  const text = read(path);
  if (text === undefined) {
    return { path, installed: false, problems: [`${path} is not there`] };
  }
  const network = recognizeDefaultNetwork(text);
  const problems: string[] = [];
  const before = listConfigFiles(options.confDir)[0];
  if (before !== undefined && before !== path) {
    problems.push(`${before} sorts first, so its network is the one VMs are attached to`);
  }
  if (network === undefined) {
    problems.push(`${path} differs from what tapkit writes`);
    return { path, installed: false, problems };
  }
  for (const key of ["subnet", "ipv6", "bridge", "mtu"] as const) {
    const wanted = options[key];
    if (wanted === undefined || wanted === network[key]) continue;
    if (wanted === "auto" && network.ipv6 !== undefined) continue;
    problems.push(`${path} has ${key} ${network[key] ?? "none"}, not ${wanted}`);
  }
  const found = network.allowOverlap ? undefined : networkOverlap(parseConfig(text, path), nl);
  if (found !== undefined) {
    problems.push(`subnet ${formatPrefix(found.subnet)} overlaps the ${found.used.what}`);
  }
  return { path, installed: true, ...describeNetwork(network), problems };
}

function remove(path: string, inUse: readonly string[]): DefaultCniReport {
  const text = read(path);
  if (text === undefined) return { path, installed: false, removed: false };
  const network = recognizeDefaultNetwork(text);
  if (network === undefined) {
    throw new TapkitError(`${path} was not written by tapkit, or was edited since`, {
      mend: "remove it by hand if it is not needed",
    });
  }
  if (inUse.length > 0) {
    const users = inUse.map((name) => `VM "${name}"`).join(", ");
    throw new TapkitError(`${path} is in use by ${users}`, {
      mend: `run attach-vm ${inUse.join(" ")} --remove first`,
    });
  }
  try {
    removeIfThere(path);
  } catch (cause) {
    const mend = "run as root";
    throw new TapkitError(`cannot remove ${path}: ${describe(cause)}`, { mend, cause });
  }
  return { path, installed: false, ...describeNetwork(network), removed: true };
}

function describeNetwork({ bridge, subnet, ipv6, mtu }: DefaultNetwork) {
  return {
    network: DEFAULT_NETWORK,
    bridge,
    subnet,
    ...(ipv6 === undefined ? {} : { ipv6 }),
    ...(mtu === undefined ? {} : { mtu }),
  };
}

function read(path: string): string | undefined {
  try {
    return readIfThere(path);
  } catch (cause) {
    throw new TapkitError(`${path} cannot be read: ${describe(cause)}`, {
      mend: "check its type and permissions",
      cause,
    });
  }
}
