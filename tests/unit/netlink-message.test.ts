import { assertEquals, assertInstanceOf, assertStringIncludes, assertThrows } from "@std/assert";
import { SyscallError } from "../../lib/errors.ts";
import { DecodeError, NetlinkError } from "../../lib/netlink/errors.ts";
import {
  collectReply,
  decodeAcknowledgement,
  decodeMessages,
  encodeMessage,
  type Message,
  NLM_F,
  NLMSG,
  NLMSGERR_ATTR,
  type Reply,
  routeMessageName,
  RTM,
} from "../../lib/netlink/message.ts";
import { Encoder } from "../../lib/netlink/wire.ts";

const NOTHING = new Uint8Array(0);

function message(parts: Partial<Message>): Message {
  return { type: RTM.NEWLINK, flags: 0, seq: 7, pid: 42, payload: NOTHING, ...parts };
}

function concat(...parts: Uint8Array[]): Uint8Array {
  return Uint8Array.from(parts.flatMap((part) => [...part]));
}

Deno.test("decodeMessages: reads back what encodeMessage wrote, padding in between", () => {
  const first = message({ payload: Uint8Array.of(1, 2, 3, 4, 5), flags: NLM_F.MULTI });
  const second = message({ type: NLMSG.DONE, seq: 0xffffffff, pid: 0xfffffffe });
  const datagram = concat(encodeMessage(first), new Uint8Array(3), encodeMessage(second));
  assertEquals(decodeMessages(datagram), [first, second]);
  assertEquals(decodeMessages(NOTHING), []);
});

Deno.test("decodeMessages: refuses lengths that are not there", () => {
  const whole = encodeMessage(message({ payload: new Uint8Array(8) }));
  for (
    const [what, bytes, offset] of [
      ["a cut header", whole.subarray(0, 15), 0],
      ["a cut payload", whole.subarray(0, 23), 0],
      ["a cut second header", concat(whole, whole.subarray(0, 4)), 24],
      ["a length of 0", new Uint8Array(16), 0],
      ["a length below a header's", Uint8Array.from(whole, (byte, i) => i === 0 ? 15 : byte), 0],
      ["a length of 4 GiB", Uint8Array.from(whole, (byte, i) => i < 4 ? 0xff : byte), 0],
    ] as const
  ) {
    assertEquals(
      assertThrows(() => decodeMessages(bytes), DecodeError, undefined, what).offset,
      offset,
    );
  }
});

/** An NLMSG_ERROR's payload: error number, the request's header, what follows. */
function verdict(errno: number, requestLength: number, rest: Uint8Array = NOTHING): Uint8Array {
  return new Encoder().i32(-errno).u32(requestLength).zero(12).bytes(rest).finish();
}

const EXT_ACK = new Encoder().attrString(NLMSGERR_ATTR.MSG, "Invalid MTU")
  .attrU32(NLMSGERR_ATTR.OFFS, 44).finish();

for (
  const [what, parts, expected] of [
    ["success", { payload: verdict(0, 32) }, { errno: 0 }],
    ["an error number alone", { payload: verdict(17, 32) }, { errno: 17 }],
    [
      "the kernel's words, the request left out",
      { payload: verdict(22, 32, EXT_ACK), flags: NLM_F.CAPPED | NLM_F.ACK_TLVS },
      { errno: 22, extAck: "Invalid MTU", offset: 44 },
    ],
    [
      "the kernel's words behind the request",
      {
        payload: verdict(22, 30, concat(new Uint8Array(16), EXT_ACK)),
        flags: NLM_F.ACK_TLVS,
      },
      { errno: 22, extAck: "Invalid MTU", offset: 44 },
    ],
    ["a dump's end", { type: NLMSG.DONE, payload: new Encoder().i32(0).finish() }, { errno: 0 }],
    ["a dump's end without a number", { type: NLMSG.DONE }, { errno: 0 }],
    [
      "a dump's failure",
      {
        type: NLMSG.DONE,
        flags: NLM_F.ACK_TLVS,
        payload: new Encoder().i32(-95).bytes(EXT_ACK).finish(),
      },
      { errno: 95, extAck: "Invalid MTU", offset: 44 },
    ],
  ] as [string, Partial<Message>, unknown][]
) {
  Deno.test(`decodeAcknowledgement: ${what}`, () => {
    assertEquals(decodeAcknowledgement(message({ type: NLMSG.ERROR, ...parts })), expected);
  });
}

