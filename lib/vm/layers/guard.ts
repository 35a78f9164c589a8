/**
 * The layer of the guards: what must not pass between a guest and its networks, whatever flushes a
 * firewall.
 *
 * @module
 */

import { TapkitError } from "../../errors.ts";
import type { NetlinkConnection } from "../../netlink/connection.ts";
import type { GuardPolicy } from "../wire/guard.ts";
import type { Both, NetworkFact } from "../record/attachment.ts";
import { portsOf } from "../record/derive.ts";
import { guestsOf, isPoliced } from "../record/served.ts";
import type { Host } from "../session.ts";
import { checkGuards, type Guarded, openWire, setGuards } from "../wire/wires.ts";
import type { Context, Layer } from "./layer.ts";

/** The BPF filters at both ends of each wire. */
export const guardLayer: Layer<Both> = {
  name: "guard",
  on: "wire",

  want(at) {
    const { spec: { antispoof, linkLocal, policy, claims }, facts } = at;
    const { isolated, denyEgress, allowEgress, reachableFrom } = policy;
    return {
      guest: { antispoof, linkLocal, links: facts.networks.map(({ link }) => link) },
      // They let the answers of published ports pass.
      policy: isPoliced(at.spec.policy)
        ? { isolated, denyEgress, allowEgress, reachableFrom, ports: portsOf(claims) }
        : undefined,
    };
  },

  describe: ({ spec }) => `the guards of "${spec.id.name}"`,

  async observe({ host, vm }, at) {
    const inside = vm.find(at.facts.netns);
    if (inside === undefined) return [];
    const kept = await keptPolicies(host, at);
    return at.facts.networks.flatMap((fact, index) => {
      if (fact.link === undefined || fact.wire?.guarded !== true) return [];
      return checkGuards(inside.nl, guarded(at, fact), kept[index])
        .map((finding) => ({ layer: "guard" as const, ...finding, repair: "live" as const }));
    });
  },

  async make(context, to) {
    const { host, vm } = context;
    const { nl } = vm.require(to.facts.netns);
    const kept = await keptPolicies(host, to, { fixing: true });
    const networks = to.facts.networks.map((fact, index) => {
      const done = openWire(nl, fact.wire!.mode, guarded(to, fact), kept[index]);
      if (!done) noteUnguarded(host, fact);
      return { ...fact, wire: { ...fact.wire!, guarded: done } };
    });
    return { ...to, facts: { ...to.facts, networks } };
  },

  async change(context, from, to) {
    const { host, vm, undo } = context;
    const { nl } = vm.require(to.facts.netns);
    const had = await keptPolicies(host, from);
    undo.push(`the guards of "${to.spec.id.name}"`, () => putGuards(nl, from, had));
    putGuards(nl, to, await keptPolicies(host, to, { fixing: true }));
    return to;
  },
};

/** Puts the guards of all interfaces in the place of those there are. */
function putGuards(
  nl: NetlinkConnection,
  at: Both,
  kept: readonly (GuardPolicy | undefined)[],
): void {
  for (const [index, fact] of at.facts.networks.entries()) {
    if (fact.wire?.guarded !== true || setGuards(nl, guarded(at, fact), kept[index])) continue;
    throw new TapkitError(`this kernel cannot guard "${fact.attachment.ifName}" any more`, {
      mend: "use a kernel with CONFIG_NET_CLS_BPF",
    });
  }
}

function guarded(
  { spec: { antispoof, linkLocal } }: Both,
  { attachment, link }: NetworkFact,
): Guarded {
  return { name: attachment.ifName, antispoof, linkLocal, ...link! };
}

function noteUnguarded({ note }: Host, { attachment: { ifName }, link }: NetworkFact): void {
  note(
    `warning: this kernel lacks CONFIG_NET_CLS_BPF: DHCP passes between "${ifName}" and ` +
      "its network, another server may answer the guest, and the guest may send in the name " +
      `of others${link?.leased ? "; nobody renews its lease" : ""}`,
  );
}

/**
 * What the guards of each interface keep of the VM's policy, where it has one.
 *
 * @param fixing whether to fix what they rely on
 */
async function keptPolicies(
  { session: { nl } }: Context<Both>["host"],
  at: Both,
  { fixing = false } = {},
): Promise<readonly (GuardPolicy | undefined)[]> {
  if (!isPoliced(at.spec.policy)) return [];
  const { fixBridges, keptPolicies } = await import("../wire/kept-policy.ts");
  if (fixing) fixBridges(nl, guestsOf(at));
  return keptPolicies(nl, at);
}
