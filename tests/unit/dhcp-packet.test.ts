import { assert, assertEquals, assertThrows } from "@std/assert";
import { InputError } from "../../lib/errors.ts";
import { parseUdpFrame } from "../../lib/dhcp/frame.ts";
import {
  DhcpFormatError,
  DhcpOption,
  DhcpType,
  encodeClasslessRoutes,
  encodeDomainSearch,
  isDomainName,
  optionIp,
  optionU16be,
  optionU8,
  u16be,
  u32be,
} from "../../lib/dhcp/options.ts";
import { BootpOp, decodeDhcp, type DhcpMessage, encodeDhcp } from "../../lib/dhcp/packet.ts";
import { readGolden } from "../golden/read.ts";
import { decodeClasslessRoutes, decodeDomainSearch, optionU32be } from "../support/dhcp-options.ts";
import { Random } from "../support/random.ts";

const CLIENTS = ["udhcpc", "dhclient", "dhcpcd"] as const;
const OPTIONS_OFFSET = 240;
const COOKIE = Uint8Array.of(0x63, 0x82, 0x53, 0x63);

const MESSAGE: DhcpMessage = {
  op: BootpOp.REPLY,
  xid: 0xdeadbeef,
  secs: 3,
  hops: 1,
  broadcast: true,
  ciaddr: "10.0.0.1",
  yiaddr: "10.0.0.2",
  siaddr: "10.0.0.3",
  giaddr: "10.0.0.4",
  chaddr: "02:00:00:00:00:0a",
  sname: "server",
  file: "boot/file",
  options: new Map([[DhcpOption.MESSAGE_TYPE, Uint8Array.of(DhcpType.ACK)]]),
};

/** A request whose options are these bytes. */
function withOptions(...options: number[]): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(OPTIONS_OFFSET + options.length);
  bytes.set([BootpOp.REQUEST, 1, 6]);
  bytes.set(COOKIE, 236);
  bytes.set(options, OPTIONS_OFFSET);
  return bytes;
}

function offsetOf(bytes: Uint8Array): number {
  return assertThrows(() => decodeDhcp(bytes), DhcpFormatError).offset;
}

function goldenMessages(client: typeof CLIENTS[number]): Uint8Array[] {
  return readGolden(client, "dhcp").map((frame) => parseUdpFrame(frame)!.payload);
}

Deno.test("decodeDhcp: reads what real clients send", () => {
  for (const client of CLIENTS) {
    const [discover, request] = goldenMessages(client).map(decodeDhcp);
    for (const message of [discover!, request!]) {
      assertEquals(message.op, BootpOp.REQUEST);
      assertEquals(message.chaddr, "02:00:00:00:00:0a");
      assertEquals([message.ciaddr, message.giaddr], ["0.0.0.0", "0.0.0.0"]);
      assertEquals([message.sname, message.file], ["", ""]);
      const asked = message.options.get(DhcpOption.PARAMETER_REQUEST_LIST)!;
      for (const code of [1, 3, 6, 12, 15, 26, 119]) {
        assert(asked.includes(code), `${client} ${code}`);
      }
    }
    assertEquals(optionU8(discover!.options, DhcpOption.MESSAGE_TYPE), DhcpType.DISCOVER);
    assertEquals(optionU8(request!.options, DhcpOption.MESSAGE_TYPE), DhcpType.REQUEST);
    assertEquals(request!.xid, discover!.xid);
    assertEquals(optionIp(request!.options, DhcpOption.REQUESTED_ADDRESS), "172.18.0.2");
    assertEquals(optionIp(request!.options, DhcpOption.SERVER_IDENTIFIER), "172.18.0.1");
  }
  const [udhcpc] = goldenMessages("udhcpc").map(decodeDhcp);
  assertEquals(optionU16be(udhcpc!.options, DhcpOption.MAXIMUM_MESSAGE_SIZE), 576);
  assertEquals(
    udhcpc!.options.get(DhcpOption.CLIENT_IDENTIFIER),
    Uint8Array.of(1, 2, 0, 0, 0, 0, 0x0a),
  );
});

Deno.test("encodeDhcp: writes again, byte for byte, what real clients sent", () => {
  for (const client of CLIENTS) {
    for (const bytes of goldenMessages(client)) {
      const encoded = encodeDhcp(decodeDhcp(bytes));
      const length = Math.max(bytes.length, encoded.length);
      assertEquals(padded(encoded, length), padded(bytes, length), client);
    }
  }
});

