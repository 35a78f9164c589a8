/**
 * Healing: what others take away of attached VMs comes back. The kernel tells of most changes, and is looked
 * at now and then for those that it does not tell of.
 *
 * @module
 */

import { checkpoint, pause, turn } from "../checkpoint.ts";
import { describe, TapkitError } from "../errors.ts";
import { sentence } from "../finding.ts";
import { legacyTables } from "../firewall/xtables.ts";
import { Monitor, type Notice } from "../netlink/monitor.ts";
import { Epoll } from "../sys/epoll.ts";
import { inTurns } from "../turns.ts";
import { look } from "./layers/bring.ts";
import { layersOf } from "./layers/kinds.ts";
import type { Both } from "./record/attachment.ts";
import { type HostPaths, hostPaths, recordNames } from "./record/paths.ts";
import { readVm } from "./record/store.ts";
import { Places } from "./places.ts";
import { openHost, OpenSession } from "./session.ts";
import type { Difference, HostOptions, LayerName } from "./types.ts";
import { healVm } from "./verbs/attach.ts";
import { contextOf, lookingAt } from "./verbs/work.ts";

/**
 * What is done about a difference. `auto` repairs what can be while the guest runs, and tells the rest;
 * `recreate` repairs that too, though the VMM has to open its TAP again; `report` repairs nothing.
 */
export type HealMode = "auto" | "report" | "recreate";

/** What healing did, or found. */
export interface HealEvent {
  /** `healed`: differences were repaired. `problem`: some were not, or come back. */
  readonly event: "healed" | "problem";
  /** The VM's name. */
  readonly vm: string;
  /** Sentences. */
  readonly problems: readonly string[];
  /** Whether the VMM has to open its TAP again. */
  readonly tapReplaced?: true;
}

/** How to heal. */
export interface HealOptions extends HostOptions {
  /** What is done about differences: `auto` unless given. */
  readonly mode?: HealMode;
  /** Called with each repair, and with each problem that stays, once until it changes. */
  readonly onEvent?: (event: HealEvent) => void;
}

/** Changes come in flocks: after the first one so long is waited until they are read. */
const GATHER_MS = 50;
/** Passes follow each other so that they take this share of the time at most, where that is no long wait. */
const SHARE = 0.2;
const LONGEST_PAUSE_MS = 400;
/** How often that is looked at which the kernel does not tell of. */
const SILENT_MS = 5000;

/** What was healed so often in a row is healed more and more seldom. */
const PATIENCE = 3;
const FIRST_DELAY_MS = 1000;
const LONGEST_DELAY_MS = 300_000;
/** After so long without a repair all is forgotten. */
const FORGET_MS = 60_000;

const OF_NAMESPACE: readonly LayerName[] = ["netns", "network", "wire", "guard"];
const OF_HOST: readonly LayerName[] = ["network", "rules", "sysctls"];

/**
 * Heals the VMs of a host until `options.signal` is raised.
 *
 * @throws {SyscallError} when the kernel tells nothing of changes
 */
export async function healVms(options: HealOptions = {}): Promise<void> {
  using healer = new Healer(options);
  await healer.run();
}

/** What to look at: layers by VM. */
type Concerns = Map<string, Set<LayerName>>;

/** As unsigned numbers, this and the one above mean all links (linux/netconf.h). */
const NETCONFA_IFINDEX_DEFAULT = 0xfffffffe;

class Healer implements Disposable {
  readonly #options: HealOptions;
  readonly #host: HostPaths;
  readonly #monitor = new Monitor();
  readonly #epoll = new Epoll();
  readonly #session = new OpenSession();
  readonly #concerns: Concerns = new Map();
  readonly #places = new Places();
  /** When the next pass is due; while nothing concerns, at the next look at what is silent. */
  #due = Infinity;
  #silent = 0;
  /** No pass begins before. */
  #rested = 0;
  /** What was last told of links by name. */
  readonly #states = new Map<string, string>();
  /** Namespaces of which nothing was known when they changed. */
  readonly #unknown = new Set<number>();
  readonly #told = new Map<string, string>();
  readonly #tries = new Map<string, Tries>();

