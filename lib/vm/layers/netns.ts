/**
 * The layer of the VM's network namespace.
 *
 * @module
 */

import { TapkitError } from "../../errors.ts";
import { netnsIdentity } from "../../netlink/identity.ts";
import { deleteNamedNetns, nameNetns, newNetns, openNetns } from "../../sys/netns.ts";
import { isThere } from "../../sys/text.ts";
import { leadsElsewhere, netnsProblem, requireSuccessor } from "../netns.ts";
import { driverOf } from "../network/drivers.ts";
import type { Both } from "../record/attachment.ts";
import { linkNames, netnsName } from "../record/identity.ts";
import { validateNetns } from "../record/netns-path.ts";
import { enterNew, type Inside } from "../spare-netns.ts";
import type { Layer } from "./layer.ts";

/** The namespace: made under `/run/netns/tapkit-NAME`, or one that was given. */
export const netnsLayer: Layer<Both> = {
  name: "netns",

  want: ({ facts: { netns: { path, given } } }) => ({ path, given }),

  describe: ({ facts }) => `network namespace ${facts.netns.path}`,

  plan(context, to, before) {
    const { spec, facts: { netns } } = to;
    if (before !== undefined) {
      // One that was given and is gone is not made here: then all else stays as it is. Where a change was
      // cut off, it may be there already.
      if (context.vm.find(before.facts.netns) === undefined) {
        requireSuccessor(spec.id.name, before.facts.netns);
      }
      // It is another one from now on.
      const { is: _, ...named } = netns;
      return { ...to, facts: { ...to.facts, netns: named } };
    }
    if (netns.given) {
      validateNetns(netns.path);
      return withIdentity(to, context.vm.open(openNetns(netns.path)));
    }
    refuseForeign(to);
    return to;
  },

  observe(context, { facts: { netns } }) {
    if (context.vm.find(netns) !== undefined) return [];
    return [{
      layer: "netns",
      ...netnsProblem(netns),
      repair: "recreate",
    }];
  },

  async make(context, to, before) {
    const { spec, facts: { netns } } = to;
    if (netns.given) return withIdentity(to, context.vm.open(openNetns(netns.path)));
    let made = false;
    context.undo.push(`network namespace "${netnsName(spec.id)}"`, () => {
      context.vm.forget();
      if (made) deleteNamedNetns(netnsName(spec.id));
    });
    const given = await (await driverOf(to)).makeNetns?.(context, to, before);
    const spare = given === undefined
      ? context.host.session.spareNetns?.take(plainTapOf(to))
      : undefined;
    const inside = context.vm.adopt(spare ?? enterNew(given?.netns ?? newNetns()));
    nameNetns(netnsName(spec.id), inside.netns);
    made = true;
    return withIdentity(given?.at ?? to, inside);
  },

  // Of a change that was cut off it may be a later one.
  change: ({ vm }, _from, to) => withIdentity(to, vm.require(to.facts.netns)),

  take({ vm }, { spec, facts: { netns } }) {
    // By now the name may be another's.
    const isOwn = vm.find(netns) !== undefined || !leadsElsewhere(netns);
    vm.forget();
    if (!netns.given && isOwn) deleteNamedNetns(netnsName(spec.id));
    return [];
  },
};

/** The TAP of a VM's first interface, if it is to be root's and have one queue. */
function plainTapOf({ spec: { tapOwner, queues = 1 }, facts }: Both): string | undefined {
  const [first] = facts.networks;
  if (first === undefined) return undefined;
  return tapOwner === undefined && queues === 1
    ? linkNames(first.attachment.ifName).tap
    : undefined;
}

/** @throws {TapkitError} for a namespace of the VM's name that tapkit did not make */
function refuseForeign({ spec: { id }, facts: { netns: { path } } }: Both): void {
  if (!isThere(path)) return;
  throw new TapkitError(`the network namespace ${path} is there already, and is not tapkit's`, {
    mend: `delete it (ip netns delete ${netnsName(id)}), or use it with --netns ${path}`,
  });
}

function withIdentity(at: Both, { netns, nl }: Inside): Both {
  const known = { ...at.facts.netns, is: netnsIdentity(netns, nl) };
  return { ...at, facts: { ...at.facts, netns: known } };
}
