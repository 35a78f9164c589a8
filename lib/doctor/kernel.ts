/**
 * What the kernel can do: tried, each in a network namespace of its own that is gone after it.
 *
 * @module
 */

import { parsePorts } from "../inet/ports.ts";
import { bring } from "../firewall/place.ts";
import { IptablesStore } from "../firewall/iptables.ts";
import type { GuestRules } from "../firewall/model.ts";
import { openFirewall } from "../firewall/open.ts";
import { installedVariants, legacyTables, type Variant } from "../firewall/xtables.ts";
import { TapkitError } from "../errors.ts";
import { isThere } from "../files.ts";
import { countFlows } from "../netlink/conntrack.ts";
import { NetlinkConnection } from "../netlink/connection.ts";
import { addRedirectFilter, listFilters, replaceBpfFilter, TC_ACT } from "../netlink/filter.ts";
import {
  createBridge,
  createVeth,
  getLink,
  requireLink,
  setBridgePort,
  setLink,
} from "../netlink/link.ts";
import { openNetfilter } from "../netlink/nfnetlink.ts";
import { listTables } from "../netlink/nftables/objects.ts";
import { addClsactQdisc, addIngressQdisc, TC_H } from "../netlink/qdisc.ts";
import { assembleBpf, Bpf, bpf } from "../sys/bpf.ts";
import { closeFd } from "../sys/libc.ts";
import { memoryFile } from "../sys/memfd.ts";
import { currentNetns, type Netns, newNetns, withNetns } from "../sys/netns.ts";
import { openPacketSocket } from "../sys/packet.ts";
import { createTap, openTap } from "../sys/tap.ts";
import { type Check, fine, type Problem, tried, type Verdict, verdict } from "./check.ts";

/** A network namespace for one trial. */
interface Trial {
  readonly netns: Netns;
  readonly nl: NetlinkConnection;
}

/** Something that the kernel has to be able to do. */
interface Feature {
  readonly name: string;
  /** What tapkit does with it. */
  readonly use: string;
  readonly mend: string;
  /** Does it; throws if the kernel does not. */
  readonly attempt: (trial: Trial) => void | Promise<void>;
}

const PAIR = { near: "veth0", far: "eth0" } as const;

/** Makes a veth pair with both ends in the namespace; returns their indexes. */
function makePair({ netns, nl }: Trial): { near: number; far: number } {
  const { index: near } = createVeth(nl, {
    name: PAIR.near,
    up: true,
    peer: { name: PAIR.far, netnsFd: netns.fd },
  });
  return { near, far: requireLink(nl, PAIR.far).index };
}