function padded(bytes: Uint8Array, length: number): Uint8Array {
  const whole = new Uint8Array(length);
  whole.set(bytes);
  return whole;
}

Deno.test("encodeDhcp, decodeDhcp: every field survives, in BOOTP's size", () => {
  const bytes = encodeDhcp(MESSAGE);
  assertEquals(bytes.length, 300);
  assertEquals(decodeDhcp(bytes), MESSAGE);
  const quiet = { ...MESSAGE, broadcast: false, xid: 0, sname: "", file: "" };
  assertEquals(decodeDhcp(encodeDhcp(quiet)), quiet);
});

Deno.test("encodeDhcp, decodeDhcp: an option of more than 255 bytes goes in parts", () => {
  const value = new Random(1).bytes(700);
  const options = new Map([[DhcpOption.DOMAIN_SEARCH, value], [53, Uint8Array.of(5)]]);
  const bytes = encodeDhcp({ ...MESSAGE, options }, 1472);
  assertEquals(bytes.length, OPTIONS_OFFSET + 700 + 3 * 2 + 3 + 1);
  assertEquals([bytes[241], bytes[241 + 257]], [255, 255]);
  assertEquals(decodeDhcp(bytes).options, options);
  const exact = new Map([[119, value.slice(0, 255)]]);
  assertEquals(encodeDhcp({ ...MESSAGE, options: exact }).length, OPTIONS_OFFSET + 257 + 1);
});

Deno.test("encodeDhcp: leaves out what does not fit, and goes on with the next", () => {
  const options = new Map<number, Uint8Array>([
    [53, Uint8Array.of(5)],
    [119, new Uint8Array(310)],
    [12, new Uint8Array(3)],
    [6, new Uint8Array(252)],
  ]);
  const codes = (size?: number) => {
    const bytes = encodeDhcp({ ...MESSAGE, options }, size);
    assert(bytes.length <= Math.max(size ?? 548, 300));
    return [...decodeDhcp(bytes).options.keys()];
  };
  assertEquals(codes(), [53, 12, 6]);
  assertEquals(codes(400), [53, 12]);
  assertEquals(codes(0), [53, 12]);
  assertEquals(codes(1472), [53, 119, 12, 6]);
  // Exactly full, the end option included.
  assertEquals(codes(OPTIONS_OFFSET + 3 + 5 + 254 + 1), [53, 12, 6]);
  assertEquals(codes(OPTIONS_OFFSET + 3 + 5 + 254), [53, 12]);
});

Deno.test("decodeDhcp: joins repeated options, and skips padding and what follows the end", () => {
  const { options } = decodeDhcp(
    withOptions(0, 12, 2, 97, 98, 0, 53, 1, 1, 12, 1, 99, 255, 12, 200),
  );
  assertEquals(options, new Map([[12, Uint8Array.of(97, 98, 99)], [53, Uint8Array.of(1)]]));
});

Deno.test("decodeDhcp: reads overloaded fields, the file's before the server name's", () => {
  const bytes = withOptions(52, 1, 3, 12, 1, 97, 255);
  bytes.set([12, 1, 98, 52, 1, 1, 255], 108);
  bytes.set([12, 1, 99, 0, 0], 44);
  const message = decodeDhcp(bytes);
  assertEquals(message.options, new Map([[12, Uint8Array.of(97, 98, 99)]]));
  assertEquals([message.sname, message.file], ["", ""]);
  const fileOnly = withOptions(52, 1, 1, 255);
  fileOnly.set([53, 1, 3, 255], 108);
  fileOnly.set([97, 0], 44);
  const { sname, options } = decodeDhcp(fileOnly);
  assertEquals([sname, optionU8(options, 53)], ["a", 3]);
});

Deno.test("decodeDhcp: keeps nothing of the buffer it read", () => {
  const bytes = withOptions(53, 1, 1, 255);
  const { options } = decodeDhcp(bytes);
  bytes.fill(0);
  assertEquals(optionU8(options, 53), 1);
});

