/**
 * What happens on the host, told to whoever listens.
 *
 * @module
 */

import type { Attachment } from "../vm/record/attachment.ts";
import { recordOf } from "../vm/record/derive.ts";
import { attachedSide, sideOf } from "../vm/record/store.ts";
import type { VmRecord } from "../vm/types.ts";

/** Something that happened. */
export interface ResidentEvent {
  /** `denied`: something was in the way of a request. `dropped`: this listener was too slow, and hears no more. */
  readonly event:
    | "attached"
    | "changed"
    | "removed"
    | "lease"
    | "healed"
    | "denied"
    | "problem"
    | "dropped";
  /** ISO 8601. */
  readonly time: string;
  /** The VM's name; absent if it is about none. */
  readonly vm?: string;
  /** Of `attached` and `changed`. */
  readonly record?: VmRecord;
  /** Of `lease`: `"eth0"`. */
  readonly interface?: string;
  /** Of `healed`: what differed. Of the others: what there is. */
  readonly message?: string;
  /** Of `healed`: the VMM has to open the TAP again. */
  readonly tapReplaced?: true;
}

/** How many events a listener may leave unread. */
const MOST_UNREAD = 1000;

/** What a listener has not read yet. */
interface Listener {
  readonly queue: ResidentEvent[];
  wake: () => void;
}

/** Tells listeners of events. None of them holds up another, or what happens. */
export class Events {
  readonly #listeners = new Set<Listener>();
  /** The text of each attached VM's record; what is told is what differs from it. */
  #known: Map<string, string> | undefined;

  tell(event: Omit<ResidentEvent, "time">): void {
    const told: ResidentEvent = { ...event, time: new Date().toISOString() };
    for (const listener of this.#listeners) {
      if (listener.queue.length >= MOST_UNREAD) {
        const message = `${MOST_UNREAD} events were not read: list the VMs, and listen again`;
        listener.queue.push({ event: "dropped", message, time: told.time });
        this.#listeners.delete(listener);
      } else listener.queue.push(told);
      listener.wake();
    }
  }

  /**
   * Tells what became of VMs. The first call tells nothing.
   *
   * @param names the VMs that the list is complete for; absent if it is for all
   */
  follow(attachments: readonly Attachment[], names?: ReadonlySet<string>): void {
    const first = this.#known === undefined;
    const known = this.#known ??= new Map();
    const there = new Set<string>();
    for (const stored of attachments) {
      const name = sideOf(stored)?.spec.id.name;
      if (name === undefined) continue;
      there.add(name);
      const at = attachedSide(stored);
      // One that is being changed is told of when that has ended.
      if (at === undefined || stored.is !== "attached") continue;
      const record = recordOf(at);
      const text = JSON.stringify(record);
      const had = known.get(name);
      known.set(name, text);
      if (first || had === text) continue;
      this.tell({ event: had === undefined ? "attached" : "changed", vm: name, record });
    }
    for (const name of [...known.keys()]) {
      if (there.has(name) || names !== undefined && !names.has(name)) continue;
      known.delete(name);
      this.tell({ event: "removed", vm: name });
    }
  }

  /** Events from now on, until `signal` is aborted. */
  async *listen(signal: AbortSignal): AsyncGenerator<ResidentEvent> {
    const listener: Listener = { queue: [], wake: () => {} };
    const wake = () => listener.wake();
    signal.addEventListener("abort", wake);
    this.#listeners.add(listener);
    try {
      while (!signal.aborted) {
        const event = listener.queue.shift();
        if (event !== undefined) yield event;
        else if (!this.#listeners.has(listener)) return;
        else await new Promise<void>((resolve) => listener.wake = resolve);
      }
    } finally {
      signal.removeEventListener("abort", wake);
      this.#listeners.delete(listener);
    }
  }
}
