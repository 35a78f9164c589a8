/**
 * Firewalls of others that drop what guests send or get.
 *
 * @module
 */

import { otherFirewalls } from "../firewall/passes.ts";
import type { GuestRules } from "../firewall/model.ts";
import { unpassedChains } from "../firewall/unpassed.ts";
import { legacyTables } from "../firewall/xtables.ts";
import { sentence } from "../finding.ts";
import { isLoopback } from "../inet/ip.ts";
import { openNetfilter } from "../netlink/nfnetlink.ts";
import { listTables } from "../netlink/nftables/objects.ts";
import { currentNetns } from "../sys/netns.ts";
import { readSysctl } from "../sys/sysctl.ts";
import { servedAddress, servedBridge } from "../vm/record/address.ts";
import { guestsOf, servedVm, shownRules } from "../vm/record/served.ts";
import { readAddress, readBridge } from "../vm/record/store.ts";
import { type Check, fine, type Fix, type Problem, verdict } from "./check.ts";
import { healing } from "./heal.ts";
import type { Examined } from "./host.ts";

/** What is served, and the command that serves it again. */
interface Guest {
  readonly rules: GuestRules;
  readonly again: string;
}

const others: Check = {
  name: "other firewalls",
  needs: "capabilities",
  twice: true,
  async run(host) {
    using netns = currentNetns();
    using netfilter = openNetfilter();
    const survey = { tables: listTables(netfilter), legacy: legacyTables() };
    const found = otherFirewalls({ netns, netfilter, ...survey });
    const names = namesOf(found.denies(), found.drops());
    const lacking = await lackingPasses(host);
    const vms = host.attached.map(({ spec }) => spec.id.name);
    const fix: Fix = healing(host, vms, ["rules", "policy", "passes"]);
    return verdict(
      [...lacking, ...filteredBridges(host, found.drops())],
      names === undefined
        ? "none drops what is forwarded"
        : `${names} drops what is forwarded; tapkit lets its guests pass`,
      lacking.length > 0 && vms.length > 0 ? fix : undefined,
    );
  },
};

function namesOf(denies: string | undefined, drops: boolean): string | undefined {
  return denies ?? (drops ? "a firewall of others (Docker's, or a policy of DROP)" : undefined);
}

/** The rules that let what is recorded pass, where they are missing. */
async function lackingPasses(host: Examined): Promise<Problem[]> {
  const problems: Problem[] = [];
  // Every backend adds the same to other firewalls.
  const firewall = await host.host.session.firewall();
  for (const { rules, again } of guests(host)) {
    const missing = firewall.differences(rules).filter(({ layer }) => layer === "passes");
    problems.push(...missing.map((finding) => ({ what: sentence(finding), mend: again })));
  }
  return problems;
}

function guests({ attached, everywhere, addresses, bridges }: Examined): Guest[] {
  const at = <T>(read: (place: typeof everywhere[number]) => T) => everywhere.map(read);
  const ofAddresses = addresses.flatMap((to) =>
    at((place) => attachedOrNone(() => readAddress(place, to)))
  );
  const ofBridges = bridges.flatMap((link) =>
    at((place) => attachedOrNone(() => readBridge(place, link)))
  );
  return [
    ...attached.flatMap((both) =>
      guestsOf(both).map((rules) => ({ rules, again: `run attach-vm ${both.spec.id.name}` }))
    ),
    ...ofAddresses.flatMap((one) => one ?? []).flatMap((one) =>
      servedAddress(one).guests.map((rules) => ({ rules, again: "run attach-vm --restore" }))
    ),
    ...ofBridges.flatMap((one) => one ?? []).flatMap((one) =>
      servedBridge(one).guests.map((rules) => ({ rules, again: "run attach-vm --restore" }))
    ),
  ];
}

/** A record that is damaged has a check of its own. */
function attachedOrNone<B>(
  read: () => { readonly is: string; readonly at?: B } | undefined,
): B | undefined {
  try {
    return read()?.at;
  } catch {
    return undefined;
  }
}

/** Networks that the host only bridges, where a firewall takes what is bridged for forwarded. */
function filteredBridges({ attached }: Examined, drops: boolean): Problem[] {
  if (!drops || readSysctl("net/bridge/bridge-nf-call-iptables") !== "1") return [];
  const bridges = attached.flatMap(({ facts }) =>
    facts.networks.flatMap(({ reach }) =>
      reach !== undefined && !reach.forward ? reach.bridge ?? [] : []
    )
  );
  return [...new Set(bridges)].map((bridge) => ({
    what: `a firewall of this host drops what the bridge "${bridge}" passes, because ` +
      "net.bridge.bridge-nf-call-iptables is 1",
    mend: "set that to 0, or let it pass: " +
      `iptables -I FORWARD -i ${bridge} -o ${bridge} -j ACCEPT`,
  }));
}

const unpassed: Check = {
  name: "chains that drop",
  needs: "capabilities",
  run({ attached, configurations }) {
    const links = [
      ...attached.flatMap(({ facts }) => facts.networks.flatMap(({ reach }) => reach?.link || [])),
      ...configurations.flatMap(({ list }) =>
        (list?.plugins ?? []).flatMap(({ bridge }) => typeof bridge === "string" ? bridge : [])
      ),
    ];
    const [link = "ignite0"] = links;
    using netfilter = openNetfilter();
    const problems = unpassedChains(netfilter, [...links, link]).map((chain) => {
      const insert = `nft insert rule ${chain.family} ${chain.table} ${chain.chain}`;
      return {
        what: `${chain.label} drops what ${chain.what}, guests' packets too`,
        mend: `let them pass at its head: ${insert} iifname "${link}" accept, and ` +
          `${insert} oifname "${link}" accept`,
      };
    });
    return verdict(problems, "none that tapkit cannot let guests pass");
  },
};

const closed: Check = {
  name: "published ports",
  needs: "capabilities",
  async run(host) {
    const firewall = await host.host.session.firewall();
    const problems = host.attached.flatMap((at) => {
      const served = servedVm(at);
      const open = shownRules(served).map((rules) => ({
        ...rules,
        ports: rules.ports.filter(({ hostIP }) => !isLoopback(hostIP)),
      }));
      const by = open.map((rules) => firewall.closedBy(rules)).find(Boolean);
      if (by === undefined) return [];
      const what =
        `${by} keeps the published ports of "${at.spec.id.name}" closed to other machines`;
      const mend = `open them with ${served.command} --open-firewall, or publish them on 127.0.0.1`;
      return [{ what, mend }];
    });
    if (host.attached.length === 0) return fine("no VM has any");
    return verdict(problems, "no firewall keeps them closed");
  },
};

export const FIREWALL_CHECKS: readonly Check[] = [others, unpassed, closed];
