import { assert, assertEquals, assertThrows } from "@std/assert";
import { buildUdpFrame, parseUdpFrame, type UdpFrame } from "../../lib/dhcp/frame.ts";
import { DhcpFormatError } from "../../lib/dhcp/options.ts";
import { readGolden } from "../golden/read.ts";
import { bytes } from "../support/frames.ts";
import { Random } from "../support/random.ts";

const UDP_CHECKSUM = 14 + 20 + 6;
const DATAGRAM: UdpFrame = {
  sourceMac: Uint8Array.of(2, 0, 0, 0, 0, 1),
  destinationMac: Uint8Array.of(2, 0, 0, 0, 0, 2),
  sourceIp: "192.0.2.1",
  destinationIp: "255.255.255.255",
  sourcePort: 67,
  destinationPort: 68,
  payload: Uint8Array.of(1, 2, 3, 4, 5),
};

function offsetOf(frame: Uint8Array): number {
  return assertThrows(() => parseUdpFrame(frame), DhcpFormatError).offset;
}

/** The frame with 16 bits in network order changed. */
function changed(frame: Uint8Array, offset: number, value: number): Uint8Array {
  const copy = frame.slice();
  new DataView(copy.buffer).setUint16(offset, value, false);
  return copy;
}

/** The frame with IPv4 options put in, its header checksum made anew. */
function withIpOptions(frame: Uint8Array, options: number): Uint8Array {
  const head = frame.slice(0, 34);
  head[14] = 0x40 | ((20 + options) / 4);
  const view = new DataView(head.buffer);
  view.setUint16(16, view.getUint16(16) + options);
  view.setUint16(24, 0);
  const whole = bytes(head, new Uint8Array(options).fill(1), frame.subarray(34));
  let sum = 0;
  for (let index = 14; index < 34 + options; index += 2) {
    sum += (whole[index]! << 8) | whole[index + 1]!;
  }
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return changed(whole, 24, 0xffff - sum);
}

Deno.test("buildUdpFrame, parseUdpFrame: what goes in comes out", () => {
  assertEquals(parseUdpFrame(buildUdpFrame(DATAGRAM)), DATAGRAM);
  for (const length of [0, 1, 300, 1472]) {
    const payload = new Random(length).bytes(length);
    assertEquals(parseUdpFrame(buildUdpFrame({ ...DATAGRAM, payload }))?.payload, payload);
  }
});

Deno.test("parseUdpFrame: accepts the frames of real clients, checksums and all", () => {
  for (const client of ["udhcpc", "dhclient", "dhcpcd"]) {
    for (const frame of readGolden(client, "dhcp")) {
      const parsed = parseUdpFrame(frame)!;
      assertEquals([parsed.sourcePort, parsed.destinationPort], [68, 67]);
      assertEquals([parsed.sourceIp, parsed.destinationIp], ["0.0.0.0", "255.255.255.255"]);
      const damaged = changed(frame, UDP_CHECKSUM, new DataView(frame.buffer).getUint16(40) ^ 1);
      assertEquals(offsetOf(damaged), UDP_CHECKSUM);
    }
  }
});

Deno.test("buildUdpFrame: makes the checksums that real clients made", () => {
  for (const client of ["udhcpc", "dhclient", "dhcpcd"]) {
    for (const frame of readGolden(client, "dhcp")) {
      const built = buildUdpFrame(parseUdpFrame(frame)!);
      assertEquals(built.subarray(UDP_CHECKSUM), frame.subarray(UDP_CHECKSUM));
    }
  }
});

Deno.test("parseUdpFrame: skips IPv4 options and cuts off Ethernet's padding", () => {
  const frame = withIpOptions(buildUdpFrame(DATAGRAM), 12);
  assertEquals(parseUdpFrame(bytes(frame, new Uint8Array(9)))?.payload, DATAGRAM.payload);
});

Deno.test("parseUdpFrame: a UDP checksum may be absent or of the pseudo-header alone", () => {
  const frame = buildUdpFrame(DATAGRAM);
  assert(parseUdpFrame(changed(frame, UDP_CHECKSUM, 0)) !== undefined);
  // 192.0.2.1 + 255.255.255.255 + 17 + 13
  const partial = 0xc000 + 0x0201 + 17 + 13;
  assert(parseUdpFrame(changed(frame, UDP_CHECKSUM, partial)) !== undefined);
  assertEquals(offsetOf(changed(frame, UDP_CHECKSUM, partial + 1)), UDP_CHECKSUM);
});

Deno.test("buildUdpFrame: writes a checksum of zero as its other form", () => {
  const sumOf = (payload: Uint8Array) => {
    return new DataView(buildUdpFrame({ ...DATAGRAM, payload }).buffer).getUint16(UDP_CHECKSUM);
  };
  const checksum = sumOf(Uint8Array.of(0, 0));
  const payload = Uint8Array.of(checksum >> 8, checksum & 0xff);
  assertEquals(sumOf(payload), 0xffff);
  assertEquals(parseUdpFrame(buildUdpFrame({ ...DATAGRAM, payload }))?.payload, payload);
});

Deno.test("parseUdpFrame: passes over what is no whole UDP datagram in IPv4", () => {
  const frame = buildUdpFrame(DATAGRAM);
  const tcp = frame.slice();
  tcp[23] = 6;
  const cases = [changed(frame, 12, 0x86dd), changed(frame, 12, 0x0806), tcp];
  for (const fragment of [0x2000, 0x0001, 0x2001]) cases.push(changed(frame, 20, fragment));
  for (const other of cases) assertEquals(parseUdpFrame(other), undefined);
});

Deno.test("parseUdpFrame: tells where a frame is malformed", () => {
  const frame = buildUdpFrame(DATAGRAM);
  assertEquals(offsetOf(frame.subarray(0, 13)), 13);
  assertEquals(offsetOf(frame.subarray(0, 33)), 33);
  assertEquals(offsetOf(changed(frame, 14, 0x6500)), 14);
  assertEquals(offsetOf(changed(frame, 14, 0x4400)), 14);
  assertEquals(offsetOf(changed(frame, 14, 0x4f00)), 14);
  assertEquals(offsetOf(changed(frame, 16, 19)), 16);
  assertEquals(offsetOf(frame.subarray(0, -1)), 16);
  assertEquals(offsetOf(changed(frame, 24, 0)), 24);
  assertEquals(offsetOf(changed(frame, 38, 7)), 38);
  assertEquals(offsetOf(changed(frame, 38, 14)), 38);
});

Deno.test("parseUdpFrame: throws its one error on any bytes", () => {
  const random = new Random(894);
  const seed = buildUdpFrame(DATAGRAM);
  for (let round = 0; round < 20_000; round++) {
    const frame = round % 4 === 0 ? random.bytes(random.below(80)) : random.damage(seed);
    if (round % 8 === 0 && frame.length > 15) frame.set([8, 0, 0x45], 12);
    try {
      parseUdpFrame(frame);
    } catch (error) {
      if (!(error instanceof DhcpFormatError)) throw error;
    }
  }
});
