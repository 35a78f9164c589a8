/**
 * Filters on frames that a link receives, as of `tc filter`: u32 with mirred, and cls_bpf.
 *
 * A filter belongs to a link's ingress or clsact qdisc, which must exist. Filters with lower
 * priority numbers get a frame first.
 *
 * @module
 */

import { BPF_INSTRUCTION_SIZE, type BpfInstruction, decodeBpf, encodeBpf } from "../sys/bpf.ts";
import { Errno, failedWith, tolerate } from "../sys/libc.ts";
import type { NetlinkConnection } from "./connection.ts";
import type { Change } from "./requests.ts";
import { DecodeError, NetlinkError, type Subject } from "./errors.ts";
import { linkLabel } from "./link.ts";
import { NLM_F, RTM } from "./message.ts";
import { decodeTcHeader, encodeTcHeader, TC_H, TCA } from "./qdisc.ts";
import { Decoder, type Encoder, htons, type Mutable, NLA } from "./wire.ts";

/** Attributes of a u32 filter, and the flag of a terminal key (linux/pkt_cls.h). */
const TCA_U32 = { SEL: 5, ACT: 7, TERMINAL: 1 } as const;

/** Attributes of a cls_bpf filter, and its flag (linux/pkt_cls.h). */
const TCA_BPF = { OPS_LEN: 4, OPS: 5, FLAGS: 8, FLAG_ACT_DIRECT: 1 } as const;

/** Attributes of an action (linux/pkt_cls.h). */
const TCA_ACT = { KIND: 1, OPTIONS: 2 } as const;

/** The attribute of mirred, and its action (linux/tc_act/tc_mirred.h). */
const TCA_MIRRED = { PARMS: 2, EGRESS_REDIR: 1 } as const;

/** Verdicts of a direct-action program (linux/pkt_cls.h). */
export const TC_ACT = { UNSPEC: -1, OK: 0, SHOT: 2, STOLEN: 4 } as const;

/** Every protocol (linux/if_ether.h). */
const ETH_P_ALL = 3;

/**
 * The node of a u32 filter in the table of its priority. It is fixed, so that the kernel refuses a
 * second filter there instead of choosing another node.
 */
const U32_NODE = 1;

/** The part of a u32 handle that is the node; 0 for a table. */
const U32_NODE_MASK = 0xfff;

/** Handle of a program, unless another is given. */
const BPF_HANDLE = 1;

/** A filter in the kernel. */
export interface Filter {
  /** Index of its link. */
  readonly index: number;
  readonly kind: string;
  readonly priority: number;
  /** Ethernet type; 3 (ETH_P_ALL) for all. */
  readonly protocol: number;
  readonly handle: number;
  readonly parent: number;
  /** Whether a u32 filter matches every frame. */
  readonly matchAll?: boolean;
  /** Index of the link that frames are redirected to (mirred egress redirect). */
  readonly redirectTo?: number;
  /** The program of cls_bpf, if it is classic BPF. */
  readonly program?: readonly BpfInstruction[];
  /** Whether the program returns a {@linkcode TC_ACT}. */
  readonly directAction?: boolean;
}

/** The key of a filter. */
export interface FilterKey {
  readonly index: number;
  /** 1 to 65535. */
  readonly priority: number;
  /** 0 means all filters of the priority. */
  readonly handle: number;
  /** By default the ingress qdisc. */
  readonly parent?: number;
}

/** A filter that redirects every frame to another link. */
export interface RedirectFilter extends Omit<FilterKey, "handle"> {
  /** Index of the link that sends the frames. */
  readonly target: number;
}

/** A filter that is a program. */
export interface BpfFilter extends Omit<FilterKey, "handle"> {
  /** Gets the frame from its Ethernet header on, and returns a {@linkcode TC_ACT}. */
  readonly program: readonly BpfInstruction[];
  /** Its name in errors. The kernel keeps no name for a classic program. */
  readonly name: string;
  /** 1 unless given. Distinguishes programs of the same priority. */
  readonly handle?: number;
}

function encodeFilterHeader(filter: FilterKey, protocol: number, capacity: number): Encoder {
  const { index, priority, handle, parent = TC_H.INGRESS_HANDLE } = filter;
  const info = (priority << 16 | htons(protocol)) >>> 0;
  return encodeTcHeader({ index, handle, parent, info }, capacity);
}

