/**
 * Networks: their configurations, plugins, subnets and MTUs.
 *
 * @module
 */

import { DEFAULT_NETWORK } from "../cni/default-network.ts";
import { chooseExecuted } from "../cni/plan.ts";
import { defaultRouteMtu } from "../cni/plugins/veth.ts";
import { findOverlap, formatPrefix, networkOverlap, type UsedPrefix } from "../cni/subnets.ts";
import { freeAddresses, poolsOf } from "../cni/pools.ts";
import { TapkitError } from "../errors.ts";
import type { Cidr } from "../inet/ip.ts";
import { getLink } from "../netlink/link.ts";
import type { NetworkConfigList } from "../cni/types.ts";
import { hostResolvers } from "../vm/resolvers.ts";
import { type Check, fine, type Problem, problemOf, verdict } from "./check.ts";
import type { Examined } from "./host.ts";

const configurations: Check = {
  name: "network configurations",
  run({ configurations, host, attached }) {
    const problems = configurations.flatMap(({ path, error }): Problem[] =>
      error === undefined
        ? []
        : [{ what: problemOf(error, "").what, mend: `correct ${path}, or move it away` }]
    );
    const lists = readable(configurations);
    const networks = attached.flatMap(({ spec }) => spec.docker === undefined ? spec.networks : []);
    const gone = [...new Set(networks)].filter((name) => !lists.some((list) => list.name === name));
    problems.push(...gone.map((name) => ({
      what: `VMs are on the network "${name}", which no file of ${host.confDir} configures`,
      mend: "put its configuration back, or remove those VMs",
    })));
    for (const [index, { name, path }] of lists.entries()) {
      const first = lists.findIndex((list) => list.name === name);
      if (first === index) continue;
      problems.push({
        what: `${lists[first]!.path} and ${path} both configure the network "${name}"`,
        mend: "remove one of them",
      });
    }
    const [usual] = lists;
    const good = usual === undefined
      ? `${host.confDir} has none; the first VM gets the default network`
      : `VMs are attached to "${usual.name}" (${usual.path}) unless --network is given`;
    return verdict(problems, good);
  },
};

function readable(all: Examined["configurations"]): NetworkConfigList[] {
  return all.flatMap(({ list }) => list ?? []);
}

const plugins: Check = {
  name: "plugins",
  run({ configurations, host }) {
    const lists = readable(configurations);
    const executed = new Set<string>();
    const problems = lists.flatMap((list): Problem[] => {
      try {
        const isDefault = list.name === DEFAULT_NETWORK;
        const choice = chooseExecuted(list, { mode: "auto", isDefault, host });
        choice.forEach((is, index) => is && executed.add(list.plugins[index]!.type));
        return [];
      } catch (error) {
        if (!(error instanceof TapkitError)) throw error;
        return [problemOf(error, "install the package containernetworking-plugins")];
      }
    });
    const good = executed.size === 0
      ? "no network needs any that is not built in"
      : `${[...executed].join(", ")} are executed; all others are built in`;
    return verdict(problems, good);
  },
};

const subnets: Check = {
  name: "subnets",
  run({ configurations, host: { session } }) {
    const problems: Problem[] = [];
    const used: UsedPrefix[] = [];
    for (const list of readable(configurations)) {
      const change = `change the subnet in ${list.path}`;
      const overlap = list.allowOverlap ? undefined : networkOverlap(list, session.nl);
      if (overlap !== undefined) {
        const subnet = formatPrefix(overlap.subnet);
        const what = `subnet ${subnet} of network "${list.name}" overlaps the ${overlap.used.what}`;
        problems.push({ what, mend: `${change}, or remove that` });
      }
      const own = subnetsOf(list);
      for (const subnet of own) {
        const other = findOverlap(subnet, used);
        if (other === undefined) continue;
        const what = `subnet ${formatPrefix(subnet)} of network "${list.name}" overlaps the ` +
          other.what;
        problems.push({ what, mend: change });
      }
      used.push(...own.map((prefix) => {
        return { prefix, what: `subnet ${formatPrefix(prefix)} of network "${list.name}"` };
      }));
    }
    const names = used.map(({ prefix }) => formatPrefix(prefix)).join(", ");
    return verdict(problems, used.length === 0 ? "no network has one yet" : `${names}: no overlap`);
  },
};

