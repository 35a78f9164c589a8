/**
 * What is wanted of Weave Net: what is asked for now, was asked for before, or was typed by hand.
 *
 * @module
 */

import type { Container } from "../docker/docker.ts";
import { InputError, TapkitError } from "../errors.ts";
import { isIp } from "../inet/ip.ts";
import { listAddresses, ownAddresses } from "../netlink/address.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { hasGenericFamily } from "../netlink/generic.ts";
import { getLink } from "../netlink/link.ts";
import { getRoute } from "../netlink/route.ts";
import { environmentOf, IMAGE, type ImageStart, type Launch, MTU } from "./command.ts";
import type { CniDirs } from "./conflist.ts";
import { parseRange, WEAVE_BRIDGE } from "./host.ts";
import { parsePeers, type Peer, resolvePeers } from "./peers.ts";
import { passwordIn, readPassword, readSettings, type WeaveSettings } from "./settings.ts";
import type { WeaveRequest } from "./types.ts";

const LEAST_MTU = 576; // RFC 791
const MOST_MTU = 65535;
/** What the documentation asks for the route to. */
const SOMEWHERE = "1.1.1.1";
const SOMEWHERE_IPV6 = "2606:4700:4700::1111";
/** Weave's fast datapath is Open vSwitch's. */
const DATAPATH_FAMILY = "ovs_datapath";
const DATAPATH_LINK = "datapath";
/** Variables that a person may have given, and that nothing else sets. */
const CARRIED = [
  ["CONN_LIMIT", "IPALLOC_INIT", "NO_MASQ_LOCAL", "IPTABLES_BACKEND"],
  ["EXTRA_ARGS", "WEAVE_EXPOSE_IP", "WEAVE_DEBUG"],
].flat();
const DOCUMENTED_CONF_DIR = "/etc/cni/net.d";
const DOCUMENTED_BIN_DIR = "/opt/cni/bin";

/** What is wanted. */
export interface Wanted {
  /** To be kept for later calls. */
  readonly settings: WeaveSettings;
  readonly password?: string;
  readonly primaryIP: string;
  readonly peers: readonly Peer[];
}

/** A request whose values were checked. */
export interface Asked {
  readonly settings: WeaveSettings;
  /** `null`: none any more. */
  readonly password?: string | null;
}

/**
 * Checks what is asked for, by the request and by `KUBE_PEERS`.
 *
 * @throws {InputError}
 */
export function readRequest(request: WeaveRequest): Asked {
  const { image, range, mtu, passwordFile } = request;
  if (mtu !== undefined && !(Number.isInteger(mtu) && mtu >= LEAST_MTU && mtu <= MOST_MTU)) {
    throw new InputError(`MTU ${mtu} is out of range`, {
      mend: `choose one of ${LEAST_MTU} to ${MOST_MTU}`,
    });
  }
  if (range !== undefined) parseRange(range);
  if (image !== undefined && !/^[\w][\w.:/@-]*$/.test(image)) {
    throw new InputError(`the image ${JSON.stringify(image)} is malformed`, {
      mend: `write one as ${IMAGE}`,
    });
  }
  const variable = Deno.env.get("KUBE_PEERS") ?? "";
  const peers = request.peers !== undefined
    ? parsePeers(request.peers.join(" "), "--peers")
    : variable.trim() === ""
    ? undefined
    : parsePeers(variable, "KUBE_PEERS");
  return {
    settings: {
      ...image === undefined ? {} : { image },
      ...range === undefined ? {} : { range },
      ...mtu === undefined ? {} : { mtu },
      ...peers === undefined ? {} : { peers },
    },
    ...passwordFile === undefined
      ? {}
      : { password: passwordFile === "none" ? null : passwordIn(passwordFile) },
  };
}

/** What is wanted, where `container` runs. */
export async function wantedOf(
  nl: NetlinkConnection,
  asked: Asked,
  container: Container | undefined,
): Promise<Wanted> {
  const recorded = readSettings();
  const typed = recorded === undefined && container ? typedSettings(container) : undefined;
  const settings = { ...typed?.settings, ...recorded, ...asked.settings };
  const password = asked.password === undefined
    ? readPassword() ?? typed?.password
    : asked.password ?? undefined;
  const own = ownAddresses(nl);
  const named = await resolvePeers(settings.peers ?? [], own);
  const primaryIP = primaryAddress(nl, named);
  return {
    settings,
    ...password === undefined ? {} : { password },
    primaryIP,
    peers: settings.peers ? named : [{ peer: primaryIP, address: primaryIP, own: true }],
  };
}

