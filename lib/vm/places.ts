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
  #places = new Map<string, Place>();
  #names: Index<string> = new Map();
  #indices: Index<number> = new Map();
  #namespaces: Index<number> = new Map();

  /**
   * Takes in which VMs there are now. Only those are looked at whose records changed.
   *
   * @param again VMs to look at in any case: what was made anew has other numbers
   */
  update(host: Host, again: ReadonlySet<string> = new Set()): void {
    const places = new Map<string, Place>();
    let changed = false;
    for (const [vm, attachment] of eachRecord(host, { note: () => {} })) {
      if (attachment.is !== "attached") continue;
      const known = again.has(vm) ? undefined : this.#places.get(vm);
      const same = known?.attachment === attachment;
      places.set(vm, same ? known : placeOf(host.session.nl, attachment, attachment.at));
      changed ||= !same;
    }
    if (!changed && places.size === this.#places.size) return;
    this.#places = places;
    this.#names = indexBy(places, ({ names }) => names);
    this.#indices = indexBy(places, ({ indices }) => indices);
    this.#namespaces = indexBy(places, ({ namespaces }) => namespaces);
  }

  /** A VM for each set of settings that VMs need. */
  get ofEachNeed(): readonly string[] {
    return [...new Map([...this.#places].map(([vm, { need }]) => [need, vm])).values()];
  }

  ofName(name: string): readonly string[] {
    return this.#names.get(name) ?? [];
  }

  ofIndex(index: number): readonly string[] {
    return this.#indices.get(index) ?? [];
  }

  ofNamespace(nsid: number): readonly string[] {
    return this.#namespaces.get(nsid) ?? [];
  }
}

type Index<K> = ReadonlyMap<K, readonly string[]>;

function indexBy<K>(
  places: ReadonlyMap<string, Place>,
  keys: (place: Place) => readonly K[],
): Index<K> {
  const index = new Map<K, string[]>();
  for (const [vm, place] of places) {
    for (const key of new Set(keys(place))) {
      const vms = index.get(key);
      if (vms === undefined) index.set(key, [vm]);
      else vms.push(vm);
    }
  }
  return index;
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