function subnetsOf(list: NetworkConfigList): Cidr[] {
  return poolsOf(list).flatMap(({ rangeSets }) => rangeSets.flat()).map(({ subnet }) => subnet);
}

const mtu: Check = {
  name: "MTU",
  run({ attached, configurations, host: { session: { nl } } }) {
    const out = defaultRouteMtu(nl);
    const problems: Problem[] = [];
    const onBridge = new Map<string, { readonly mtu: number; readonly vm: string }>();
    for (const { spec: { id: { name } }, facts } of attached) {
      for (const { attachment: { ifName }, link, reach } of facts.networks) {
        if (link === undefined) continue;
        const what = `${ifName} of VM "${name}" has an MTU of ${link.mtu} bytes`;
        for (const near of [reach?.hostEnd, reach?.bridge ?? reach?.link]) {
          const found = near ? getLink(nl, near) : undefined;
          if (found === undefined || found.mtu >= link.mtu) continue;
          problems.push({
            what: `${what}, and "${found.name}", by which its frames pass, one of ${found.mtu}`,
            mend: `ip link set ${found.name} mtu ${link.mtu}, or attach the VM with a lower --mtu`,
          });
        }
        const bridge = reach?.bridge ?? "";
        const other = onBridge.get(bridge);
        if (bridge !== "" && other !== undefined && other.mtu !== link.mtu) {
          problems.push({
            what:
              `${what}, and VM "${other.vm}" on the same bridge "${bridge}" one of ${other.mtu}`,
            mend: "remove one of them, and attach it with the --mtu of the other",
          });
        }
        if (bridge !== "") onBridge.set(bridge, { mtu: link.mtu, vm: name });
        if (reach?.masquerade && link.mtu > out) problems.push(tooLarge(what, out));
      }
    }
    for (const { name, path, plugins } of readable(configurations)) {
      const [first] = plugins;
      const mtu = typeof first?.mtu === "number" ? first.mtu : 0;
      if (first?.isGateway !== true || mtu <= out) continue;
      problems.push(tooLarge(`network "${name}" (${path}) has an MTU of ${mtu} bytes`, out));
    }
    return verdict(problems, `the host's way out carries ${out} bytes, and no VM sends more`);
  },
};

function tooLarge(what: string, out: number): Problem {
  return {
    what: `${what}, and the host's way out carries ${out}`,
    mend: `use an MTU of ${out} (--mtu ${out}): larger packets depend on ICMP to get through`,
  };
}

/** The most ports that a bridge can have (net/bridge/br_private.h). */
const BR_MAX_PORTS = 1023;

const pools: Check = {
  name: "address pools",
  run({ configurations, attached }) {
    const problems: Problem[] = [];
    const told: string[] = [];
    for (const list of readable(configurations)) {
      for (const free of poolsOf(list).map(freeAddresses)) {
        told.push(`"${list.name}" has ${free} free addresses`);
        if (free > 0n) continue;
        const what = `network "${list.name}" has no free address`;
        const mend = `remove VMs that are not needed, or widen the subnet in ${list.path}`;
        problems.push({ what, mend });
      }
    }
    const ports = Map.groupBy(
      attached.flatMap(({ facts }) => facts.networks.flatMap(({ reach }) => reach?.bridge ?? [])),
      (bridge) => bridge,
    );
    for (const [bridge, { length }] of ports) {
      if (length < BR_MAX_PORTS) continue;
      const what = `the bridge "${bridge}" has ${length} VMs, and takes no more ports`;
      problems.push({ what, mend: "configure a second network with a bridge of its own" });
    }
    return verdict(problems, told.join(", ") || "no network has one yet");
  },
};

const resolvers: Check = {
  name: "name servers",
  run({ attached }) {
    const { nameservers } = hostResolvers();
    if (nameservers.length > 0) return fine(`guests get ${nameservers.join(", ")}`);
    const without = attached.filter(({ facts }) => facts.dns.nameservers.length === 0);
    const what = "the host has no name server that a guest can reach: those of " +
      "/etc/resolv.conf are on a loopback address, or there are none";
    if (attached.length > 0 && without.length === 0) {
      return fine("VMs have those of their networks");
    }
    const mend =
      "name one in /etc/resolv.conf, or in the network's configuration (ipam.resolvConf)";
    return verdict([{ what, mend }], "");
  },
};

export const NETWORK_CHECKS: readonly Check[] = [
  configurations,
  plugins,
  subnets,
  mtu,
  pools,
  resolvers,
];
