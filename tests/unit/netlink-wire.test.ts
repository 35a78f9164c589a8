import { assertEquals, assertThrows } from "@std/assert";
import { DecodeError } from "../../lib/netlink/errors.ts";
import { align, Decoder, Encoder, htons, LITTLE_ENDIAN, NLA } from "../../lib/netlink/wire.ts";

const little = { ignore: !LITTLE_ENDIAN };

function decoder(text: string): Decoder {
  return new Decoder(Uint8Array.fromHex(text));
}

function assertMalformed(fn: () => unknown, offset: number): void {
  assertEquals(assertThrows(fn, DecodeError).offset, offset);
}

Deno.test("align: rounds up to four", () => {
  assertEquals([0, 1, 4, 5, 65535].map(align), [0, 4, 4, 8, 65536]);
});

Deno.test("htons: orders bytes as the network does", little, () => {
  assertEquals([htons(3), htons(0x0300), htons(0x86dd)], [0x0300, 3, 0xdd86]);
});

for (
  const [what, write, expected] of [
    ["u8", (e) => e.u8(0x1ff), "ff"],
    ["u16", (e) => e.u16(0x0102), "0201"],
    ["u16be", (e) => e.u16be(0x0102), "0102"],
    ["u32", (e) => e.u32(0x01020304), "04030201"],
    ["u32 above 2^31", (e) => e.u32(0xffff0000), "0000ffff"],
    ["u32be", (e) => e.u32be(0x01020304), "01020304"],
    ["i32", (e) => e.i32(-1), "ffffffff"],
    ["u64", (e) => e.u64(0x0102n), "0201000000000000"],
    ["attrU8", (e) => e.attrU8(7, 1), "0500070001000000"],
    ["attrU16", (e) => e.attrU16(7, 1), "0600070001000000"],
    ["attrU16be", (e) => e.attrU16be(7, 1), "0600070000010000"],
    ["attrU32", (e) => e.attrU32(7, 1), "0800070001000000"],
    ["attrU32be", (e) => e.attrU32be(7, 1), "0800070000000001"],
    ["attrBytes", (e) => e.attrBytes(7, Uint8Array.of(1, 2, 3, 4, 5)), "090007000102030405000000"],
    ["attrString", (e) => e.attrString(7, "abc"), "0800070061626300"],
    ["attrText", (e) => e.attrText(7, "abc"), "0700070061626300"],
    [
      "attrNested",
      (e) => e.attrNested(7 | NLA.F_NESTED, (inner) => inner.attrU8(1, 1).attrU8(2, 2)),
      "140007800500010001000000050002000200" + "0000",
    ],
    ["attrNested without content", (e) => e.attrNested(7, () => {}), "04000700"],
  ] as [string, (encoder: Encoder) => Encoder, string][]
) {
  Deno.test(`Encoder: ${what}`, little, () => {
    assertEquals(write(new Encoder()).finish().toHex(), expected);
  });
}

Deno.test("Encoder: grows and keeps what was written", () => {
  const encoder = new Encoder(1);
  for (let value = 0; value < 1000; value++) encoder.u8(value);
  const bytes = encoder.finish();
  assertEquals(bytes.length, 1000);
  assertEquals(bytes.every((byte, index) => byte === (index & 0xff)), true);
});

Deno.test("Encoder: refuses an attribute longer than its length field", () => {
  assertThrows(() => new Encoder().attrBytes(1, new Uint8Array(65532)), RangeError);
  assertThrows(() => new Encoder().attrNested(1, (e) => e.zero(65532)), RangeError);
});

Deno.test("Decoder: reads back every kind of field", () => {
  const bytes = new Encoder().u8(1).u16(2).u16be(3).u32(4).u32be(5).i32(-6).u64(7n).zero(2)
    .bytes(Uint8Array.of(8, 9)).finish();
  const read = new Decoder(bytes);
  assertEquals(
    [read.u8(), read.u16(), read.u16be(), read.u32(), read.u32be(), read.i32()],
    [1, 2, 3, 4, 5, -6],
  );
  assertEquals(read.u64(), 7n);
  assertEquals(read.skip(2).asBytes(), Uint8Array.of(8, 9));
  assertEquals(read.remaining, 0);
});

Deno.test("Decoder: reads attributes, nested and repeated, without their flags", little, () => {
  const read = decoder("0500070001000000" + "08000780" + "04000100" + "060007000200").attributes();
  assertEquals(read.map(({ type }) => type), [7, 7, 7]);
  assertEquals(read[0]!.value.asU8(), 1);
  assertEquals(read[1]!.value.attributes().map(({ type }) => type), [1]);
  assertEquals(read[2]!.value.asU16(), 2);
});

Deno.test("Decoder: takes strings with and without their NUL", () => {
  assertEquals(decoder("61626300").asString(), "abc");
  assertEquals(decoder("616263").asString(), "abc");
  assertEquals(decoder("").asString(), "");
});

Deno.test("Decoder: names the offset of what is malformed", little, () => {
  assertMalformed(() => decoder("01").u16(), 0);
  assertMalformed(() => decoder("0102").skip(1).u32(), 1);
  assertMalformed(() => decoder("0102").skip(-1), 0);
  assertMalformed(() => decoder("010203").asU16(), 0);
  assertMalformed(() => decoder("03000700").attributes(), 0);
  assertMalformed(() => decoder("04000700" + "09000700" + "00000000").attributes(), 4);
  assertMalformed(() => decoder("04000700" + "0400").attributes(), 6);
  const nested = decoder("04000100" + "0c000200" + "08000100" + "0000");
  assertMalformed(() => nested.attributes(), 4);
  const inner = decoder("0c000200" + "09000100" + "00000000").attributes()[0]!.value;
  assertMalformed(() => inner.attributes(), 4);
});
