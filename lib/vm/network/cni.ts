/**
 * The network driver of CNI: plugins that are built in, or executed.
 *
 * @module
 */

import { publisherOf } from "../../cni/plan.ts";
import {
  type Added,
  addNetwork,
  delNetwork,
  hasExecuted,
  mayGiveAgain,
  mendNetwork,
} from "../../cni/runtime.ts";
import type { Context } from "../layers/layer.ts";
import type { Both } from "../record/attachment.ts";
import { ownerTag } from "../record/identity.ts";
import { isPoliced } from "../record/served.ts";
import { guardSettings } from "../settings.ts";
import { checkChains } from "./chains.ts";
import { movesIdentity } from "../wire/wires.ts";
import type { NetworkDriver, WantedNetwork } from "./driver.ts";
import { reachOf } from "./host-end.ts";
import {
  allocatedByWeave,
  assertAsAsked,
  describeLink,
  explainSecond,
  planNetworks,
} from "./plan.ts";

/** Networks of CNI's configuration directory. */
export const cni: NetworkDriver = {
  async plan({ host }, to, before) {
    const hostNl = host.session.nl;
    const attachments = await planNetworks({ host, hostNl }, to.spec, before?.facts.networks);
    return attachments.map((attachment) => ({ attachment }));
  },

  async add(context, to, wanted) {
    const { host: { session: { nl: hostNl }, note } } = context;
    const { spec, facts } = to;
    const { index, earlier, before } = wanted;
    const { network, ifName } = facts.networks[index]!.attachment;
    if (allocatedByWeave(facts.networks[index]!.attachment)) {
      const { claimWanted } = await import("./weave.ts");
      await claimWanted(context, to, wanted);
    }
    const added = await addOne(context, to, wanted).catch((error) => {
      throw explainSecond(error, network, earlier.map(({ attachment }) => attachment));
    });
    const { attachment, result } = added;
    const { nl: vmNl } = context.vm.require(facts.netns);
    const link = describeLink(vmNl, attachment, result, earlier.map((fact) => fact.link!));
    const asked = index === 0 ? { ip: spec.ip, mac: spec.mac } : {};
    assertAsAsked(link, { network, ifName, ...asked, before: before?.link }, note);
    const ends = { hostNl, vmNl, ifName, link };
    const reach = reachOf(added.guest, { ...ends, policed: isPoliced(spec.policy) });
    return { fact: { attachment, link, reach }, dns: result.dns };
  },

  async check(context, at) {
    const found = await checkChains(context, at, context.vm.require(at.facts.netns).nl);
    if (!isExecuted(at)) return found;
    const { findHeld } = await import("./same-address.ts");
    const held = findHeld(context.host, at);
    if (!isOnWeave(at)) return [...found, ...held];
    const { findForgotten } = await import("./weave.ts");
    return [...found, ...held, ...await findForgotten(context, at)];
  },

  async change(context, from, to) {
    if (!await mendBuiltin(context, to)) return "recreate";
    if (!isExecuted(from)) return to;
    if (isOnWeave(from) && context.found.length > 0) {
      const { tellForgotten } = await import("./weave.ts");
      await context.outside(() => tellForgotten(context.host));
    }
    return await (await import("./chains-again.ts")).runAgain(context, from, to);
  },

  async settle(context, at) {
    if (!isExecuted(at)) return at;
    const { refuseHeld } = await import("./same-address.ts");
    refuseHeld(context.host, at);
    // What CHECK of a plugin says right after an ADD that was for its sake means nothing later.
    const failed = context.found.some(({ place }) => place?.plugin !== undefined);
    return failed ? await (await import("./chains-again.ts")).checkAdded(context, at) : at;
  },

  async del(context, { facts }) {
    const { host, keepLeases, remaking, outside, cutOff, together } = context;
    const vmNl = context.vm.find(facts.netns)?.nl;
    const others = (cutOff?.to?.facts.networks ?? []).map(({ attachment }) => attachment);
    const failures: unknown[] = [];
    for (const fact of facts.networks.toReversed()) {
      const { attachment } = fact;
      const failed = await delNetwork(attachment, {
        netnsPath: facts.netns.path,
        hostNl: host.session.nl,
        ...vmNl === undefined ? {} : { vmNl },
        plugins: host,
        keepsLease: remaking && keepLeases && mayGiveAgain(attachment),
        also: others.filter(({ ifName }) => ifName === attachment.ifName),
        outside,
        ...together === undefined ? {} : { together },
        note: host.note,
      });
      if (allocatedByWeave(attachment) && !remaking) {
        const { isForgotten, releaseFound } = await import("./weave.ts");
        await outside(() => releaseFound(fact));
        if (isForgotten(failed, host)) continue;
      }
      failures.push(...failed);
    }
    return failures;
  },
};

/** Brings back what built-in plugins found to differ; false where the interface has to be made anew. */
async function mendBuiltin(context: Context<Both>, { facts }: Both): Promise<boolean> {
  const { host, outside, found } = context;
  const concerned = new Set(
    found.flatMap(({ place }) => place?.kind === "builtin" ? place.network : []),
  );
  for (const index of concerned) {
    const { attachment, wire } = facts.networks[index]!;
    const mended = await mendNetwork(attachment, {
      netnsPath: facts.netns.path,
      hostNl: host.session.nl,
      vmNl: context.vm.require(facts.netns).nl,
      plugins: host,
      outside,
      note: host.note,
      identityMoved: wire !== undefined && movesIdentity(wire.mode),
    });
    if (!mended) return false;
  }
  return true;
}

/** Whether plugins of other makers have part in a VM's networks. */
function isExecuted({ facts }: Both): boolean {
  return facts.networks.some(({ attachment }) => hasExecuted(attachment));
}

/** Whether Weave Net's router gave an address to a VM. */
function isOnWeave({ facts }: Both): boolean {
  return facts.networks.some(({ attachment }) => allocatedByWeave(attachment));
}

/** Attaches one interface; what plugins of other makers made is brought to what is wanted. */
async function addOne(
  context: Context<Both>,
  to: Both,
  { index, before }: WantedNetwork,
): Promise<Added> {
  const { spec, facts } = to;
  const { host, undo } = context;
  const { attachment } = facts.networks[index]!;
  const { netns, nl: vmNl } = context.vm.require(facts.netns);
  const had = before?.link;
  const mtu = had?.mtu ?? spec.mtu;
  const mac = had?.mac ?? (index === 0 ? spec.mac : undefined);
  const environment = {
    netns,
    netnsPath: facts.netns.path,
    ownNetns: !facts.netns.given,
    hostNl: host.session.nl,
    vmNl,
    undo,
    owner: ownerTag(spec.id, attachment.ifName),
    fresh: had === undefined,
    keepsLease: context.keepLeases && had !== undefined && mayGiveAgain(attachment),
    plugins: host,
    outside: context.outside,
    note: host.note,
    ...mtu === undefined ? {} : { mtu },
  };
  if (!hasExecuted(attachment)) return await addNetwork(attachment, environment);
  const publishes = index === 0 && spec.claims.length > 0 && publisherOf(attachment) === "plugin";
  const watched = { firewall: spec.firewall, publishes };
  const added = await guardSettings(host, watched, () => addNetwork(attachment, environment));
  const { settleLink } = await import("./executed-link.ts");
  return await settleLink(added, {
    ...environment,
    ...had === undefined ? {} : { had },
    ...mac === undefined ? {} : { mac },
  });
}
