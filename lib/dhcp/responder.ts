/**
 * Answers a guest's DHCP requests: the server of RFC 2131 for one guest and one address.
 *
 * @module
 */

import { BOOTPC, BOOTPS } from "./headers.ts";
import { ipToBytes } from "../inet/ip.ts";
import { type DhcpLease, MINIMUM_MTU, UNSPECIFIED } from "./lease.ts";
import {
  DhcpOption,
  type DhcpOptions,
  DhcpType,
  optionIp,
  optionU16be,
  optionU8,
} from "./options.ts";
import { BootpOp, DEFAULT_MAXIMUM_SIZE, type DhcpMessage } from "./packet.ts";

/** The destination of a reply. */
export interface DhcpDestination {
  readonly ip: string;
  readonly port: number;
  /** Whether the frame is broadcast; otherwise it goes to the guest's own address. */
  readonly broadcast: boolean;
}

/** A reply, and how to send it. */
export interface DhcpReply {
  readonly outcome: "offered" | "acked" | "naked";
  readonly reply: DhcpMessage;
  readonly destination: DhcpDestination;
  /** For {@linkcode encodeDhcp}; bytes. */
  readonly maximumSize: number;
}

/** The result of a request. */
export type DhcpAnswer = DhcpReply | { readonly outcome: "declined" | "released" | "ignored" };

const BROADCAST = "255.255.255.255";
/** The headers of IPv4 and UDP, which option 57 and the MTU include. */
const IP_UDP_HEADERS = 28;

/** Sent even if the client did not ask for them. */
const MANDATORY: ReadonlySet<number> = new Set([
  DhcpOption.LEASE_TIME,
  DhcpOption.SUBNET_MASK,
  DhcpOption.ROUTER,
  DhcpOption.RENEWAL_TIME,
  DhcpOption.REBINDING_TIME,
]);

/** The options about the lease. The answer to an INFORM has none of them. */
const LEASE_OPTIONS: ReadonlySet<number> = new Set([
  DhcpOption.LEASE_TIME,
  DhcpOption.RENEWAL_TIME,
  DhcpOption.REBINDING_TIME,
]);

/**
 * Answers a request as RFC 2131, section 4.3, says. Only the guest's own Ethernet address is
 * served, with its own IP address.
 */
export function respond(request: DhcpMessage, lease: DhcpLease): DhcpAnswer {
  if (request.op !== BootpOp.REQUEST || request.chaddr !== lease.mac) return { outcome: "ignored" };
  switch (optionU8(request.options, DhcpOption.MESSAGE_TYPE)) {
    case DhcpType.DISCOVER:
      return answer("offered", request, lease);
    case DhcpType.REQUEST:
      return answerRequest(request, lease);
    case DhcpType.INFORM:
      return answer("acked", request, lease);
    case DhcpType.DECLINE:
      return { outcome: "declined" };
    case DhcpType.RELEASE:
      return { outcome: "released" };
    default:
      return { outcome: "ignored" };
  }
}

/**
 * A client in SELECTING names a server and an address, in INIT-REBOOT an address, in RENEWING its
 * ciaddr.
 */
function answerRequest(request: DhcpMessage, lease: DhcpLease): DhcpAnswer {
  const server = optionIp(request.options, DhcpOption.SERVER_IDENTIFIER);
  if (server !== undefined && server !== lease.serverIdentifier) return { outcome: "ignored" };
  const wanted = optionIp(request.options, DhcpOption.REQUESTED_ADDRESS) ?? request.ciaddr;
  if (wanted === UNSPECIFIED) return { outcome: "ignored" };
  return answer(wanted === lease.address ? "acked" : "naked", request, lease);
}

