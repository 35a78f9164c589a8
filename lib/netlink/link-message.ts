/**
 * Encodes and decodes links of rtnetlink: `struct ifinfomsg` and IFLA attributes.
 *
 * @module
 */

import { formatMac, parseMac } from "../inet/mac.ts";
import { AF } from "./message.ts";
import { Decoder, Encoder, type Mutable, NLA } from "./wire.ts";

/** `enum` of link attributes (linux/if_link.h). */
export const IFLA = {
  ADDRESS: 1,
  IFNAME: 3,
  MTU: 4,
  LINK: 5,
  MASTER: 10,
  PROTINFO: 12,
  LINKINFO: 18,
  IFALIAS: 20,
  STATS64: 23,
  GROUP: 27,
  NET_NS_FD: 28,
  LINK_NETNSID: 37,
  EXT_MASK: 29,
} as const;

/** Attributes nested in IFLA_LINKINFO (linux/if_link.h). */
const IFLA_INFO = { KIND: 1, DATA: 2, SLAVE_KIND: 4, SLAVE_DATA: 5 } as const;

/** The one attribute of a veth's IFLA_INFO_DATA (linux/veth.h). */
const VETH_INFO = { PEER: 1 } as const;

/** Attributes of a bridge (linux/if_link.h). */
const IFLA_BR = { MCAST_SNOOPING: 23 } as const;

/** Attributes of a TUN or TAP device (linux/if_link.h, since 4.20). */
const IFLA_TUN = { MULTI_QUEUE: 7 } as const;

/** Attributes of a bridge port (linux/if_link.h). */
const IFLA_BRPORT = { MODE: 4, LEARNING: 8, ISOLATED: 33 } as const;

/** Device flags (linux/if.h). */
export const IFF = { UP: 0x1, RUNNING: 0x40, PROMISC: 0x100 } as const;

/** Leaves the counters out of a link's description (linux/rtnetlink.h). */
const RTEXT_FILTER_SKIP_STATS = 1 << 3;

/** A bridge's options. */
export interface BridgeOptions {
  readonly mcastSnooping?: boolean;
}

/** Options of a TUN or TAP device. */
export interface TunOptions {
  /** Whether several queues can be open. Absent if the kernel does not say. */
  readonly multiQueue?: boolean;
}

/** A bridge port's options. */
export interface BridgePortOptions {
  /** Frames may leave by the port on which they arrived. */
  readonly hairpin?: boolean;
  /** Frames pass only between this port and ports that are not isolated. */
  readonly isolated?: boolean;
  /** Source addresses are learned. */
  readonly learning?: boolean;
}

/** A network interface. */
export interface Link {
  readonly index: number;
  readonly name: string;
  /** The driver's name for it: `"veth"`, `"bridge"`, `"tun"`; absent for hardware and lo. */
  readonly kind?: string;
  /** ARPHRD type of linux/if_arp.h: 1 is Ethernet. */
  readonly type: number;
  readonly mac?: string;
  readonly mtu: number;
  /** Bits of {@linkcode IFF}. */
  readonly flags: number;
  /** Set up by the administrator. */
  readonly up: boolean;
  /** Up, and with a carrier. */
  readonly running: boolean;
  /** Set promiscuous by the administrator. */
  readonly promiscuous: boolean;
  /** Index of the bridge that the link is a port of. */
  readonly master?: number;
  readonly alias?: string;
  /** 0 unless somebody set one. */
  readonly group: number;
  /** Index of the lower link, or of a veth's peer (IFLA_LINK), maybe of another namespace. */
  readonly peerIndex?: number;
  /** The namespace of the lower link or peer, by number; absent if it is this one. */
  readonly peerNsid?: number;
  /** Present if `kind` is `"bridge"`. */
  readonly bridge?: BridgeOptions;
  /** Present if `kind` is `"tun"`. */
  readonly tun?: TunOptions;
  /** Present if the link is a port of a bridge. */
  readonly bridgePort?: BridgePortOptions;
}

/** The fields of a message about one link. */
export interface LinkRequest {
  /** 0 to find or create the link by its name. */
  readonly index?: number;
  readonly name?: string;
  /** A bridge with a given MAC keeps it as ports are added and removed. */
  readonly mac?: string;
  readonly mtu?: number;
  /** Index of the bridge that it is a port of; 0 removes it from its bridge. */
  readonly master?: number;
  /** The empty text removes it. */
  readonly alias?: string;
  readonly up?: boolean;
  readonly promiscuous?: boolean;
  /** Descriptor of the namespace to move the link to, or to create it in. */
  readonly netnsFd?: number;
  readonly group?: number;
  readonly kind?: string;
  readonly bridge?: BridgeOptions;
  readonly peer?: VethPeer;
  /** Omits counters from the answer. */
  readonly skipStats?: boolean;
}

