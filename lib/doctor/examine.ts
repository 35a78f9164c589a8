/**
 * Examining a host: every check, and what is to be done about what each found.
 *
 * @module
 */

import { pause } from "../checkpoint.ts";
import { type Check, problemOf, type Verdict } from "./check.ts";
import { CHECKS } from "./checks.ts";
import { Examined, type ExamineOptions } from "./host.ts";

/** What one check found. */
export interface HostCheck {
  /** The check's name. */
  readonly name: string;
  /** Whether all is well. */
  readonly ok: boolean;
  /** What was found, also where all is well. */
  readonly detail: string;
  /** What to do; `""` where there is nothing to do. */
  readonly mend: string;
  /** What `fix` did; `ok` is how it is after that. */
  readonly fixed?: readonly string[];
}

/**
 * Examines the host: whether it has what tapkit needs, what keeps guests' traffic from passing, and
 * what earlier calls left. Changes nothing, unless `fix` is given: then what can be repaired without
 * harm to a guest that runs is repaired.
 *
 * The kernel's features are tried in network namespaces that are made for it. The kernel may load
 * modules for that.
 *
 * @param checks only a test has others
 * @returns a result for each check, in a fixed order
 */
export async function* examineHost(
  options: ExamineOptions = {},
  checks: readonly Check[] = CHECKS,
): AsyncGenerator<HostCheck> {
  const failed = new Set<string>();
  using open = new Reopened(options);
  for (const check of checks) {
    // Without a turn of the event loop no signal would be heard.
    await pause(0, options.signal);
    let found = await run(check, open.host, failed);
    if (!found.ok && check.twice) {
      open.again();
      found = await run(check, open.host, failed);
    }
    const done = options.fix && found.fix !== undefined ? await repair(found, open) : undefined;
    const { fix: _, ...now } = done === undefined ? found : await run(check, open.host, failed);
    if (!now.ok) failed.add(check.name);
    yield { name: check.name, ...now, ...done === undefined ? {} : done(now) };
  }
}

/** The host, read anew after something was changed. */
class Reopened implements Disposable {
  readonly #options: ExamineOptions;
  host: Examined;

  constructor(options: ExamineOptions) {
    this.#options = options;
    this.host = new Examined(options);
  }

  again(): void {
    this.host[Symbol.dispose]();
    this.host = new Examined(this.#options);
  }

  [Symbol.dispose](): void {
    this.host[Symbol.dispose]();
  }
}

async function run(
  { name, needs, run }: Check,
  host: Examined,
  failed: ReadonlySet<string>,
): Promise<Verdict> {
  if (needs !== undefined && failed.has(needs)) {
    return { ok: false, detail: `was not looked at: ${needs} failed`, mend: `mend ${needs} first` };
  }
  try {
    return await run(host);
  } catch (error) {
    host.options.signal?.throwIfAborted();
    const { what, mend } = problemOf(error, `see where it fails: TAPKIT_DEBUG=1 doctor`);
    host.options.detail?.(`${name}: ${error instanceof Error ? error.stack : error}`);
    return { ok: false, detail: what, mend };
  }
}

/** Repairs, and returns what is to be said of it beside what is found then. */
async function repair(
  { fix }: Verdict,
  open: Reopened,
): Promise<(now: Verdict) => Pick<HostCheck, "fixed"> & Partial<Verdict>> {
  try {
    const fixed = await fix!();
    return () => ({ fixed });
  } catch (error) {
    open.host.options.signal?.throwIfAborted();
    const { what } = problemOf(error, "");
    return ({ detail }) => ({ fixed: [], detail: `${detail}; the repair failed: ${what}` });
  } finally {
    open.again();
  }
}