function answer(
  outcome: DhcpReply["outcome"],
  request: DhcpMessage,
  lease: DhcpLease,
): DhcpReply {
  const inform = optionU8(request.options, DhcpOption.MESSAGE_TYPE) === DhcpType.INFORM;
  const refused = outcome === "naked";
  const reply: DhcpMessage = {
    op: BootpOp.REPLY,
    xid: request.xid,
    secs: 0,
    hops: 0,
    // RFC 2131, 4.3.2: a relay must broadcast a refusal.
    broadcast: request.broadcast || (refused && request.giaddr !== UNSPECIFIED),
    ciaddr: refused || outcome === "offered" ? UNSPECIFIED : request.ciaddr,
    yiaddr: refused || inform ? UNSPECIFIED : lease.address,
    siaddr: UNSPECIFIED,
    giaddr: request.giaddr,
    chaddr: lease.mac,
    sname: "",
    file: "",
    options: refused
      ? refusalOptions(request, lease)
      : replyOptions(outcome === "offered" ? DhcpType.OFFER : DhcpType.ACK, request, lease, inform),
  };
  return {
    outcome,
    reply,
    destination: destinationOf(reply, refused),
    maximumSize: maximumSizeOf(request, lease),
  };
}

function replyOptions(
  type: number,
  request: DhcpMessage,
  lease: DhcpLease,
  inform: boolean,
): DhcpOptions {
  const options = new Map<number, Uint8Array>();
  options.set(DhcpOption.MESSAGE_TYPE, Uint8Array.of(type));
  options.set(DhcpOption.SERVER_IDENTIFIER, ipToBytes(lease.serverIdentifier));
  const asked = request.options.get(DhcpOption.PARAMETER_REQUEST_LIST);
  for (const [code, value] of lease.options) {
    if (inform && LEASE_OPTIONS.has(code)) continue;
    const unasked = code !== DhcpOption.MICROSOFT_CLASSLESS_ROUTES;
    if (MANDATORY.has(code) || (asked?.includes(code) ?? unasked)) options.set(code, value);
  }
  return echoClientIdentifier(request, options);
}

function refusalOptions(request: DhcpMessage, lease: DhcpLease): DhcpOptions {
  const options = new Map<number, Uint8Array>();
  options.set(DhcpOption.MESSAGE_TYPE, Uint8Array.of(DhcpType.NAK));
  options.set(DhcpOption.SERVER_IDENTIFIER, ipToBytes(lease.serverIdentifier));
  options.set(DhcpOption.MESSAGE, new TextEncoder().encode("not this guest's address"));
  return echoClientIdentifier(request, options);
}

/** RFC 6842. */
function echoClientIdentifier(
  request: DhcpMessage,
  options: Map<number, Uint8Array>,
): DhcpOptions {
  const identifier = request.options.get(DhcpOption.CLIENT_IDENTIFIER);
  if (identifier !== undefined) options.set(DhcpOption.CLIENT_IDENTIFIER, identifier);
  return options;
}

/** RFC 2131, section 4.1. */
function destinationOf(reply: DhcpMessage, refused: boolean): DhcpDestination {
  if (reply.giaddr !== UNSPECIFIED) return { ip: reply.giaddr, port: BOOTPS, broadcast: false };
  if (refused) return { ip: BROADCAST, port: BOOTPC, broadcast: true };
  if (reply.ciaddr !== UNSPECIFIED) return { ip: reply.ciaddr, port: BOOTPC, broadcast: false };
  if (reply.broadcast || reply.yiaddr === UNSPECIFIED) {
    return { ip: BROADCAST, port: BOOTPC, broadcast: true };
  }
  return { ip: reply.yiaddr, port: BOOTPC, broadcast: false };
}

/** The limit of the client and of the guest's MTU: replies are not fragmented. */
function maximumSizeOf(request: DhcpMessage, lease: DhcpLease): number {
  const asked = optionU16be(request.options, DhcpOption.MAXIMUM_MESSAGE_SIZE) ?? 0;
  const size = Math.max(asked - IP_UDP_HEADERS, DEFAULT_MAXIMUM_SIZE);
  return lease.mtu >= MINIMUM_MTU ? Math.min(size, lease.mtu - IP_UDP_HEADERS) : size;
}