/** The other end of a veth pair to create. */
export interface VethPeer extends Pick<LinkRequest, "mac" | "mtu" | "netnsFd" | "group"> {
  readonly name: string;
}

function encodeHeader(encoder: Encoder, index: number, flags = 0, change = 0): Encoder {
  // struct ifinfomsg: family, padding, type, index, flags, change.
  return encoder.u8(AF.UNSPEC).zero(3).i32(index).u32(flags).u32(change);
}

/** The payload of RTM_NEWLINK, RTM_SETLINK, RTM_GETLINK and RTM_DELLINK. */
export function encodeLink(link: LinkRequest): Uint8Array<ArrayBuffer> {
  const encoder = new Encoder();
  const change = (link.up === undefined ? 0 : IFF.UP) |
    (link.promiscuous === undefined ? 0 : IFF.PROMISC);
  const flags = (link.up ? IFF.UP : 0) | (link.promiscuous ? IFF.PROMISC : 0);
  encodeHeader(encoder, link.index ?? 0, flags, change);
  if (link.skipStats) encoder.attrU32(IFLA.EXT_MASK, RTEXT_FILTER_SKIP_STATS);
  if (link.mac !== undefined) encoder.attrBytes(IFLA.ADDRESS, parseMac(link.mac));
  if (link.mtu !== undefined) encoder.attrU32(IFLA.MTU, link.mtu);
  if (link.master !== undefined) encoder.attrU32(IFLA.MASTER, link.master);
  if (link.alias !== undefined) encoder.attrText(IFLA.IFALIAS, link.alias);
  if (link.netnsFd !== undefined) encoder.attrU32(IFLA.NET_NS_FD, link.netnsFd);
  if (link.group !== undefined) encoder.attrU32(IFLA.GROUP, link.group);
  if (link.name !== undefined) encoder.attrString(IFLA.IFNAME, link.name);
  const { kind } = link;
  if (kind !== undefined) {
    encoder.attrNested(IFLA.LINKINFO, (info) => {
      info.attrText(IFLA_INFO.KIND, kind);
      const { bridge, peer } = link;
      if (bridge !== undefined && Object.keys(bridge).length > 0) {
        info.attrNested(IFLA_INFO.DATA, (data) => encodeBridge(data, bridge));
      }
      if (peer !== undefined) {
        info.attrNested(IFLA_INFO.DATA, (data) => {
          data.attrNested(VETH_INFO.PEER, (attribute) => encodePeer(attribute, peer));
        });
      }
    });
  }
  return encoder.finish();
}

function encodePeer(encoder: Encoder, peer: VethPeer): void {
  encodeHeader(encoder, 0);
  if (peer.mac !== undefined) encoder.attrBytes(IFLA.ADDRESS, parseMac(peer.mac));
  if (peer.mtu !== undefined) encoder.attrU32(IFLA.MTU, peer.mtu);
  if (peer.netnsFd !== undefined) encoder.attrU32(IFLA.NET_NS_FD, peer.netnsFd);
  if (peer.group !== undefined) encoder.attrU32(IFLA.GROUP, peer.group);
  encoder.attrString(IFLA.IFNAME, peer.name);
}

function encodeBridge(encoder: Encoder, { mcastSnooping }: BridgeOptions): void {
  if (mcastSnooping !== undefined) encoder.attrU8(IFLA_BR.MCAST_SNOOPING, Number(mcastSnooping));
}

const BRIDGE_PORT_FLAGS: readonly (readonly [keyof BridgePortOptions, number])[] = [
  ["hairpin", IFLA_BRPORT.MODE],
  ["learning", IFLA_BRPORT.LEARNING],
  ["isolated", IFLA_BRPORT.ISOLATED],
];

/** The payload of RTM_SETLINK for a bridge port. */
export function encodeBridgePort(
  index: number,
  options: BridgePortOptions,
): Uint8Array<ArrayBuffer> {
  return new Encoder().u8(AF.BRIDGE).zero(3).i32(index).zero(8)
    .attrNested(IFLA.PROTINFO | NLA.F_NESTED, (port) => {
      for (const [name, type] of BRIDGE_PORT_FLAGS) {
        const value = options[name];
        if (value !== undefined) port.attrU8(type, Number(value));
      }
    }).finish();
}

