import { assertEquals, assertMatch, assertStringIncludes, assertThrows } from "@std/assert";
import { InputError } from "../../lib/errors.ts";
import { limitElements, LIMITS_TABLE } from "../../lib/firewall/limits-table.ts";
import { type GuestRules, validateRules } from "../../lib/firewall/model.ts";
import {
  bridgePolicyTable,
  inetPolicyTable,
  POLICY_LAYOUTS,
  policyElements,
} from "../../lib/firewall/policy-tables.ts";
import { marksOf, planTable, setOf } from "../../lib/firewall/table.ts";
import { decodeElements, encodeElements } from "../../lib/netlink/nftables/elements.ts";
import { fingerprint } from "../support/main-table.ts";

const RULES: GuestRules = {
  owner: "web/eth0",
  link: "ignite0",
  addresses: ["172.18.0.2", "fd00::2"],
  masquerade: true,
  forward: true,
  ports: [],
};
const MAC = "02:00:00:00:00:0a";

Deno.test("POLICY_LAYOUTS: are the fingerprints of the layouts", () => {
  for (const table of [bridgePolicyTable(), inetPolicyTable()]) {
    const layout = fingerprint(table);
    assertEquals(POLICY_LAYOUTS[table.family], layout, table.family);
  }
});

Deno.test("planTable: of policies, every set is used by a rule, every rule has its mark", () => {
  for (const table of [bridgePolicyTable(), inetPolicyTable()]) {
    const plan = planTable(table);
    for (const set of Object.keys(table.sets)) assertMatch(plan, new RegExp(`@${set}\\b`), set);
    const marks = marksOf(table).map(({ chain, comment }) => `${chain} ${comment}`);
    assertEquals(new Set(marks).size, marks.length);
    assertStringIncludes(plan, `layout ${table.layout}`);
  }
});

Deno.test("limitElements: what is not limited has none; above 1,000 a sixteenth is counted", () => {
  const limited = (limits: GuestRules["limits"]) =>
    limitElements({ ...RULES, mac: MAC, ...limits && { limits } }).map(({ set, key, limit }) =>
      [set, ...key, limit].join(" ")
    );
  assertEquals(limited(undefined), []);
  assertEquals(limited({ link: "ignite0" }), []);
  assertEquals(limited({ link: "ignite0", openings: 5 }), [
    `openers ${MAC} ignite0 `,
    `openings ${MAC} ignite0 5`,
  ]);
  assertEquals(limited({ link: "ignite0", connections: 1000 }), [
    `opened ${MAC} 1000`,
    "reached4 172.18.0.2 1000",
    "reached6 fd00::2 1000",
  ]);
  assertEquals(limited({ link: "ignite0", connections: 65_536 }), [
    `opened_sample ${MAC} 4096`,
    "reached_sample4 172.18.0.2 4096",
    "reached_sample6 fd00::2 4096",
  ]);
});

Deno.test("LIMITS_TABLE: is of its layout, every set is used, what is written is read", () => {
  assertEquals(LIMITS_TABLE.layout, fingerprint(LIMITS_TABLE), "run deno task table");
  const plan = planTable(LIMITS_TABLE);
  for (const set of [...Object.keys(LIMITS_TABLE.sets), ...Object.keys(LIMITS_TABLE.learnt!)]) {
    assertMatch(plan, new RegExp(`@${set}\\b`), set);
  }
  for (const connections of [7, 100_000]) {
    const limits = { link: "ignite0", connections, openings: 12 };
    for (const element of limitElements({ ...RULES, mac: MAC, limits })) {
      const set = setOf(LIMITS_TABLE, element.set);
      const payload = encodeElements(set, [element], "elements");
      assertEquals(decodeElements(set, payload), [element], element.set);
    }
  }
});

Deno.test("policyElements: a guest without a policy has none", () => {
  assertEquals(policyElements(RULES), { bridge: [], inet: [] });
});

Deno.test("policyElements: egress rules are keys of the MAC and the marked prefix", () => {
  const cases: readonly [prefix: string, set: string, address: string][] = [
    ["169.254.169.254/32", "egress_hosts4", "169.254.169.254"],
    ["10.0.0.0/8", "egress_prefixes4", "10.128.0.0"],
    ["10.0.0.0/16", "egress_prefixes4", "10.0.128.0"],
    ["10.0.0.2/31", "egress_prefixes4", "10.0.0.3"],
    ["0.0.0.0/0", "egress_prefixes4", "128.0.0.0"],
    ["fd00::1/128", "egress_hosts6", "fd00::1"],
    ["fd00::/8", "egress_prefixes6", "fd80::"],
    ["::/0", "egress_prefixes6", "8000::"],
  ];
  for (const [prefix, set, address] of cases) {
    for (const action of ["deny", "allow"] as const) {
      const { inet } = policyElements({ ...RULES, mac: MAC, egress: [{ prefix, action }] });
      const value = [action === "deny" ? "drop" : "return"];
      assertEquals(inet, [
        { set: "restricted", key: [MAC], owner: "web/eth0" },
        { set, key: [MAC, address], value, owner: "web/eth0" },
      ], prefix);
    }
  }
});

Deno.test("encodeElements, decodeElements: of policies, what is written is read", () => {
  const rules = validateRules({
    ...RULES,
    mac: MAC,
    isolatedPort: "veth1",
    egress: [{ prefix: "10.1.2.3/8", action: "deny" }, { prefix: "::/0", action: "allow" }],
  });
  for (const table of [bridgePolicyTable(), inetPolicyTable()]) {
    const elements = policyElements(rules)[table.family];
    for (const element of elements) {
      const set = setOf(table, element.set);
      const payload = encodeElements(set, [element], "elements");
      assertEquals(decodeElements(set, payload), [element], element.set);
    }
    // Each set of the table but those of other lengths of prefixes has an element.
    const unused = Object.keys(table.sets).filter((set) =>
      !elements.some((each) => each.set === set)
    );
    assertEquals(unused, table.family === "inet" ? ["egress_hosts4", "egress_hosts6"] : []);
  }
});

Deno.test("validateRules: of rules for one prefix the exception stays; policies need a MAC", () => {
  const egress = [
    { prefix: "10.0.0.1/8", action: "allow" },
    { prefix: "10.0.0.0/8", action: "deny" },
    { prefix: "FD00::/16", action: "deny" },
  ] as const;
  assertEquals(validateRules({ ...RULES, mac: MAC.toUpperCase(), egress }), {
    ...RULES,
    mac: MAC,
    egress: [
      { prefix: "10.0.0.0/8", action: "allow" },
      { prefix: "fd00::/16", action: "deny" },
    ],
  });
  const malformed: Partial<GuestRules>[] = [
    { egress },
    { isolatedPort: "veth1" },
    { mac: MAC, isolatedPort: 'a"b' },
    { mac: "01:00:5e:00:00:01", egress },
    { mac: MAC, egress: [{ prefix: "10.0.0.0", action: "deny" }] },
  ];
  for (const fields of malformed) {
    assertThrows(() => validateRules({ ...RULES, ...fields }), InputError);
  }
});