Deno.test("decodeAcknowledgement: refuses one that is cut, or claims a shorter request", () => {
  const decode = (parts: Partial<Message>) =>
    decodeAcknowledgement(message({ type: NLMSG.ERROR, ...parts }));
  assertThrows(() => decode({ payload: new Uint8Array(3) }), DecodeError);
  assertThrows(() => decode({ payload: verdict(1, 0), flags: NLM_F.ACK_TLVS }), DecodeError);
  assertThrows(
    () => decode({ payload: verdict(1, 2 ** 32 - 1), flags: NLM_F.ACK_TLVS }),
    DecodeError,
  );
});

const REQUEST = { seq: 7, flags: NLM_F.REQUEST | NLM_F.ACK };

function collect(...messages: Message[]): Reply {
  const reply: Reply = { messages: [], interrupted: false };
  collectReply(reply, messages, REQUEST);
  return reply;
}

Deno.test("collectReply: without acknowledgement or dump the first message is the answer", () => {
  const reply: Reply = { messages: [], interrupted: false };
  const data = message({});
  collectReply(reply, [message({ type: NLMSG.NOOP }), data, data], {
    ...REQUEST,
    flags: NLM_F.REQUEST,
  });
  assertEquals(reply, { messages: [data], interrupted: false, verdict: { errno: 0 } });
});

Deno.test("collectReply: keeps the messages of the request and ends with the verdict", () => {
  const data = message({});
  const done = message({ type: NLMSG.DONE });
  assertEquals(collect(data, data), { messages: [data, data], interrupted: false });
  assertEquals(collect(data, message({ type: NLMSG.NOOP }), done, data), {
    messages: [data],
    interrupted: false,
    verdict: { errno: 0 },
  });
});

Deno.test("collectReply: leaves out what belongs to another request", () => {
  const stale = message({ seq: 6, type: NLMSG.ERROR, payload: verdict(17, 32) });
  assertEquals(collect(stale, message({ seq: 0 })), {
    messages: [],
    interrupted: false,
  });
});

Deno.test("collectReply: notices a dump that was interrupted and data that was lost", () => {
  const changed = message({ flags: NLM_F.MULTI | NLM_F.DUMP_INTR });
  assertEquals(collect(message({}), changed).interrupted, true);
  const doneChanged = message({ type: NLMSG.DONE, flags: NLM_F.DUMP_INTR });
  assertEquals(collect(message({}), doneChanged).interrupted, true);
  assertEquals(collect(message({ type: NLMSG.OVERRUN })).verdict, { errno: 105 });
});

Deno.test("routeMessageName: is the kernel's name", () => {
  assertEquals(routeMessageName(RTM.NEWTFILTER), "RTM_NEWTFILTER");
  assertEquals(routeMessageName(999), "message type 999");
});

Deno.test("NetlinkError: says what was to be done, to what, and the kernel's reason", () => {
  const error = new NetlinkError({
    op: "RTM_NEWLINK",
    action: "create",
    object: 'link "ignite0"',
    errno: 17,
  });
  assertInstanceOf(error, SyscallError);
  assertEquals(error.message, 'cannot create link "ignite0": already exists (EEXIST)');
  assertEquals([error.op, error.object, error.errno, error.code], [
    "RTM_NEWLINK",
    'link "ignite0"',
    17,
    "EEXIST",
  ]);
  const worded = new NetlinkError({
    op: "RTM_NEWLINK",
    errno: 22,
    extAck: "Invalid MTU",
    offset: 44,
  });
  assertEquals(worded.message, "cannot RTM_NEWLINK netlink request: Invalid MTU (EINVAL)");
  assertEquals([worded.extAck, worded.offset], ["Invalid MTU", 44]);
});

Deno.test("NetlinkError: mends what it can", () => {
  const mend = (errno: number, feature?: string) =>
    new NetlinkError({ op: "RTM_NEWLINK", errno, ...(feature === undefined ? {} : { feature }) })
      .mend;
  assertStringIncludes(mend(1)!, "CAP_NET_ADMIN");
  assertStringIncludes(mend(95, "CONFIG_BRIDGE")!, "CONFIG_BRIDGE");
  assertStringIncludes(mend(2, "CONFIG_NET_CLS_U32")!, "CONFIG_NET_CLS_U32");
  assertEquals(mend(17, "CONFIG_BRIDGE"), undefined);
});
