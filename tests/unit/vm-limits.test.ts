import { assertEquals, assertMatch, assertThrows } from "@std/assert";
import type { Firewall } from "../../lib/firewall/firewall.ts";
import type { GuestRules } from "../../lib/firewall/model.ts";
import { LimitsError } from "../../lib/firewall/policy.ts";
import { applyRules, recordedLimits } from "../../lib/vm/limits.ts";

const RULES: GuestRules = {
  owner: "web/eth0",
  link: "ignite0",
  addresses: ["172.18.0.2"],
  masquerade: true,
  forward: true,
  ports: [],
  mac: "02:00:00:00:00:0a",
  limits: { link: "ignite0", connections: 100, openings: 10 },
};

/** The firewall of a kernel without what limits are made of. */
function withoutLimits(): { firewall: Firewall; calls: GuestRules[] } {
  const calls: GuestRules[] = [];
  const take = (rules: GuestRules) => {
    if (rules.limits !== undefined) throw new LimitsError("no connlimit", { mend: "get it" });
    calls.push(rules);
    return true;
  };
  const firewall = { add: take, replace: (_: GuestRules, rules: GuestRules) => take(rules) };
  return { firewall: firewall as unknown as Firewall, calls };
}

Deno.test("applyRules: without the kernel's means what nobody asked for is left out, and said", () => {
  for (const old of [undefined, RULES]) {
    const { firewall, calls } = withoutLimits();
    const notes: string[] = [];
    const request = { name: "web" };
    const asked = {
      wanted: RULES,
      request,
      note: (text: string) => notes.push(text),
      ...old && { old },
    };
    const { limits: _, ...rest } = RULES;
    assertEquals(applyRules(firewall, asked), rest);
    assertEquals(calls, [rest]);
    assertMatch(notes.join(), /no connlimit: one guest may take the network from all: get it/);
    const wished = { ...asked, request: { ...request, maxConnections: 100 } };
    assertThrows(() => applyRules(firewall, wished), LimitsError);
  }
});

Deno.test("recordedLimits: what was asked for, and not the defaults", () => {
  assertEquals(recordedLimits({ name: "web" }), {});
  assertEquals(recordedLimits({ name: "web", maxConnections: "default" }), {});
  assertEquals(
    recordedLimits({ name: "web", maxConnections: "none", newConnections: 5 }),
    { maxConnections: "none", newConnections: 5 },
  );
});