Deno.test("decodeDhcp: tells where malformed input is malformed", () => {
  const changed = (offset: number, value: number) => {
    const bytes = withOptions(255);
    bytes[offset] = value;
    return bytes;
  };
  assertEquals(offsetOf(new Uint8Array(0)), 0);
  assertEquals(offsetOf(withOptions().subarray(0, 239)), 239);
  assertEquals(offsetOf(changed(0, 3)), 0);
  assertEquals(offsetOf(changed(1, 6)), 1);
  assertEquals(offsetOf(changed(2, 16)), 1);
  assertEquals(offsetOf(changed(239, 0)), 236);
  assertEquals(offsetOf(withOptions(53, 1, 1, 12)), 243);
  assertEquals(offsetOf(withOptions(53, 1, 1, 12, 3, 1, 1)), 243);
  assertEquals(offsetOf(withOptions(53, 2, 1, 1)), 240);
  assertEquals(offsetOf(withOptions(53, 1, 1, 53, 1, 1)), 243);
  assertEquals(offsetOf(withOptions(50, 3, 1, 1, 1)), 240);
  assertEquals(offsetOf(withOptions(52, 1, 4)), 240);
  assertEquals(offsetOf(withOptions(52, 0)), 240);
  const overloaded = withOptions(52, 1, 1, 255);
  overloaded.set([12, 127], 108);
  assertEquals(offsetOf(overloaded), 108);
});

Deno.test("decodeDhcp: throws its one error on any bytes", () => {
  const random = new Random(2131);
  const seeds = CLIENTS.flatMap(goldenMessages);
  for (let round = 0; round < 20_000; round++) {
    const bytes = round % 4 === 0
      ? withOptions(...random.bytes(random.below(300)))
      : random.damage(seeds[random.below(seeds.length)]!);
    try {
      decodeDhcp(bytes);
    } catch (error) {
      if (!(error instanceof DhcpFormatError)) throw error;
      assert(error.offset >= 0 && error.offset <= bytes.length);
    }
  }
});

Deno.test("encodeDomainSearch: comes back as it went in, without the final dot", () => {
  const names = ["example.org", "lab.example.org."];
  assertEquals(decodeDomainSearch(encodeDomainSearch(names)), ["example.org", "lab.example.org"]);
  assertEquals(encodeDomainSearch([]), new Uint8Array(0));
});

Deno.test("isDomainName, encodeDomainSearch: know what is none", () => {
  const label = "a".repeat(63);
  const longest = [label, label, label, "a".repeat(61)].join(".");
  for (const name of ["a", "a.b.", "_tcp.example.org", longest]) assert(isDomainName(name), name);
  for (const name of ["", ".", "a..b", ".a", "a b", "ä.org", `${label}a`, `${longest}a`]) {
    assertEquals(isDomainName(name), false, name);
    assertThrows(() => encodeDomainSearch([name]), InputError);
  }
});

Deno.test("encodeClasslessRoutes: the descriptors of RFC 3442", () => {
  const cases: readonly [dst: string, bytes: number[]][] = [
    ["0.0.0.0/0", [0]],
    ["10.0.0.0/8", [8, 10]],
    ["10.17.0.0/16", [16, 10, 17]],
    ["10.27.129.0/24", [24, 10, 27, 129]],
    ["10.229.0.128/25", [25, 10, 229, 0, 128]],
    ["10.198.122.47/32", [32, 10, 198, 122, 47]],
  ];
  for (const [dst, bytes] of cases) {
    const value = Uint8Array.from([...bytes, 192, 0, 2, 1]);
    assertEquals(encodeClasslessRoutes([{ dst, gateway: "192.0.2.1" }]), value);
    assertEquals(decodeClasslessRoutes(value), [{ dst, gateway: "192.0.2.1" }]);
  }
  const host = encodeClasslessRoutes([{ dst: "10.1.2.3/8", gateway: "0.0.0.0" }]);
  assertEquals(decodeClasslessRoutes(host), [{ dst: "10.0.0.0/8", gateway: "0.0.0.0" }]);
});

Deno.test("u16be, u32be: read as they were written", () => {
  const options = new Map([[57, u16be(0x8001)], [51, u32be(0xffffffff)]]);
  assertEquals(optionU16be(options, 57), 0x8001);
  assertEquals(optionU32be(options, 51), 0xffffffff);
  assertEquals(optionU32be(options, 58), undefined);
});