  constructor(options: HealOptions) {
    this.#options = options;
    this.#host = hostPaths(options);
    for (const fd of this.#monitor.fds) this.#epoll.add(fd);
    this.#updatePlaces();
  }

  async run(): Promise<void> {
    const { signal } = this.#options;
    const wake = () => this.#epoll.wake();
    signal?.addEventListener("abort", wake);
    try {
      // What happened before this listened.
      this.#concern(recordNames(this.#host));
      while (signal?.aborted !== true) {
        const now = Date.now();
        const heard = await this.#epoll.wait(Math.max(0, Math.min(this.#due, this.#silent) - now));
        if (heard.length > 0) await gather(signal);
        // Who floods this with changes does not keep it from looking at them.
        const until = Date.now() + GATHER_MS;
        for (const notices of this.#monitor.read()) {
          for (const notice of notices) this.#hear(notice);
          if (Date.now() > until) break;
          await turn();
        }
        if (Date.now() >= this.#silent) this.#lookAtSilent();
        if (Date.now() >= this.#due) await this.#pass();
      }
    } finally {
      signal?.removeEventListener("abort", wake);
    }
  }

  /** Notes where to look after a change. */
  #hear(notice: Notice): void {
    const all = () => recordNames(this.#host);
    if (notice.about === "lost") return this.#concern(all());
    if (notice.about === "nftables") {
      const { by, takes, tables } = notice;
      const elements = takes !== "rules" && tables.every((name) => name.startsWith("tapkit"));
      // What commands of tapkit's do for other VMs is nobody's loss.
      if (by?.pid === Deno.pid || elements) return;
      // What keeps the host's own links apart is of the settings.
      return this.#concern(all(), ["rules", "sysctls"]);
    }
    const { about, nsid, index, name, gone } = notice;
    if (nsid !== undefined) {
      const vms = this.#places.ofNamespace(nsid);
      if (vms.length > 0) return this.#concern(vms, OF_NAMESPACE);
      this.#unknown.add(nsid);
      return this.#plan(0);
    }
    if (about === "setting") {
      const ofAll = index === undefined || index >= NETCONFA_IFINDEX_DEFAULT;
      return this.#concern(ofAll ? all() : this.#places.ofIndex(index), ["sysctls"]);
    }
    // Of a link that is there it matters that it may be down, or another bridge's.
    if (name !== undefined) {
      // A bridge's notices come with each port of another VM.
      const state = `${gone} ${index} ${notice.up} ${notice.master}`;
      if (this.#states.get(name) === state) return;
      // Also of a link that is being made: its VM becomes known after it.
      if (gone) this.#states.delete(name);
      else this.#states.set(name, state);
      return this.#concern(this.#places.ofName(name), OF_HOST);
    }
    if (gone && index !== undefined) this.#concern(this.#places.ofIndex(index), OF_HOST);
  }

  /** A pass is due after so long, or a rest. */
  #plan(delayMs: number): void {
    this.#due = Math.min(this.#due, Math.max(Date.now() + delayMs, this.#rested));
  }

  #concern(vms: readonly string[], layers?: readonly LayerName[]): void {
    for (const vm of vms) {
      const known = this.#concerns.get(vm) ?? new Set();
      for (const layer of layers ?? [...OF_NAMESPACE, ...OF_HOST]) known.add(layer);
      this.#concerns.set(vm, known);
    }
    if (vms.length > 0) this.#plan(0);
  }

  /** Old iptables and some settings change without a word. Of VMs that need the same settings one is enough. */
  #lookAtSilent(): void {
    this.#silent = Date.now() + SILENT_MS;
    this.#updatePlaces();
    this.#concern(this.#places.ofEachNeed, ["sysctls"]);
    if (legacyTables().length > 0) this.#concern(recordNames(this.#host), ["rules"]);
  }

  async #pass(): Promise<void> {
    const begun = Date.now();
    this.#due = Infinity;
    if (this.#unknown.size > 0) {
      this.#updatePlaces();
      for (const nsid of this.#unknown) this.#concern(this.#places.ofNamespace(nsid), OF_NAMESPACE);
      this.#unknown.clear();
      this.#due = Infinity;
    }
    const concerns = [...this.#concerns];
    this.#concerns.clear();
    // One session for all: other firewalls and the like are looked up once.
    using session = new OpenSession({ shared: this.#session });
    const healed = new Set<string>();
    const heal = async ([vm, layers]: readonly [string, Set<LayerName>]) => {
      try {
        // Others of this process get their turns: requests, and guests that ask.
        await checkpoint(this.#options.signal);
        if (await this.#heal(vm, layers, session)) healed.add(vm);
      } catch (error) {
        if (this.#options.signal?.aborted === true) return;
        this.#tell({ event: "problem", vm, problems: [describe(error)] });
      }
    };
    for await (const _ of inTurns(concerns, heal, this.#options.signal));
    for (const [thing, tries] of this.#tries) {
      if (isForgotten(tries, Date.now())) this.#tries.delete(thing);
    }
    if (healed.size > 0) this.#updatePlaces(healed);
    const took = Date.now() - begun;
    this.#rested = Date.now() + Math.min(took * (1 / SHARE - 1), LONGEST_PAUSE_MS);
  }

  #updatePlaces(again?: ReadonlySet<string>): void {
    using host = openHost({ ...this.#options, session: this.#session });
    this.#places.update(host, again);
  }

  /** Returns whether something was repaired. */
  async #heal(vm: string, only: ReadonlySet<LayerName>, session: OpenSession): Promise<boolean> {
    const { mode = "auto" } = this.#options;
    const found = await this.#look(vm, [...only], session);
    if (found.length === 0) {
      if (only.size > 1) this.#told.delete(vm);
      return false;
    }
    const lost = found.filter(({ repair }) =>
      mode === "report" || mode === "auto" && repair === "recreate"
    );
    if (lost.length > 0) this.#tell({ event: "problem", vm, problems: lost.map(sentence) });
    if (lost.length === found.length) return false;
    const wait = this.#patience(vm, found);
    if (wait > 0) {
      this.#concern([vm], [...only]);
      this.#plan(wait);
      return false;
    }
    const { onEvent: _, mode: __, ...options } = this.#options;
    const done = await healVm(vm, { only: [...only], recreate: mode === "recreate" }, {
      ...options,
      session,
    });
    if (done === undefined || done.changes.length === 0) return false;
    this.#options.onEvent?.({
      event: "healed",
      vm,
      problems: done.found.map(sentence),
      ...done.tapReplaced ? { tapReplaced: true } : {},
    });
    return true;
  }

  /** What differs, without a lock; of a VM that is being changed nothing does. */
  async #look(
    vm: string,
    only: readonly LayerName[],
    session: OpenSession,
  ): Promise<Difference[]> {
    let at: Both;
    try {
      const stored = readVm(this.#host, vm);
      if (stored?.is !== "attached") return [];
      at = stored.at;
    } catch (error) {
      if (error instanceof TapkitError) return [];
      throw error;
    }
    using host = openHost({ ...this.#options, session });
    using context = contextOf<Both>(lookingAt(host), undefined);
    const found = await look(layersOf(host).vm, context, at, only);
    return found.filter(({ repair, ignored }) => !ignored && repair !== "none");
  }

  /** How long to wait before this is healed again, which somebody may be undoing each time. */
  #patience(vm: string, found: readonly Difference[]): number {
    const now = Date.now();
    const things = [...new Set(found.map(({ object }) => `${vm}: ${object}`))];
    const tries = things.map((thing): Tries => {
      const known = this.#tries.get(thing) ?? { count: 0, last: 0 };
      return isForgotten(known, now) ? { count: 0, last: 0 } : known;
    });
    const wait = Math.max(...tries.map(({ count, last }) => last + delayAfter(count) - now));
    if (wait > 0) return wait;
    for (const [index, { count }] of tries.entries()) {
      this.#tries.set(things[index]!, { count: count + 1, last: now });
    }
    const most = Math.max(...tries.map(({ count }) => count)) + 1;
    if (delayAfter(most) > 0) {
      const problem =
        `was repaired ${most} times in a row: somebody takes it away again; the next ` +
        `repair is in ${delayAfter(most) / 1000} s at the earliest`;
      const { object } = found[tries.findIndex(({ count }) => count === most - 1)] ?? found[0]!;
      this.#tell({ event: "problem", vm, problems: [`${object} ${problem}`] });
    }
    return 0;
  }

  #tell(event: HealEvent): void {
    const text = event.problems.join("\n");
    if (this.#told.get(event.vm) === text) return;
    this.#told.set(event.vm, text);
    this.#options.onEvent?.(event);
  }

  [Symbol.dispose](): void {
    this.#session[Symbol.dispose]();
    this.#epoll[Symbol.dispose]();
    this.#monitor[Symbol.dispose]();
  }
}

async function gather(signal: AbortSignal | undefined): Promise<void> {
  try {
    await pause(GATHER_MS, signal);
  } catch {
    // Then there is nothing to heal any more.
  }
}

interface Tries {
  readonly count: number;
  readonly last: number;
}

function isForgotten({ count, last }: Tries, now: number): boolean {
  return now - last > Math.max(FORGET_MS, 2 * delayAfter(count));
}

function delayAfter(count: number): number {
  return count < PATIENCE
    ? 0
    : Math.min(FIRST_DELAY_MS * 2 ** (count - PATIENCE), LONGEST_DELAY_MS);
}
