/**
 * The layer of the TAPs, and of what joins each to its interface.
 *
 * @module
 */

import { deleteLinkGroup } from "../../netlink/link.ts";
import { LINK_GROUP } from "../../cni/plugins/veth.ts";
import type { Both, NetworkFact } from "../record/attachment.ts";
import { linkNames } from "../record/identity.ts";
import { resolveOwner } from "../users.ts";
import { addWire, checkWire, removeWire, type Wireable } from "../wire/wires.ts";
import type { Layer } from "./layer.ts";

/** The TAP of each interface, `vm_eth0`, …, joined to it in the VM's mode. */
export const wireLayer: Layer<Both> = {
  name: "wire",
  on: "network",

  want: ({ spec: { tapOwner, queues }, facts }) => [tapOwner, queues, facts.networks.map(nameOf)],

  describe: ({ facts }) =>
    facts.networks.map((fact) => `TAP "${linkNames(nameOf(fact)).tap}"`).join(", "),

  observe({ vm }, { spec, facts }) {
    const inside = vm.find(facts.netns);
    if (inside === undefined) return [];
    return facts.networks.flatMap((fact) => {
      if (fact.link === undefined || fact.wire === undefined) return [];
      const { mode } = fact.wire;
      return checkWire(inside.nl, { ...wireable(fact, spec), mode })
        .map((finding) => ({ layer: "wire" as const, ...finding, repair: "recreate" as const }));
    });
  },

  make({ host, vm, undo, found }, to, before) {
    const { spec: { mode, tapOwner }, facts } = to;
    const { netns, nl } = vm.require(facts.netns);
    const owner = tapOwner === undefined ? {} : resolveOwner(tapOwner);
    const request = { netns, nl, undo, note: host.note, tap: vm.takeTap(), ...owner };
    // On an interface that stays, the mode does too: it has moved its addresses, or not.
    const stays = !found.some(({ layer, repair }) => repair === "recreate" && layer !== "wire");
    const networks = facts.networks.map((fact, index) => {
      const had = stays ? before?.facts.networks[index]?.wire?.mode : undefined;
      const made = addWire({ ...request, mode: had ?? mode }, wireable(fact, to.spec));
      return { ...fact, wire: { mode: made, guarded: true } };
    });
    return { ...to, facts: { ...facts, networks } };
  },

  change: (_context, _from, to) => to,

  async take({ vm, remaking, together }, { spec, facts }) {
    if (together !== undefined) return [];
    const inside = vm.find(facts.netns);
    if (inside === undefined) return [];
    const failures: unknown[] = [];
    // Almost all there is, interfaces too; what is left by another version, or half made, goes by its name.
    if (!remaking) {
      await deleteLinkGroup(inside.nl, LINK_GROUP).catch((error) => failures.push(error));
    }
    for (const fact of facts.networks) {
      try {
        removeWire(inside.nl, nameOf(fact), fact.wire?.mode ?? spec.mode);
      } catch (error) {
        failures.push(error);
      }
    }
    return failures;
  },
};

function nameOf({ attachment }: NetworkFact): string {
  return attachment.ifName;
}

function wireable(fact: NetworkFact, { queues }: Both["spec"]): Wireable {
  const { mac, mtu, leased } = fact.link!;
  return { name: nameOf(fact), mac, mtu, queues, leased };
}
