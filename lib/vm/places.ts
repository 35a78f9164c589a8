/**
 * Which links and namespaces are whose: where the kernel tells of a change, whom it concerns.
 *
 * @module
 */

import type { NetlinkConnection } from "../netlink/connection.ts";
import { getLink } from "../netlink/link.ts";
import type { Attachment, Both } from "./record/attachment.ts";
import { eachRecord } from "./record/memory.ts";
import { servedVm } from "./record/served.ts";
import type { Host } from "./session.ts";
import { needsAsText } from "./settings.ts";

/** Where the things of one VM are. */
interface Place {
  readonly attachment: Attachment;
  readonly names: readonly string[];
  readonly indices: readonly number[];
  readonly namespaces: readonly number[];
  readonly need: string;
}

/** The VMs by the names and numbers of their links, and by the numbers of their namespaces. */
export class Places {
  readonly #places = new Map<string, Place>();
  readonly #names = new Index<string>(({ names }) => names);
  readonly #indices = new Index<number>(({ indices }) => indices);
  readonly #namespaces = new Index<number>(({ namespaces }) => namespaces);

  /**
   * Takes in which VMs there are now. Only those are looked at whose records changed.
   *
   * @param again VMs to look at in any case: what was made anew has other numbers
   */
  update(host: Host, again: ReadonlySet<string> = new Set()): void {
    const there = new Set<string>();
    for (const [vm, attachment] of eachRecord(host, { note: () => {} })) {
      if (attachment.is !== "attached") continue;
      there.add(vm);
      if (!again.has(vm) && this.#places.get(vm)?.attachment === attachment) continue;
      this.#put(vm, placeOf(host.session.nl, attachment, attachment.at));
    }
    if (there.size === this.#places.size) return;
    for (const vm of [...this.#places.keys()]) if (!there.has(vm)) this.#put(vm, undefined);
  }

  #put(vm: string, place: Place | undefined): void {
    const before = this.#places.get(vm);
    for (const index of [this.#names, this.#indices, this.#namespaces]) {
      if (before !== undefined) index.remove(vm, before);
      if (place !== undefined) index.add(vm, place);
    }
    if (place === undefined) this.#places.delete(vm);
    else this.#places.set(vm, place);
  }

  /** A VM for each set of settings that VMs need. */
  get ofEachNeed(): readonly string[] {
    return [...new Map([...this.#places].map(([vm, { need }]) => [need, vm])).values()];
  }

  ofName(name: string): readonly string[] {
    return this.#names.of(name);
  }

  ofIndex(index: number): readonly string[] {
    return this.#indices.of(index);
  }

  ofNamespace(nsid: number): readonly string[] {
    return this.#namespaces.of(nsid);
  }
}

/** VMs by a key of their places. */
class Index<K> {
  readonly #vms = new Map<K, Set<string>>();
  readonly #keysOf: (place: Place) => readonly K[];

  constructor(keysOf: (place: Place) => readonly K[]) {
    this.#keysOf = keysOf;
  }

  add(vm: string, place: Place): void {
    for (const key of this.#keysOf(place)) {
      const vms = this.#vms.get(key);
      if (vms === undefined) this.#vms.set(key, new Set([vm]));
      else vms.add(vm);
    }
  }

  remove(vm: string, place: Place): void {
    for (const key of this.#keysOf(place)) {
      const vms = this.#vms.get(key);
      if (vms?.delete(vm) && vms.size === 0) this.#vms.delete(key);
    }
  }

  of(key: K): readonly string[] {
    return [...this.#vms.get(key) ?? []];
  }
}

function placeOf(nl: NetlinkConnection, attachment: Attachment, at: Both): Place {
  const names = [...new Set(at.facts.networks.flatMap(linksOf))];
  const links = names.flatMap((name) => getLink(nl, name) ?? []);
  return {
    attachment,
    names,
    indices: links.map(({ index }) => index),
    namespaces: links.flatMap(({ peerNsid }) => peerNsid ?? []),
    need: needsAsText(servedVm(at)),
  };
}

/** The host's links of an interface: the end of its pair, and the bridge. */
function linksOf({ attachment, reach }: Both["facts"]["networks"][number]): string[] {
  const made = attachment.result?.interfaces.filter(({ sandbox }) => !sandbox) ?? [];
  return [...made.map(({ name }) => name), reach?.hostEnd, reach?.bridge, reach?.link]
    .filter((name) => name !== undefined && name !== "") as string[];
}