const FEATURES: readonly Feature[] = [
  {
    name: "veth",
    use: "connect a VM's namespace",
    mend: "load it (modprobe veth), or use a kernel with CONFIG_VETH",
    attempt: (trial) => void makePair(trial),
  },
  {
    name: "bridge",
    use: "join VMs to a network",
    mend: "load it (modprobe bridge), or use a kernel with CONFIG_BRIDGE",
    attempt(trial) {
      const { nl } = trial;
      const { near } = makePair(trial);
      const index = createBridge(nl, { name: "bridge0", mcastSnooping: false, up: true });
      setLink(nl, near, { master: index });
      const options = { hairpin: true, isolated: true, learning: false };
      setBridgePort(nl, near, options);
      const port = getLink(nl, near)?.bridgePort;
      const ignored = Object.entries(options)
        .find(([name, value]) => port?.[name as keyof typeof options] !== value);
      if (ignored !== undefined) {
        throw new TapkitError(`a bridge's port has no option "${ignored[0]}"`, {
          mend: "use Linux 4.18 or newer",
        });
      }
    },
  },
  {
    name: "TAP",
    use: "give a VMM frames",
    mend: "load it (modprobe tun), or use a kernel with CONFIG_TUN",
    attempt({ netns }) {
      withNetns(netns, () => {
        const tap = { name: "vm_eth0", multiQueue: true };
        createTap(tap);
        // As a VMM opens its queues.
        const queues: number[] = [];
        try {
          for (let queue = 0; queue < 2; queue++) queues.push(openTap({ ...tap, header: true }));
        } finally {
          queues.forEach(closeFd);
        }
      });
    },
  },
  {
    name: "tc redirect",
    use: "pass frames between a VM's TAP and its network",
    mend: "load them (modprobe sch_ingress cls_u32 act_mirred), or use a kernel with " +
      "CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_U32 and CONFIG_NET_ACT_MIRRED",
    attempt(trial) {
      const { nl } = trial;
      const { near, far } = makePair(trial);
      addIngressQdisc(nl, near);
      addRedirectFilter(nl, { index: near, target: far, priority: 1 });
      if (!listFilters(nl, near).some(({ redirectTo }) => redirectTo === far)) {
        throw new TapkitError("the kernel lists no filter that it took");
      }
    },
  },
  {
    name: "tc BPF",
    use: "hold a guest to its own addresses",
    mend: "load them (modprobe sch_ingress cls_bpf), or use a kernel with CONFIG_NET_CLS_ACT " +
      "and CONFIG_NET_CLS_BPF",
    attempt(trial) {
      const { nl } = trial;
      const { near } = makePair(trial);
      addClsactQdisc(nl, near);
      const program = assembleBpf([
        bpf.loadAncillary(Bpf.SKF_AD_MARK),
        bpf.ifEqual(0, "pass", "drop"),
        ...["pass", bpf.ret(TC_ACT.UNSPEC >>> 0)],
        ...["drop", bpf.ret(TC_ACT.SHOT)],
      ]);
      const parent = TC_H.CLSACT_INGRESS;
      replaceBpfFilter(nl, { index: near, parent, priority: 1, name: "a trial", program });
    },
  },
  {
    name: "packet sockets",
    use: "answer DHCP",
    mend: "load it (modprobe af_packet), or use a kernel with CONFIG_PACKET",
    attempt(trial) {
      const { near } = makePair(trial);
      const filter = assembleBpf([bpf.loadHalf(12), bpf.ret(0)]);
      withNetns(trial.netns, () => {
        openPacketSocket({ ifindex: near, filter })[Symbol.dispose]();
      });
    },
  },
  {
    name: "nf_tables",
    use: "publish ports and translate addresses",
    mend: "load them (modprobe nf_tables nft_nat nft_masq nft_fib_inet), or attach VMs with " +
      "--firewall iptables",
    attempt: ({ netns }) => tryRules(netns, {}),
  },
  {
    name: "connection limits",
    use: "keep one guest from taking the network from all",
    mend: "use a newer kernel (6.1 does not keep such counters in sets) with " +
      "CONFIG_NFT_CONNLIMIT, CONFIG_NFT_LIMIT and CONFIG_NFT_NUMGEN; without, VMs have no limits",
    attempt: ({ netns }) =>
      tryRules(netns, { limits: { link: PAIR.near, connections: 1000, openings: 100 } }),
  },
  {
    name: "isolation and egress",
    use: "enforce --isolated and --deny-egress",
    mend: "load them (modprobe nf_tables nf_conntrack_bridge), or use a kernel with " +
      "CONFIG_NF_TABLES_BRIDGE; without them such VMs are refused",
    attempt: ({ netns }) =>
      tryRules(netns, {
        isolatedPort: PAIR.near,
        egress: [{ prefix: "192.0.2.0/24", action: "deny" }],
      }),
  },
  {
    name: "conntrack",
    use: "end connections to ports that were withdrawn",
    mend: "load it (modprobe nf_conntrack_netlink), or use a kernel with CONFIG_NF_CT_NETLINK",
    attempt({ netns }) {
      withNetns(netns, () => {
        using netfilter = openNetfilter();
        if (countFlows(netfilter) === undefined) {
          throw new TapkitError("the kernel does not tell how many connections it tracks");
        }
      });
    },
  },
];

const GUEST: GuestRules = {
  owner: "trial/eth0",
  link: PAIR.near,
  mac: "02:00:00:00:00:02",
  addresses: ["192.0.2.2", "2001:db8::2"],
  masquerade: true,
  forward: true,
  ports: parsePorts(["8080:80", "[2001:db8::1]:8080:80/udp"]),
};

/** Makes a guest's rules in a namespace, and compares them with what the kernel has then. */
async function tryRules(netns: Netns, more: Partial<GuestRules>): Promise<void> {
  using firewall = await openFirewall({ kind: "nftables", netns });
  const rules = { ...GUEST, ...more };
  firewall.change(rules.owner, undefined, rules);
  const [first] = firewall.differences(rules);
  if (first !== undefined) throw new TapkitError(`${first.object} ${first.problem}`);
}

