import { assertEquals, assertThrows } from "@std/assert";
import { InputError } from "../../lib/errors.ts";
import {
  bigIntToIp,
  bytesToIp,
  canonicalIp,
  cidrContains,
  cidrsOverlap,
  ipToBigInt,
  ipToBytes,
  isIp,
  isLoopback,
  isMulticast,
  isUnspecified,
  netmask,
  parseCidr,
} from "../../lib/inet/ip.ts";
import { formatMac, parseMac, randomMac } from "../../lib/inet/mac.ts";

Deno.test("isIp: tells the families apart and takes no other spelling", () => {
  const cases: [string, 0 | 4 | 6][] = [
    ["192.0.2.1", 4],
    ["0.0.0.0", 4],
    ["255.255.255.255", 4],
    ["256.0.0.1", 0],
    ["1.2.3", 0],
    ["1.2.3.4.5", 0],
    ["01.2.3.4", 0],
    ["1..2.3", 0],
    [" 1.2.3.4", 0],
    ["::", 6],
    ["::1", 6],
    ["2001:db8::1", 6],
    ["2001:DB8:0:0:0:0:0:1", 6],
    ["1:2:3:4:5:6:7::", 6],
    ["::ffff:192.0.2.1", 6],
    ["1:2:3:4:5:6:7:8:9", 0],
    ["1:2:3:4:5:6:7", 0],
    ["1::2::3", 0],
    [":::", 0],
    [":1", 0],
    ["12345::", 0],
    ["fe80::1%eth0", 0],
    ["192.0.2.1::", 0],
    ["::192.0.2.1:1", 0],
    ["", 0],
  ];
  for (const [text, family] of cases) assertEquals(isIp(text), family, text);
});

Deno.test("canonicalIp: writes what RFC 5952 asks for", () => {
  const cases = [
    ["2001:0DB8:0000:0000:0000:0000:0000:0001", "2001:db8::1"],
    ["2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"],
    ["2001:0:0:1:0:0:0:1", "2001:0:0:1::1"],
    ["2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1"],
    ["0:0:0:0:0:0:0:0", "::"],
    ["1:0:0:0:0:0:0:0", "1::"],
    ["::ffff:c000:201", "::ffff:192.0.2.1"],
    ["10.0.0.1", "10.0.0.1"],
  ] as const;
  for (const [text, canonical] of cases) assertEquals(canonicalIp(text), canonical);
});

Deno.test("ipToBytes: bytes, numbers and text agree", () => {
  assertEquals([...ipToBytes("10.0.2.255")], [10, 0, 2, 255]);
  assertEquals(ipToBigInt("0.0.1.2"), 258n);
  assertEquals(bigIntToIp(258n, 4), "0.0.1.2");
  assertEquals(bigIntToIp(1n, 6), "::1");
  assertEquals(bytesToIp(ipToBytes("fd00:1::9")), "fd00:1::9");
  assertThrows(() => bigIntToIp(1n << 32n, 4), RangeError);
  assertThrows(() => ipToBytes("fe80::1%eth0"), InputError, "is not an IP address");
});

Deno.test("parseCidr: gives the prefix of the address", () => {
  assertEquals(parseCidr("172.18.5.9/16"), {
    address: "172.18.5.9",
    family: 4,
    prefixLength: 16,
    network: "172.18.0.0",
    broadcast: "172.18.255.255",
  });
  assertEquals(parseCidr("fd00:1::5/64").network, "fd00:1::");
  assertEquals(parseCidr("0.0.0.0/0").broadcast, "255.255.255.255");
  for (const text of ["10.0.0.1", "10.0.0.1/33", "10.0.0.1/", "/8", "fd00::/129", "10.0.0.1/08"]) {
    assertThrows(() => parseCidr(text), InputError, text);
  }
});

Deno.test("cidrsOverlap, cidrContains: one family at a time", () => {
  const wide = parseCidr("172.16.0.0/12");
  assertEquals(cidrsOverlap(wide, parseCidr("172.18.0.0/16")), true);
  assertEquals(cidrsOverlap(parseCidr("172.18.0.0/16"), wide), true);
  assertEquals(cidrsOverlap(wide, parseCidr("172.32.0.0/16")), false);
  assertEquals(cidrsOverlap(wide, parseCidr("fd00::/8")), false);
  assertEquals(cidrContains(wide, "172.31.255.255"), true);
  assertEquals(cidrContains(wide, "172.32.0.0"), false);
});

Deno.test("netmask, isLoopback, isUnspecified, isMulticast", () => {
  assertEquals([0, 8, 16, 31, 32].map(netmask), [
    "0.0.0.0",
    "255.0.0.0",
    "255.255.0.0",
    "255.255.255.254",
    "255.255.255.255",
  ]);
  assertEquals(["127.9.0.1", "::1", "128.0.0.1"].map(isLoopback), [true, true, false]);
  assertEquals(["0.0.0.0", "::", "0.0.0.1"].map(isUnspecified), [true, true, false]);
  assertEquals(["224.0.0.1", "ff02::1", "223.0.0.1"].map(isMulticast), [true, true, false]);
});

Deno.test("parseMac: takes unicast addresses only", () => {
  assertEquals([...parseMac("9A:3c:00:00:00:01")], [0x9a, 0x3c, 0, 0, 0, 1]);
  for (const text of ["01:00:5e:00:00:01", "00:00:00:00:00:00", "9a:3c:0:0:0:1", "9a3c00000001"]) {
    assertThrows(() => parseMac(text), InputError, text);
  }
});

Deno.test("randomMac: is local, unicast and not the same twice", () => {
  const [first, second] = [randomMac(), randomMac()];
  assertEquals(formatMac(parseMac(first)), first);
  assertEquals(parseInt(first.slice(0, 2), 16) & 3, 2);
  assertEquals(first === second, false);
});