/** What a person asked for who typed the documentation's command. */
function typedSettings(container: Container): Pick<Wanted, "settings" | "password"> {
  const had = environmentOf(container);
  const [peers, range, mtu] = ["KUBE_PEERS", "IPALLOC_RANGE", "WEAVE_MTU"].map((k) => had.get(k));
  const password = had.get("WEAVE_PASSWORD");
  const more = Object.fromEntries([...had].filter(([name]) => CARRIED.includes(name)));
  return {
    settings: {
      image: container.Config.Image,
      ...peers ? { peers: parsePeers(peers, "KUBE_PEERS") } : {},
      ...range ? { range } : {},
      ...mtu ? { mtu: Number(mtu) } : {},
      ...Object.keys(more).length === 0 ? {} : { more },
    },
    ...password ? { password } : {},
  };
}

/**
 * The command that gives what is wanted.
 *
 * @param used whether VMs are on the bridge, whose MTU stays then unless another one is asked for
 */
export function launchOf(
  nl: NetlinkConnection,
  { settings, password, peers, primaryIP }: Wanted,
  { start, dirs, used }: { start: ImageStart; dirs: CniDirs; used: boolean },
): Launch {
  const bridge = getLink(nl, WEAVE_BRIDGE);
  const { image = IMAGE, range, more = {} } = settings;
  const confDir = dirs.confDir === DOCUMENTED_CONF_DIR ? undefined : dirs.confDir;
  const binDir = dirs.binDirs.includes(DOCUMENTED_BIN_DIR) ? undefined : dirs.binDirs[0];
  return {
    image,
    start,
    hostname: Deno.hostname(),
    peers: peers.map(({ peer }) => peer),
    mtu: settings.mtu ?? (used && bridge !== undefined ? bridge.mtu : MTU),
    ...range === undefined ? {} : { range },
    // A bridge that is there stays what it is: the router refuses to start on one of the other kind.
    noFastDatapath: bridge === undefined
      ? !hasGenericFamily(DATAPATH_FAMILY)
      : getLink(nl, DATAPATH_LINK) === undefined,
    password: password !== undefined,
    more: { ...withoutThisHost(peers, primaryIP), ...more },
    ...confDir === undefined ? {} : { confDir },
    ...binDir === undefined ? {} : { binDir },
  };
}

/**
 * Weave Net takes the length of the list for the number of hosts that agree on the first address. A
 * host that is not in it would agree with itself, beside the others.
 */
function withoutThisHost(peers: readonly Peer[], primaryIP: string): Record<string, string> {
  if (peers.some(({ own, address }) => own || address === primaryIP)) return {};
  return { IPALLOC_INIT: `consensus=${peers.length + 1}` };
}

/**
 * The address by which peers reach this host: `PRIMARY_IP_ADDRESS`, the source of what it sends
 * elsewhere, or one of the peers that is this host's.
 *
 * Equivalent to: `ip -o route get 1.1.1.1 | cut -d' ' -f7`
 */
function primaryAddress(nl: NetlinkConnection, peers: readonly Peer[]): string {
  const named = Deno.env.get("PRIMARY_IP_ADDRESS");
  if (named) {
    if (isIp(named) === 4) return named;
    throw new InputError(`PRIMARY_IP_ADDRESS=${named} is not an IPv4 address`, {
      mend: "write PRIMARY_IP_ADDRESS=192.0.2.10",
    });
  }
  const found = getRoute(nl, SOMEWHERE)?.src ?? peers.find(({ own }) => own)?.address;
  if (found !== undefined) return found;
  const ipv4 = listAddresses(nl, { family: 4 }).some(({ scope }) => scope === "global");
  if (!ipv4 && getRoute(nl, SOMEWHERE_IPV6) !== undefined) {
    throw new TapkitError("this host has IPv6 only, and Weave Net connects hosts by IPv4", {
      mend: "give the host an IPv4 address that its peers reach",
    });
  }
  throw new TapkitError(
    `this host has no route to ${SOMEWHERE}, by which its primary address is found`,
    { mend: "name the address by which its peers reach it: PRIMARY_IP_ADDRESS=192.0.2.10" },
  );
}