function featureCheck({ name, use, mend, attempt }: Feature): Check {
  return {
    name: `kernel: ${name}`,
    needs: "kernel: network namespaces",
    async run() {
      const problems = await inTrial(attempt, { what: `the kernel cannot ${use}`, mend });
      return verdict(problems, `can ${use}`);
    },
  };
}

async function inTrial(attempt: Feature["attempt"], about: Problem): Promise<Problem[]> {
  return await tried(async () => {
    using netns = newNetns();
    using nl = withNetns(netns, () => NetlinkConnection.open());
    await attempt({ netns, nl });
  }, about);
}

const namespaces: Check = {
  name: "kernel: network namespaces",
  needs: "capabilities",
  async run() {
    const mend = "use a kernel with CONFIG_NET_NS, and see sysctl user.max_net_namespaces";
    const about = { what: "the kernel cannot make a network namespace", mend };
    return verdict(await inTrial(() => {}, about), "can make them");
  },
};

const INSTALL = "install the package iptables";

const iptables: Check = {
  name: "kernel: iptables",
  needs: "kernel: network namespaces",
  async run(host): Promise<Verdict> {
    const needed = neededVariants(host.attached.some(({ spec }) => spec.firewall === "iptables"));
    const installed = installedVariants();
    const missing = [...needed].filter(([variant]) => !installed.includes(variant));
    const problems = missing.map(([variant, why]): Problem => {
      return { what: `${why}, and iptables-${variant} is not installed`, mend: INSTALL };
    });
    const told: string[] = [];
    for (const variant of installed) {
      const failed = await inTrial(({ netns }) => tryIptables(netns, variant), {
        what: `iptables-${variant} cannot publish ports and translate addresses`,
        mend: MODULES[variant],
      });
      if (needed.has(variant)) problems.push(...failed);
      const how = failed.length === 0 ? "works" : "does not work";
      told.push(`${variant} ${how}${needed.has(variant) ? "" : ", and nothing needs it"}`);
    }
    return verdict(problems, told.join("; ") || "is not installed, and nothing needs it");
  },
};

const MODULES: Readonly<Record<Variant, string>> = {
  nft: "load nft_compat and the modules xt_… that it names",
  legacy: "load ip_tables, ip6_tables and the modules xt_… that it names",
};

/** The variants that are needed here, and why. */
function neededVariants(isAsked: boolean): Map<Variant, string> {
  const needed = new Map<Variant, string>();
  const [usual = "nft"] = installedVariants();
  if (isAsked) needed.set(usual, "VMs were attached with --firewall iptables");
  using netfilter = openNetfilter();
  const tables = listTables(netfilter);
  if (tables === undefined) needed.set(usual, "the kernel has no nf_tables");
  if (tables?.some(({ family, name }) => family.startsWith("ip") && name === "filter")) {
    needed.set("nft", "this host has rules of iptables in nf_tables");
  }
  if (legacyTables().some(({ name }) => name === "filter")) {
    needed.set("legacy", "this host has rules in the old tables of iptables");
  }
  return needed;
}

/** Makes a guest's rules in one variant. */
function tryIptables(netns: Netns, variant: Variant): void {
  // Otherwise it would leave /run/xtables.lock on a host that has none.
  using lock = memoryFile("xtables.lock", "");
  const env = { XTABLES_LOCKFILE: lock.path };
  using store = new IptablesStore(variant, withNetns(netns, currentNetns), env);
  const want = store.want(GUEST);
  bring(store, { owner: GUEST.owner, have: [], want });
}

const ipv6: Check = {
  name: "kernel: IPv6",
  run({ configurations }) {
    if (isThere("/proc/sys/net/ipv6")) return fine("is on");
    const wanted = configurations.find(({ list }) => /"subnet":"[^"]*:/.test(JSON.stringify(list)));
    if (wanted === undefined) return fine("is off, and no network wants it");
    const what = `${wanted.path} has an IPv6 subnet, and the kernel has no IPv6`;
    return verdict([{ what, mend: "start the kernel without ipv6.disable=1" }], "");
  },
};

export const KERNEL_CHECKS: readonly Check[] = [
  namespaces,
  ...FEATURES.map(featureCheck),
  iptables,
  ipv6,
];
