/** doctor on a throwaway host, and what it says of one thing that is broken. */

import { assertEquals, assertMatch } from "@std/assert";
import type { HostCheck } from "../../mod.ts";
import { scriptWords } from "./bundle.ts";
import type { Host } from "./host.ts";

/** What doctor found. */
export interface Examination {
  readonly code: number;
  readonly stderr: string;
  readonly checks: readonly HostCheck[];
  /** The names of the checks that failed. */
  readonly failed: readonly string[];
  /** One check by its name. */
  of(name: string): HostCheck;
}

/** How doctor is run. */
export interface Examining {
  readonly args?: readonly string[];
  /** A command that runs the one that follows it. */
  readonly under?: readonly string[];
}

/** Runs doctor. */
export async function examine(
  host: Host,
  { args = [], under = [] }: Examining = {},
): Promise<Examination> {
  const [command = "", ...words] = [...under, Deno.execPath(), ...scriptWords("doctor"), ...args];
  const { code, stdout, stderr } = await host.run(command, words, {
    timeoutMs: 120_000,
    env: { TAPKIT_SOCKET: "" },
  });
  if (!stdout.startsWith("{")) throw new Error(`doctor: exit ${code}: ${stderr}${stdout}`);
  const { checks }: { checks: HostCheck[] } = JSON.parse(stdout);
  const of = (name: string) => {
    const found = checks.find((check) => check.name === name);
    if (found === undefined) throw new Error(`doctor has no check "${name}"`);
    return found;
  };
  return {
    code,
    stderr,
    checks,
    failed: checks.filter(({ ok }) => !ok).map(({ name }) => name),
    of,
  };
}

/** What doctor has to say of something that is broken. */
export interface Broken extends Examining {
  /** The checks that fail, and no others. */
  readonly failed: readonly string[];
  /** Of the first of them. */
  readonly detail: RegExp;
  readonly mend: RegExp;
  /** What `--fix` says of each check that it repairs. */
  readonly fixed?: Readonly<Record<string, RegExp>>;
  /** The checks that still fail then. */
  readonly left?: readonly string[];
}

/** A new link's IPv6 address comes into being by itself, and the server's log by the server. */
export const SETTLING = [/ fe80:/, / \/var\/lib\/tapkit\/serve-dhcp\.log /];

/** Asserts what doctor finds, that it changes nothing, and what `--fix` repairs, once. */
export async function assertFound(host: Host, broken: Broken): Promise<void> {
  const { failed, detail, mend, fixed = {}, left = [], args = [], under = [] } = broken;
  const before = await host.snapshot();
  const found = await examine(host, { args, under });
  const said = JSON.stringify(found.checks.filter(({ ok }) => !ok), null, 1);
  assertEquals([found.failed, found.code, found.stderr], [failed, 3, ""], said);
  const first = found.of(failed[0]!);
  assertMatch(first.detail, detail);
  assertMatch(first.mend, mend);
  assertEquals(found.checks.filter((check) => "fixed" in check), []);
  await host.assertRestored(before, { strict: true, except: SETTLING });
  if (broken.fixed === undefined) return;

  const repaired = await examine(host, { args: [...args, "--fix"], under });
  const after = JSON.stringify(repaired.checks.filter(({ ok, fixed }) => !ok || fixed), null, 1);
  const did = repaired.checks.flatMap(({ name, fixed }) => fixed?.length ? [name] : []);
  assertEquals([did, repaired.failed], [Object.keys(fixed), left], after);
  for (const [name, pattern] of Object.entries(fixed)) {
    assertMatch(repaired.of(name).fixed!.join("; "), pattern);
  }
  const again = await examine(host, { args: [...args, "--fix"], under });
  const twice = again.checks.flatMap(({ name, fixed }) => fixed?.length ? [name] : []);
  assertEquals([twice, again.failed], [[], left]);
}