/** The payload of RTM_NEWTFILTER for a redirect. */
function encodeRedirectFilter(filter: RedirectFilter): Uint8Array<ArrayBuffer> {
  return encodeFilterHeader({ ...filter, handle: U32_NODE }, ETH_P_ALL, 192)
    .attrString(TCA.KIND, "u32")
    .attrNested(TCA.OPTIONS, (options) => {
      // struct tc_u32_sel with one struct tc_u32_key whose mask is empty.
      const firstAction = 1;
      options.attrNested(TCA_U32.ACT, (actions) => {
        actions.attrNested(firstAction, (action) => {
          action.attrString(TCA_ACT.KIND, "mirred").attrNested(
            TCA_ACT.OPTIONS | NLA.F_NESTED,
            (mirred) => {
              // struct tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex.
              mirred.attrNested(TCA_MIRRED.PARMS, (parms) => {
                parms.u32(0).u32(0).i32(TC_ACT.STOLEN).i32(0).i32(0).i32(TCA_MIRRED.EGRESS_REDIR)
                  .u32(filter.target);
              });
            },
          );
        });
      }).attrNested(TCA_U32.SEL, (sel) => {
        sel.u8(TCA_U32.TERMINAL).u8(0).u8(1).zero(13).zero(16);
      });
    }).finish();
}

/** The payload of RTM_NEWTFILTER for a direct-action program. */
function encodeBpfFilter(filter: BpfFilter): Uint8Array<ArrayBuffer> {
  const { program, handle = BPF_HANDLE } = filter;
  return encodeFilterHeader({ ...filter, handle }, ETH_P_ALL, 128 + 8 * program.length)
    .attrString(TCA.KIND, "bpf")
    .attrNested(TCA.OPTIONS, (options) => {
      options.attrU16(TCA_BPF.OPS_LEN, program.length)
        .attrBytes(TCA_BPF.OPS, encodeBpf(program))
        .attrU32(TCA_BPF.FLAGS, TCA_BPF.FLAG_ACT_DIRECT);
    }).finish();
}

/** The payload of RTM_DELTFILTER. */
export function encodeFilterKey(key: FilterKey): Uint8Array<ArrayBuffer> {
  return encodeFilterHeader(key, 0, 32).finish();
}

/**
 * Reads the payload of RTM_NEWTFILTER.
 *
 * @throws {DecodeError} when it is malformed
 */
export function decodeFilter(payload: Uint8Array): Filter {
  const decoder = new Decoder(payload);
  const { index, handle, parent, info } = decodeTcHeader(decoder);
  const filter: Mutable<Filter> = {
    index,
    kind: "",
    priority: info >>> 16,
    protocol: htons(info & 0xffff),
    handle,
    parent,
  };
  // The kind precedes the options.
  for (const { type, value } of decoder.attributes()) {
    if (type === TCA.KIND) filter.kind = value.asString();
    else if (type === TCA.OPTIONS && filter.kind === "u32") decodeU32(filter, value);
    else if (type === TCA.OPTIONS && filter.kind === "bpf") decodeProgram(filter, value);
  }
  return filter;
}

function decodeU32(filter: Mutable<Filter>, options: Decoder): void {
  for (const { type, value } of options.attributes()) {
    if (type === TCA_U32.SEL) {
      const flags = value.u8();
      const keys = value.skip(1).u8();
      // In the rest of the selector, and in a key, only an empty mask matters.
      value.skip(13);
      let mask = 0;
      for (let key = 0; key < keys; key++) {
        mask |= value.u32be();
        value.skip(12);
      }
      filter.matchAll = (flags & TCA_U32.TERMINAL) !== 0 && mask === 0;
    } else if (type === TCA_U32.ACT) {
      for (const action of value.attributes()) decodeAction(filter, action.value);
    }
  }
}

function decodeAction(filter: Mutable<Filter>, action: Decoder): void {
  let kind = "";
  for (const { type, value } of action.attributes()) {
    if (type === TCA_ACT.KIND) kind = value.asString();
    if (type !== TCA_ACT.OPTIONS || kind !== "mirred") continue;
    for (const option of value.attributes()) {
      if (option.type !== TCA_MIRRED.PARMS) continue;
      const direction = option.value.skip(20).i32();
      const target = option.value.u32();
      if (direction === TCA_MIRRED.EGRESS_REDIR) filter.redirectTo = target;
    }
  }
}

function decodeProgram(filter: Mutable<Filter>, options: Decoder): void {
  filter.directAction = false;
  for (const { type, value } of options.attributes()) {
    if (type === TCA_BPF.OPS) {
      const { offset, remaining } = value;
      if (remaining % BPF_INSTRUCTION_SIZE !== 0) {
        throw new DecodeError("a truncated program", offset);
      }
      filter.program = decodeBpf(value.asBytes());
    } else if (type === TCA_BPF.FLAGS) {
      filter.directAction = (value.asU32() & TCA_BPF.FLAG_ACT_DIRECT) !== 0;
    }
  }
}

/**
 * The filters on frames that a link receives, in order of priority.
 *
 * Equivalent to: `tc filter show dev NAME ingress`
 *
 * @param parent the ingress qdisc's own unless given
 */
