/**
 * What tapkit changed of the kernel's settings, and what they were: so each goes back with the last
 * guest that needs it.
 *
 * Written before the effect. It is of one boot and one network namespace, whichever state
 * directories the guests are of.
 *
 * @module
 */

import { discardFile, removeIfEmpty, replaceFile } from "../files.ts";
import { readText } from "../sys/text.ts";
import { bootId } from "../netlink/identity.ts";
import type { LinkPair } from "./guest-elements.ts";

/** A setting by its path below /proc/sys, and its value. */
export interface Setting {
  readonly path: string;
  readonly value: string;
}

/** One that was changed. */
export interface Change {
  /** The link it is of, by name and index: a later link of that name has nothing to do with it. */
  readonly link?: { readonly name: string; readonly index: number };
  /** What is to be written, in this order, when nobody needs the change any more. */
  readonly back: readonly Setting[];
  /** Whether the link was given the qdisc that the filter is on which goes with the setting. */
  readonly qdisc?: true;
  /** Not of a setting: the links that were open to 127.0.0.0/8 before plugins of others ran. */
  readonly open?: readonly string[];
  /** Of forwarding: the links that are kept apart, from each to which. */
  readonly apart?: readonly LinkPair[];
}

/** Changes by the paths of the settings, in their order. */
export type Changes = Readonly<Record<string, Change>>;

interface Content {
  readonly boot: string;
  readonly changes: Changes;
}

/** Gone after a reboot, as the settings are. */
const RUN_DIRECTORY = "/run/tapkit";

/** The journal of the calling thread's network namespace. */
export class Journal {
  readonly #directory: string;

  /** @param directory only a test names another */
  constructor(directory = RUN_DIRECTORY) {
    this.#directory = directory;
  }

  read(): Changes {
    const text = readText(this.#path());
    if (text === undefined) return {};
    const { boot, changes } = parse(text);
    return boot === bootId() ? changes : {};
  }

  /** Adds a change, or puts it in the place of what is known of that setting. */
  remember(path: string, change: Change): void {
    this.#write({ ...this.read(), [path]: change });
  }

  forget(path: string): void {
    const { [path]: _, ...rest } = this.read();
    this.#write(rest);
  }

  /** Takes away what a process that was killed left of an empty journal. */
  tidy(): void {
    if (Object.keys(this.read()).length > 0) return;
    discardFile(this.#path());
    removeIfEmpty(this.#directory);
  }

  #write(changes: Changes): void {
    if (Object.keys(changes).length === 0) {
      discardFile(this.#path());
      removeIfEmpty(this.#directory);
      return;
    }
    Deno.mkdirSync(this.#directory, { recursive: true, mode: 0o755 });
    const content: Content = { boot: bootId(), changes };
    replaceFile(this.#path(), `${JSON.stringify(content)}\n`);
  }

  #path(): string {
    const { ino } = Deno.statSync("/proc/thread-self/ns/net");
    return `${this.#directory}/settings-${ino}.json`;
  }
}

/** Nobody but root writes it; what is damaged all the same is ignored. */
function parse(text: string): Content {
  try {
    const { boot, changes } = JSON.parse(text);
    return { boot, changes: changes ?? {} };
  } catch {
    return { boot: "", changes: {} };
  }
}
