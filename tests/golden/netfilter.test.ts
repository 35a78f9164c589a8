/**
 * What the kernel sends of nftables and conntrack, read as `nft` and `conntrack` listed it. The
 * bytes were taken from those programs' own sockets: see the head of each file.
 */

import { assertEquals, assertThrows } from "@std/assert";
import { TapkitError } from "../../lib/errors.ts";
import { MAIN_TABLE } from "../../lib/firewall/ruleset.ts";
import { setOf } from "../../lib/firewall/table.ts";
import { decodeFlow, encodeFilter } from "../../lib/netlink/conntrack.ts";
import { AF, decodeMessages } from "../../lib/netlink/message.ts";
import {
  decodeElements,
  type Element,
  encodeElements,
} from "../../lib/netlink/nftables/elements.ts";
import { decodeFields, encodeFields } from "../../lib/netlink/nftables/fields.ts";
import { decodeRule } from "../../lib/netlink/nftables/objects.ts";
import { readGolden } from "./read.ts";

/** The marks of a transaction (linux/netfilter/nfnetlink.h). */
const NFNL_MSG_BATCH: readonly number[] = [0x10, 0x11];

function payloads(name: string): Uint8Array[] {
  return readGolden(name, "netfilter").flatMap(decodeMessages)
    .filter(({ type }) => !NFNL_MSG_BATCH.includes(type)).map(({ payload }) => payload);
}

const mainSet = (set: string) => setOf(MAIN_TABLE, set);

const ELEMENTS: Readonly<Record<string, Element>> = {
  "elements-ports_at4": {
    set: "ports_at4",
    key: ["192.0.2.1", "tcp", "8080"],
    value: ["172.18.0.2", "80"],
    owner: "web/eth0",
  },
  "elements-ports6": {
    set: "ports6",
    key: ["udp", "53"],
    value: ["fd00:18::2", "5353"],
    owner: "web/eth0",
  },
  "elements-guests4": { set: "guests4", key: ["172.18.0.2", "ignite0"], owner: "web/eth0" },
};

Deno.test("decodeElements: reads elements with their owners", () => {
  for (const [name, element] of Object.entries(ELEMENTS)) {
    assertEquals(
      payloads(name).flatMap((payload) => decodeElements(mainSet(element.set), payload)),
      [
        element,
      ],
      name,
    );
  }
});

Deno.test("decodeElements: leaves out what is of another layout than the set", () => {
  const [payload] = payloads("elements-ports6");
  for (const set of ["ports_at4", "guests4", "private6", "ports4"]) {
    assertEquals(decodeElements(mainSet(set), payload!), [], set);
  }
});

Deno.test("encodeFields: writes the bytes that the kernel has, decodeFields reads them", () => {
  for (const [name, { set, key, value }] of Object.entries(ELEMENTS)) {
    const [payload] = payloads(name);
    for (
      const [fields, texts] of [[mainSet(set).definition.key, key], [
        mainSet(set).definition.value,
        value,
      ]] as const
    ) {
      if (fields === undefined || texts === undefined) continue;
      const bytes = encodeFields(fields, texts);
      assertEquals(payload!.toHex().includes(bytes.toHex()), true, `${name} ${texts}`);
      assertEquals(decodeFields(fields, bytes), [...texts]);
    }
  }
});

Deno.test("encodeElements: writes what nft writes", () => {
  // nft also numbers the set within its transaction, NFTA_SET_ELEM_LIST_SET_ID.
  const setId = "0800040000000001";
  const element = ELEMENTS["elements-ports_at4"]!;
  const [added] = payloads("elements-add");
  assertEquals(
    encodeElements(mainSet(element.set), [element], "elements").toHex(),
    added!.toHex().replace(setId, ""),
  );
  const [deleted] = payloads("elements-delete");
  assertEquals(
    encodeElements(mainSet(element.set), [element], "keys").toHex(),
    deleted!.toHex().replace(setId, ""),
  );
});

Deno.test("decodeRule: reads where a rule is and its comment", () => {
  const rules = payloads("rules").map(decodeRule);
  const at = { family: "inet", table: "tapkit", chain: "forward" };
  assertEquals(rules.map(({ handle: _, expressions: __, ...rule }) => rule), [
    { ...at, comment: "one" },
    { ...at, comment: "" },
  ]);
});

Deno.test("decodeFlow: reads both directions and both families", () => {
  const flows = payloads("flows").map((payload) => decodeFlow(payload)!);
  assertEquals(flows.find(({ family }) => family === 4), {
    family: 4,
    original: {
      source: "192.0.2.50",
      destination: "192.0.2.1",
      protocol: 17,
      sourcePort: 40000,
      destinationPort: 53,
    },
    reply: {
      source: "172.18.0.2",
      destination: "192.0.2.50",
      protocol: 17,
      sourcePort: 5353,
      destinationPort: 40000,
    },
    identity: flows.find(({ family }) => family === 4)!.identity,
  });
  assertEquals(flows.find(({ family }) => family === 6)!.original, {
    source: "2001:db8::50",
    destination: "2001:db8::1",
    protocol: 6,
    sourcePort: 40001,
    destinationPort: 80,
  });
});

Deno.test("decodeFlow: what names a flow is the original tuple and the id, as received", () => {
  const payload = payloads("flows").find((bytes) => bytes[0] === AF.INET)!;
  const [id] = payload.toHex().match(/08000c00.{8}/)!;
  assertEquals(
    decodeFlow(payload)!.identity.toHex(),
    "3400018014000180" + "08000100c0000232" + "08000200c0000201" + // 192.0.2.50 to 192.0.2.1
      "1c000280" + "0500010011000000" + "060002009c400000" + "0600030000350000" + // udp 40000 to 53
      id,
  );
});

Deno.test("encodeFilter: one address, or protocol and port, with their flags", () => {
  assertEquals(
    encodeFilter({ replySource: "172.18.0.2" }).toHex(),
    "02000000" + "10000280" + "0c000180" + "08000100ac120002" + "0c001980" + "0800020001000000",
  );
  assertEquals(
    encodeFilter({ protocol: "udp", originalDestinationPort: 53, family: 4 }).toHex(),
    "02000000" + "18000180" + "14000280" + "0500010011000000" + "0600030000350000" +
      "0c001980" + "0800010028000000",
  );
  assertEquals(encodeFilter({}).toHex(), "00000000");
});

Deno.test("decoders of netfilter: bytes that are cut or changed end in an error or a value", () => {
  const names = [...Object.keys(ELEMENTS), "rules", "flows"];
  const decoders = [
    decodeFlow,
    decodeRule,
    (bytes: Uint8Array) => decodeElements(mainSet("ports_at4"), bytes),
  ];
  let refused = 0;
  for (const payload of names.flatMap(payloads)) {
    for (let length = 0; length < payload.length; length++) {
      const changed = payload.slice();
      changed[length] = changed[length]! ^ 0xff;
      for (const bytes of [payload.slice(0, length), changed]) {
        for (const decode of decoders) {
          try {
            decode(bytes);
          } catch (error) {
            assertEquals(error instanceof TapkitError, true, `${error}`);
            refused++;
          }
        }
      }
    }
  }
  assertEquals(refused > 100, true);
  assertThrows(() => decodeFlow(new Uint8Array(3)), TapkitError);
});