export function listFilters(
  nl: NetlinkConnection,
  index: number,
  parent: number = TC_H.INGRESS_HANDLE,
): Filter[] {
  const payload = encodeTcHeader({ index, handle: 0, parent, info: 0 }).finish();
  const subject = { action: "list", object: () => `filters of ${linkLabel(nl, index)}` };
  return nl.dump(RTM.GETTFILTER, payload, subject)
    .filter((message) => message.type === RTM.NEWTFILTER)
    .map((message) => decodeFilter(message.payload))
    .filter((filter) => filter.index === index && filter.parent === parent && isRule(filter));
}

/** The kernel also lists each priority, and the tables of u32. */
function isRule(filter: Filter): boolean {
  return filter.kind === "u32" ? (filter.handle & U32_NODE_MASK) !== 0 : filter.handle !== 0;
}

/**
 * Redirects every frame that a link receives to another link, which sends it.
 *
 * Equivalent to: `tc filter add dev NAME parent ffff: handle ::1 protocol all prio N u32 match u32
 * 0 0 action mirred egress redirect dev TARGET`
 *
 * @returns false if the same filter exists already
 * @throws {NetlinkError} EEXIST when the priority has another filter
 */
export function addRedirectFilter(nl: NetlinkConnection, filter: RedirectFilter): boolean {
  return nl.change(redirectAddition(nl, filter));
}

/** What {@linkcode addRedirectFilter} asks for. */
export function redirectAddition(nl: NetlinkConnection, filter: RedirectFilter): Change {
  const { target, priority, index } = filter;
  const subject: Subject = {
    action: "add",
    object: () =>
      `redirecting filter ${priority} of ${linkLabel(nl, index)} to ${linkLabel(nl, target)}`,
    feature: "CONFIG_NET_CLS_U32 and CONFIG_NET_ACT_MIRRED",
  };
  return {
    type: RTM.NEWTFILTER,
    flags: NLM_F.CREATE | NLM_F.EXCL,
    payload: encodeRedirectFilter(filter),
    subject,
    refused: (error) => {
      // If the node is taken, u32 answers ENOSPC. If the priority has another kind, EINVAL.
      if (!failedWith(error, "EEXIST", "ENOSPC", "EINVAL")) throw error;
      const present = listFilters(nl, index, filter.parent)
        .filter((other) => other.priority === priority);
      if (present.some((other) => other.matchAll && other.redirectTo === target)) return;
      if (present.length === 0) throw error;
      const { op, object } = error;
      const extAck = `priority ${priority} has another filter`;
      throw new NetlinkError({ ...subject, op, object, errno: Errno.EEXIST, extAck });
    },
  };
}

/**
 * Adds a classic BPF program that decides about every frame that a link receives. It returns
 * TC_ACT.SHOT to drop a frame, TC_ACT.OK to accept it, and TC_ACT.UNSPEC to continue with the next
 * filter. It atomically replaces what its priority has.
 *
 * Equivalent to: `tc filter replace dev NAME parent ffff: handle 1 protocol all prio N bpf bytecode
 * "…" direct-action`
 */
export function replaceBpfFilter(nl: NetlinkConnection, filter: BpfFilter): void {
  nl.change(bpfReplacement(nl, filter));
}

/** What {@linkcode replaceBpfFilter} asks for. */
export function bpfReplacement(nl: NetlinkConnection, filter: BpfFilter): Change {
  return {
    type: RTM.NEWTFILTER,
    // As in tc: a filter is replaced without NLM_F_REPLACE.
    flags: NLM_F.CREATE,
    payload: encodeBpfFilter(filter),
    subject: {
      action: "add",
      object: () => `${filter.name} filter ${filter.priority} of ${linkLabel(nl, filter.index)}`,
      feature: "CONFIG_NET_CLS_BPF",
    },
  };
}

/** Whether two programs are the same. */
export function sameProgram(a: readonly BpfInstruction[], b: readonly BpfInstruction[]): boolean {
  const bytes = encodeBpf(b);
  return a.length === b.length && encodeBpf(a).every((byte, index) => byte === bytes[index]);
}

/**
 * Deletes one filter, and no others of its priority.
 *
 * Equivalent to: `tc filter delete dev NAME parent ffff: prio N handle H bpf`
 *
 * @returns whether it existed; false also if the link is gone
 */
export function deleteFilter(nl: NetlinkConnection, key: FilterKey): boolean {
  const subject: Subject = {
    action: "delete",
    object: () => `filters of ${linkLabel(nl, key.index)}`,
  };
  return tolerate(
    ["ENOENT", "ENODEV"],
    () => nl.request(RTM.DELTFILTER, 0, encodeFilterKey(key), subject),
  ) !== undefined;
}
