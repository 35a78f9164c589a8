/**
 * What a check of the host is.
 *
 * @module
 */

import { describe, TapkitError } from "../errors.ts";
import type { Examined } from "./host.ts";

/** One thing that is wrong. */
export interface Problem {
  /** A sentence without a full stop: `"ufw drops what is forwarded"`. */
  readonly what: string;
  /** What to do about it, in the imperative. */
  readonly mend: string;
}

/** What a check found. */
export interface Verdict {
  readonly ok: boolean;
  /** What was found, also where all is well. */
  readonly detail: string;
  /** What to do; `""` where there is nothing to do. */
  readonly mend: string;
  /** Repairs what can be repaired without harm to a guest that runs; says what it did. */
  readonly fix?: Fix;
}

/** A repair. Doing it again does nothing. */
export type Fix = () => Promise<readonly string[]>;

/** A check, as data. */
export interface Check {
  readonly name: string;
  /** A check that has to pass first: without it this one says nothing new. */
  readonly needs?: string;
  /**
   * Whether what it finds may have been the work of a command that has ended by then: VMs come and go
   * while it looks. Then it looks once more, at records that are read anew.
   */
  readonly twice?: true;
  /** Looks at the host and changes nothing. An error that it throws is what is wrong. */
  run(host: Examined): Verdict | Promise<Verdict>;
}

/** The verdict that all is well. */
export function fine(detail: string): Verdict {
  return { ok: true, detail, mend: "" };
}

/** More problems of one kind than this are counted only. */
const MOST_LISTED = 8;

/**
 * The verdict on a list of problems.
 *
 * @param good what to say where there are none
 */
export function verdict(problems: readonly Problem[], good: string, fix?: Fix): Verdict {
  if (problems.length === 0) return fine(good);
  return {
    ok: false,
    detail: listed(problems.map(({ what }) => what)),
    mend: listed(problems.map(({ mend }) => mend)),
    ...fix === undefined ? {} : { fix },
  };
}

function listed(sentences: readonly string[]): string {
  const all = [...new Set(sentences)];
  const more = all.length - MOST_LISTED;
  return [...all.slice(0, MOST_LISTED), ...more > 0 ? [`and ${more} more`] : []].join("; ");
}

/** `"no VM"`, `"1 VM"`, `"2 VMs"`. */
export function count(number: number, noun: string): string {
  return number === 0 ? `no ${noun}` : `${number} ${noun}${number === 1 ? "" : "s"}`;
}

/** An error as a problem. */
export function problemOf(error: unknown, otherwise: string): Problem {
  if (!(error instanceof TapkitError)) return { what: describe(error), mend: otherwise };
  return { what: error.message, mend: error.mend ?? otherwise };
}

/** The problem of what `act` throws; none if it does not throw. */
export async function tried(
  act: () => unknown,
  { what, mend }: { readonly what: string; readonly mend: string },
): Promise<Problem[]> {
  try {
    await act();
    return [];
  } catch (error) {
    const problem = problemOf(error, mend);
    return [{ what: `${what}: ${problem.what}`, mend: problem.mend }];
  }
}
