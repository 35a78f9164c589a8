/** doctor without a host: what it makes of checks, and how it prints them. */

import { assertEquals, assertRejects } from "@std/assert";
import { formatCheck, formatSummary } from "../../lib/cli/check-table.ts";
import { type Check, fine, verdict } from "../../lib/doctor/check.ts";
import { CHECKS } from "../../lib/doctor/checks.ts";
import { examineHost } from "../../lib/doctor/examine.ts";
import { TapkitError } from "../../lib/errors.ts";

const NOWHERE = { stateDir: "/nonexistent/state", confDir: "/nonexistent/net.d" };

Deno.test("CHECKS: names are unique, and what a check needs comes before it", () => {
  const names = CHECKS.map(({ name }) => name);
  assertEquals(names.length, new Set(names).size);
  const early = CHECKS.filter(({ needs }, index) =>
    needs !== undefined && !names.slice(0, index).includes(needs)
  );
  assertEquals(early, []);
});

Deno.test("CHECKS: each has a test in which it fails", () => {
  const directory = new URL("../e2e/", import.meta.url);
  const tests = [...Deno.readDirSync(directory)].filter(({ name }) => name.startsWith("doctor-"))
    .map(({ name }) => Deno.readTextFileSync(new URL(name, directory))).join();
  const named = (name: string) =>
    [`failed: ["${name}"`, `failed, ["${name}"`, `"${name}",`, `of("${name}")`, `"${name}": [`]
      .some((text) => tests.includes(text));
  assertEquals(CHECKS.map(({ name }) => name).filter((name) => !named(name)), []);
});

Deno.test("verdict: names up to eight problems, each mend once", () => {
  const problems = Array.from({ length: 10 }, (_, n) => ({ what: `thing ${n}`, mend: "mend it" }));
  const { ok, detail, mend } = verdict(problems, "good");
  assertEquals([ok, mend], [false, "mend it"]);
  assertEquals(detail.split("; ").slice(-2), ["thing 7", "and 2 more"]);
  assertEquals(verdict([], "good"), { ok: true, detail: "good", mend: "" });
});

Deno.test("examineHost: an error is a finding, and what needs a failed check is not looked at", async () => {
  const checks: readonly Check[] = [
    {
      name: "one",
      run() {
        throw new TapkitError("it is broken", { mend: "mend it" });
      },
    },
    { name: "two", needs: "one", run: () => fine("never seen") },
    { name: "three", needs: "two", run: () => fine("never seen") },
    { name: "four", run: () => fine("is well") },
  ];
  assertEquals(await Array.fromAsync(examineHost(NOWHERE, checks)), [
    { name: "one", ok: false, detail: "it is broken", mend: "mend it" },
    { name: "two", ok: false, detail: "was not looked at: one failed", mend: "mend one first" },
    { name: "three", ok: false, detail: "was not looked at: two failed", mend: "mend two first" },
    { name: "four", ok: true, detail: "is well", mend: "" },
  ]);
});

Deno.test("examineHost: repairs only if it is asked to, looks again, and tells of a repair that failed", async () => {
  let broken = true;
  const problems = () => broken ? [{ what: "it is broken", mend: "mend it" }] : [];
  const mends: Check = {
    name: "mends",
    run: () =>
      verdict(problems(), "is well", () => {
        broken = false;
        return Promise.resolve(["mended it"]);
      }),
  };
  const fails: Check = {
    name: "fails",
    run: () =>
      verdict([{ what: "it is broken", mend: "mend it" }], "", () => {
        return Promise.reject(new TapkitError("no space is left"));
      }),
  };
  const looked = await Array.fromAsync(examineHost(NOWHERE, [mends, fails]));
  assertEquals([looked.map(({ ok }) => ok), broken], [[false, false], true]);
  const repaired = await Array.fromAsync(examineHost({ ...NOWHERE, fix: true }, [mends, fails]));
  assertEquals(repaired, [
    { name: "mends", ok: true, detail: "is well", mend: "", fixed: ["mended it"] },
    {
      name: "fails",
      ok: false,
      detail: "it is broken; the repair failed: no space is left",
      mend: "mend it",
      fixed: [],
    },
  ]);
  const again = await Array.fromAsync(examineHost({ ...NOWHERE, fix: true }, [mends]));
  assertEquals(again, [{ name: "mends", ok: true, detail: "is well", mend: "" }]);
});

Deno.test("examineHost: what may have changed while it looked is looked at once more", async () => {
  let looks = 0;
  const check: Check = {
    name: "changes",
    twice: true,
    run: () => verdict(++looks === 1 ? [{ what: "is half done", mend: "wait" }] : [], "is well"),
  };
  const found = await Array.fromAsync(examineHost(NOWHERE, [check, { ...check, name: "again" }]));
  assertEquals(found.map(({ ok }) => ok), [true, true]);
  assertEquals(looks, 3);
});

Deno.test("examineHost: a signal ends it between two checks", async () => {
  const stop = new AbortController();
  const seen: string[] = [];
  const check = (name: string): Check => ({
    name,
    run() {
      seen.push(name);
      stop.abort(new TapkitError("stopped"));
      return fine("is well");
    },
  });
  const examining = examineHost({ ...NOWHERE, signal: stop.signal }, [check("one"), check("two")]);
  await assertRejects(() => Array.fromAsync(examining), TapkitError, "stopped");
  assertEquals(seen, ["one"]);
});

Deno.test("formatCheck: the state, the name, and what else there is below the detail", () => {
  const check = { name: "VMs", ok: false, detail: "one two three four", mend: "mend it" };
  assertEquals(
    formatCheck({ ...check, fixed: ["did it"] }, 66).split("\n"),
    [
      `FAIL  VMs${" ".repeat(27)}one two three four`,
      `${" ".repeat(36)}fixed: did it`,
      `${" ".repeat(36)}mend: mend it`,
    ],
  );
  assertEquals(formatCheck({ ...check, ok: true, mend: "" }, 20).split("\n"), [
    `ok    VMs${" ".repeat(27)}one two three four`,
  ]);
  assertEquals(formatSummary([check, { ...check, ok: true }]), "1 of 2 checks failed");
  assertEquals(formatSummary([{ ...check, ok: true }]), "all 1 checks passed");
});
