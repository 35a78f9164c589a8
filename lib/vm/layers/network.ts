/**
 * The layer of a VM's networks: what its network driver makes and gives, and how the host reaches it.
 *
 * @module
 */

import type { Dns } from "../../cni/types.ts";
import { TapkitError } from "../../errors.ts";
import type { NetlinkConnection } from "../../netlink/connection.ts";
import { getLink } from "../../netlink/link.ts";
import { limitsOf } from "../limits.ts";
import { driverOf } from "../network/drivers.ts";
import { noteFilteredBridge, reachableByPorts } from "../network/host-end.ts";
import type { Both, NetworkFact } from "../record/attachment.ts";
import { linkNames } from "../record/identity.ts";
import { bindClaims } from "../record/served.ts";
import { hostResolvers, resolversOf } from "../resolvers.ts";
import type { Host } from "../session.ts";
import type { VmDns } from "../types.ts";
import type { Layer } from "./layer.ts";

/** The interfaces `eth0`, `eth1`, … that the VM's networks make in its namespace. */
export const networkLayer: Layer<Both> = {
  name: "network",
  on: "netns",

  want: ({ facts }) =>
    facts.networks.map(({ attachment: { plugins } }) => plugins.map(({ config }) => config)),

  describe: ({ facts }) =>
    facts.networks
      .map(({ attachment: { network, ifName } }) => `${ifName} on network "${network}"`).join(", "),

  async plan(context, to, before) {
    const networks = await (await driverOf(to)).plan(context, to, before);
    const names = networks.map(({ attachment }) => attachment.network);
    const planned = {
      spec: { ...to.spec, networks: names },
      facts: { ...to.facts, networks },
    };
    if (planned.facts.netns.given && before === undefined) {
      refuseTakenNames(planned, context.vm.require(planned.facts.netns).nl);
    }
    return planned;
  },

  async observe(context, at) {
    if (context.vm.find(at.facts.netns) === undefined) return [];
    return await (await driverOf(at)).check(context, at);
  },

  async make(context, to, before) {
    const { spec } = to;
    const { host, host: { session } } = context;
    const firewall = await session.firewall(spec.firewall);
    const driver = await driverOf(to);
    const made: NetworkFact[] = [];
    const dns: (Dns | undefined)[] = [];
    for (const index of to.facts.networks.keys()) {
      const wanted = { index, earlier: made, before: before?.facts.networks[index] };
      const one = await driver.add(context, to, wanted);
      const { attachment: { ifName }, reach } = one.fact;
      const limits = reach && limitsOf(reach, spec.policy, session.nl);
      made.push({ ...one.fact, ...limits === undefined ? {} : { limits } });
      dns.push(one.dns);
      if (reach !== undefined) noteFilteredBridge(firewall, { ifName, reach, note: host.note });
    }
    const at: Both = {
      spec: { ...spec, claims: bindClaims(spec.claims, made[0]) },
      facts: { ...to.facts, networks: made, dns: guestDns(host, dns, before?.facts.dns) },
    };
    return await driver.settle(context, reachableByPorts(session.nl, at));
  },

  change: async (context, from, to) => await (await driverOf(to)).change(context, from, to),

  take: async (context, from) => await (await driverOf(from)).del(context, from),
};

/** @throws {TapkitError} where a link of a namespace that was given has a name to be used */
function refuseTakenNames(
  { spec: { mode }, facts: { netns, networks } }: Both,
  nl: NetlinkConnection,
): void {
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

/** What the networks say of name resolution, else what the host has, or had. */
function guestDns(host: Host, named: readonly (Dns | undefined)[], had: VmDns | undefined): VmDns {
  const now = hostResolvers();
  const known = now.nameservers.length === 0 && had !== undefined ? had : now;
  const dns = resolversOf(named, known);
  if (dns.nameservers.length === 0) {
    host.note(
      "warning: no name server for the guest: neither its network nor the host names one that it can " +
        "reach; once /etc/resolv.conf does, DHCP tells it",
    );
  }
  return dns;
}
