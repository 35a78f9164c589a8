/**
 * The layer of a VM's networks: what CNI plugins make and give, and how the host reaches it.
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
} from "../../cni/runtime.ts";
import type { Result } from "../../cni/types.ts";
import { TapkitError } from "../../errors.ts";
import { getLink } from "../../netlink/link.ts";
import { noteFilteredBridge, reachableByPorts, reachOf } from "../network/host-end.ts";
import { limitsOf } from "../limits.ts";
import { assertAsAsked, describeLink, explainSecond, planNetworks } from "../network/plan.ts";
import type { Both, GuestLink, NetworkFact } from "../record/attachment.ts";
import { linkNames, ownerTag } from "../record/identity.ts";
import { bindClaims, isPoliced } from "../record/served.ts";
import { hostResolvers, resolversOf } from "../resolvers.ts";
import type { Host } from "../session.ts";
import { guardSettings } from "../settings.ts";
import type { Difference, VmDns } from "../types.ts";
import { checkChains } from "../network/chains.ts";
import type { Context, Layer } from "./layer.ts";

/** The interfaces `eth0`, `eth1`, … that the VM's networks make in its namespace. */
export const networkLayer: Layer<Both> = {
  name: "network",
  on: "netns",

  want: ({ facts }) =>
    facts.networks.map(({ attachment: { plugins } }) => plugins.map(({ config }) => config)),

  describe: ({ facts }) =>
    facts.networks
      .map(({ attachment: { network, ifName } }) => `${ifName} on network "${network}"`).join(", "),

  async plan({ host, vm }, to, before) {
    const hostNl = host.session.nl;
    const attachments = await planNetworks({ host, hostNl }, to.spec, before?.facts.networks);
    const spec = { ...to.spec, networks: attachments.map(({ network }) => network) };
    const networks = attachments.map((attachment) => ({ attachment }));
    const planned = { spec, facts: { ...to.facts, networks } };
    if (planned.facts.netns.given && before === undefined) {
      refuseTakenNames(planned, vm.require(planned.facts.netns).nl);
    }
    return planned;
  },

  async observe(context, at): Promise<Difference[]> {
    const inside = context.vm.find(at.facts.netns);
    if (inside === undefined) return [];
    const found = await checkChains(context, at, inside.nl);
    if (!at.facts.networks.some(({ attachment }) => hasExecuted(attachment))) return found;
    const { findHeld } = await import("../network/same-address.ts");
    return [...found, ...findHeld(context.host, at)];
  },

  async make(context, to, before) {
    const { spec } = to;
    const { host } = context;
    const made: NetworkFact[] = [];
    const results: Result[] = [];
    for (const [index, { attachment }] of to.facts.networks.entries()) {
      const had = before?.facts.networks[index]?.link;
      const added = await add(context, to, index, had).catch((error) => {
        throw explainSecond(error, attachment.network, made.map((fact) => fact.attachment));
      });
      const ends = endsOf(context, to);
      const links = made.map(({ link }) => link!);
      const link = describeLink(ends.vmNl, added.attachment, added.result, links);
      const { network, ifName } = attachment;
      const asked = index === 0 ? { ip: spec.ip, mac: spec.mac } : {};
      assertAsAsked(link, { network, ifName, ...asked, before: had }, host.note);
      const reach = reachOf(added.guest, {
        ...ends,
        ifName,
        link,
        policed: isPoliced(spec.policy),
      });
      const limits = limitsOf(reach, spec.policy, ends.hostNl);
      const { attachment: chain, result } = added;
      made.push({ attachment: chain, link, reach, ...limits === undefined ? {} : { limits } });
      results.push(result);
    }
    const firewall = await host.session.firewall(spec.firewall);
    for (const { attachment: { ifName }, reach } of made) {
      noteFilteredBridge(firewall, { ifName, reach: reach!, note: host.note });
    }
    const dns = guestDns(host, results, before?.facts.dns);
    const claims = bindClaims(spec.claims, made[0]);
    const at: Both = {
      spec: { ...spec, claims },
      facts: { ...to.facts, networks: made, dns },
    };
    const reached = reachableByPorts(host.session.nl, at);
    if (!made.some(({ attachment }) => hasExecuted(attachment))) return reached;
    const { refuseHeld } = await import("../network/same-address.ts");
    refuseHeld(host, reached);
    const failed = context.found.some(({ place }) => place?.plugin !== undefined);
    return failed
      ? await (await import("../network/chains-again.ts")).checkAdded(context, reached)
      : reached;
  },

  async change(context, from, to) {
    const executed = from.facts.networks.some(({ attachment }) => hasExecuted(attachment));
    if (!executed) return to;
    return await (await import("../network/chains-again.ts")).runAgain(context, from, to);
  },

  async take(context, from) {
    const failures: unknown[] = [];
    const { host, keepLeases, remaking } = context;
    const vmNl = context.vm.find(from.facts.netns)?.nl;
    for (const { attachment } of from.facts.networks.toReversed()) {
      const keepsLease = remaking && keepLeases && mayGiveAgain(attachment);
      const environment = {
        netnsPath: from.facts.netns.path,
        hostNl: host.session.nl,
        ...vmNl === undefined ? {} : { vmNl },
        plugins: host,
        keepsLease,
        also: context.cutOff?.to?.facts.networks.filter((other) =>
          other.attachment.ifName === attachment.ifName
        ).map((other) =>
          other.attachment
        ) ?? [],
        outside: context.outside,
        note: host.note,
      };
      failures.push(...await delNetwork(attachment, environment));
    }
    return failures;
  },
};

function endsOf({ host, vm }: Context<Both>, { facts }: Both) {
  return { hostNl: host.session.nl, vmNl: vm.require(facts.netns).nl };
}

/** Attaches one interface; what plugins of other makers made is brought to what is wanted. */
async function add(
  context: Context<Both>,
  to: Both,
  index: number,
  had: GuestLink | undefined,
): Promise<Added> {
  const { spec, facts } = to;
  const { host, undo } = context;
  const { attachment } = facts.networks[index]!;
  const { netns, nl: vmNl } = context.vm.require(facts.netns);
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
  const { settleLink } = await import("../network/executed-link.ts");
  return await settleLink(added, {
    ...environment,
    ...had === undefined ? {} : { had },
    ...mac === undefined ? {} : { mac },
  });
}

/** @throws {TapkitError} where a link of a namespace that was given has a name to be used */
function refuseTakenNames({ spec: { mode }, facts: { netns, networks } }: Both, nl: VmNl): void {
  for (const { attachment: { ifName } } of networks) {
    const { link, tap, bridge } = linkNames(ifName);
    const names = mode === "tc-redirect" ? [link, tap] : [link, tap, bridge];
    const taken = names.find((name) => getLink(nl, name) !== undefined);
    if (taken === undefined) continue;
    throw new TapkitError(`the network namespace ${netns.path} has a link "${taken}" already`, {
      mend: "delete that link, or use another namespace",
    });
  }
}

type VmNl = Parameters<typeof getLink>[0];

/** What the networks say of name resolution, else what the host has, or had. */
function guestDns(host: Host, results: readonly Result[], had: VmDns | undefined): VmDns {
  const now = hostResolvers();
  const known = now.nameservers.length === 0 && had !== undefined ? had : now;
  const dns = resolversOf(results.map((result) => result.dns), known);
  if (dns.nameservers.length === 0) {
    host.note(
      "warning: no name server for the guest: neither its network nor the host names one that it can " +
        "reach; once /etc/resolv.conf does, DHCP tells it",
    );
  }
  return dns;
}