/** The payload of the RTM_GETLINK dump, of all links, one kind, or the ports of one bridge. */
export function encodeLinkFilter(
  filter: { readonly kind?: string; readonly master?: number },
): Uint8Array<ArrayBuffer> {
  return encodeLink({
    skipStats: true,
    ...(filter.master === undefined ? {} : { master: filter.master }),
    ...(filter.kind === undefined ? {} : { kind: filter.kind }),
  });
}

/**
 * Reads the payload of RTM_NEWLINK. Ignores attributes that this library does not use.
 *
 * @throws {DecodeError} when it is malformed
 */
export function decodeLink(payload: Uint8Array): Link {
  const decoder = new Decoder(payload).skip(2);
  const type = decoder.u16();
  const index = decoder.i32();
  const flags = decoder.u32();
  decoder.skip(4);
  const link: Mutable<Link> = {
    index,
    name: "",
    type,
    mtu: 0,
    group: 0,
    flags,
    up: (flags & IFF.UP) !== 0,
    running: (flags & IFF.RUNNING) !== 0,
    promiscuous: (flags & IFF.PROMISC) !== 0,
  };
  for (const { type, value } of decoder.attributes()) {
    if (type === IFLA.IFNAME) link.name = value.asString();
    else if (type === IFLA.ADDRESS && value.remaining === 6) link.mac = formatMac(value.asBytes());
    else if (type === IFLA.MTU) link.mtu = value.asU32();
    else if (type === IFLA.LINK) link.peerIndex = value.asU32();
    else if (type === IFLA.LINK_NETNSID) link.peerNsid = value.asU32();
    else if (type === IFLA.MASTER) link.master = value.asU32();
    else if (type === IFLA.GROUP) link.group = value.asU32();
    else if (type === IFLA.IFALIAS) link.alias = value.asString();
    else if (type === IFLA.LINKINFO) decodeLinkInfo(link, value);
  }
  return link;
}

/** The size of `struct ifinfomsg` (linux/rtnetlink.h). */
const IFINFOMSG_SIZE = 16;

/** What passed a link. Of a TAP, what is received comes from the guest. */
export interface LinkCounters {
  readonly rxPackets: number;
  readonly txPackets: number;
  readonly rxBytes: number;
  readonly txBytes: number;
  readonly rxDropped: number;
  readonly txDropped: number;
}

/** Reads the first fields of `struct rtnl_link_stats64` (linux/if_link.h); undefined without them. */
export function decodeCounters(payload: Uint8Array): LinkCounters | undefined {
  const decoder = new Decoder(payload).skip(IFINFOMSG_SIZE);
  for (const { type, value } of decoder.attributes()) {
    if (type !== IFLA.STATS64) continue;
    const bytes = value.asBytes();
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const field = (index: number) => Number(view.getBigUint64(8 * index, true));
    return {
      rxPackets: field(0),
      txPackets: field(1),
      rxBytes: field(2),
      txBytes: field(3),
      rxDropped: field(6),
      txDropped: field(7),
    };
  }
  return undefined;
}

function decodeLinkInfo(link: Mutable<Link>, info: Decoder): void {
  let slaveKind: string | undefined;
  // Kinds precede their data.
  for (const { type, value } of info.attributes()) {
    if (type === IFLA_INFO.KIND) link.kind = value.asString();
    else if (type === IFLA_INFO.SLAVE_KIND) slaveKind = value.asString();
    else if (type === IFLA_INFO.DATA && link.kind === "bridge") link.bridge = decodeBridge(value);
    else if (type === IFLA_INFO.DATA && link.kind === "tun") link.tun = decodeTun(value);
    else if (type === IFLA_INFO.SLAVE_DATA && slaveKind === "bridge") {
      link.bridgePort = decodeBridgePort(value);
    }
  }
}

function decodeBridge(data: Decoder): BridgeOptions {
  const bridge: Mutable<BridgeOptions> = {};
  for (const { type, value } of data.attributes()) {
    if (type === IFLA_BR.MCAST_SNOOPING) bridge.mcastSnooping = value.asU8() !== 0;
  }
  return bridge;
}

function decodeTun(data: Decoder): TunOptions {
  const tun: Mutable<TunOptions> = {};
  for (const { type, value } of data.attributes()) {
    if (type === IFLA_TUN.MULTI_QUEUE) tun.multiQueue = value.asU8() !== 0;
  }
  return tun;
}

function decodeBridgePort(data: Decoder): BridgePortOptions {
  const port: Mutable<BridgePortOptions> = {};
  for (const { type, value } of data.attributes()) {
    const flag = BRIDGE_PORT_FLAGS.find(([, attribute]) => attribute === type);
    if (flag !== undefined) port[flag[0]] = value.asU8() !== 0;
  }
  return port;
}
