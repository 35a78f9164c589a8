/**
 * Letting guests pass where an nftables chain of others drops what is forwarded: firewalld's, or
 * one whose policy was set by hand.
 *
 * firewalld lets pass whatever a port leads anywhere, so that ports that are to stay closed are
 * closed in a table of tapkit's own, which firewalld's reload leaves alone.
 *
 * @module
 */

import { type Family, isIp } from "../inet/ip.ts";
import { type Netns, withNetns } from "../sys/netns.ts";
import type { Gate } from "./gate.ts";
import { Nftables, NftablesError } from "./libnftables.ts";
import type { GuestRules } from "./model.ts";
import { despiteRaces } from "./reconcile.ts";
import { CLOSED_TABLE } from "./ruleset.ts";
import type { ForwardChain } from "./store.ts";

/** A rule of tapkit's in a chain. Its comment is the owner's tag and what it is for. */
interface Wanted {
  readonly comment: string;
  readonly rule: string;
}

interface Present {
  readonly comment: string;
  readonly handle: number;
}

/** What `nft -j` lists. */
interface Listing {
  readonly nftables: readonly {
    readonly rule?: { readonly comment?: string; readonly handle: number };
  }[];
}

/** One chain of others. */
export class NftGate implements Gate {
  readonly drops = true;
  readonly denies?: string;
  readonly #netns: Netns;
  readonly #chain: ForwardChain;

  constructor(netns: Netns, chain: ForwardChain) {
    this.#netns = netns;
    this.#chain = chain;
    if (chain.table === "firewalld") this.denies = "firewalld";
  }

  open(rules: GuestRules, ports: "open" | "closed"): boolean {
    return bring(this.#netns, this.#chain, rules.owner, passes(rules, ports, this.#chain.family));
  }

  close(owner: string): boolean {
    return bring(this.#netns, this.#chain, owner, []);
  }

  check(rules: GuestRules, ports: "open" | "closed"): string[] {
    return compare(
      this.#netns,
      this.#chain,
      rules.owner,
      passes(rules, ports, this.#chain.family),
    );
  }
}

/** The chain of ports that are closed although firewalld would let them pass. */
const CLOSED: ForwardChain = { family: "inet", table: CLOSED_TABLE, chain: "forward" };

/** Ports that stay closed under firewalld. */
export class ClosedPorts implements Gate {
  readonly drops = false;
  readonly #netns: Netns;
  readonly #active: boolean;

  /** @param active whether firewalld is there; without it nothing is closed */
  constructor(netns: Netns, active: boolean) {
    this.#netns = netns;
    this.#active = active;
  }

  open(rules: GuestRules, ports: "open" | "closed"): boolean {
    const wanted = this.#wanted(rules, ports);
    if (wanted.length === 0) return this.close(rules.owner);
    using nft = withNetns(this.#netns, () => Nftables.open());
    if (list(nft, CLOSED) === undefined) {
      const hook = "type filter hook forward priority -1; policy accept;";
      nft.run(`table inet ${CLOSED_TABLE} { chain forward { ${hook} }; }`, "close ports");
    }
    return bring(this.#netns, CLOSED, rules.owner, wanted);
  }

  close(owner: string): boolean {
    const changed = bring(this.#netns, CLOSED, owner, []);
    using nft = withNetns(this.#netns, () => Nftables.open());
    if (list(nft, CLOSED)?.length === 0) nft.run(`delete table inet ${CLOSED_TABLE}`, "open ports");
    return changed;
  }

  check(rules: GuestRules, ports: "open" | "closed"): string[] {
    return compare(this.#netns, CLOSED, rules.owner, this.#wanted(rules, ports));
  }

  #wanted({ owner, link, addresses }: GuestRules, ports: "open" | "closed"): Wanted[] {
    if (!this.#active || ports === "open") return [];
    const from = link === "" ? "" : `iifname != "${link}" `;
    return addresses.map((address) => ({
      comment: `${owner} closed ${address}`,
      rule: `${from}${nameOf(address)} daddr ${address} ct state new ct status dnat drop`,
    }));
  }
}

/** The rules that let a guest pass, the last of which is to come first. */
function passes(rules: GuestRules, ports: "open" | "closed", family: string): Wanted[] {
  const { owner, link, addresses, relayed, reachableFrom = [] } = rules;
  const known = "ct state established,related";
  const [from, to] = link === "" ? ["", ""] : [`iifname "${link}" `, `oifname "${link}" `];
  return addresses.filter((address) => family === "inet" || family === nameOf(address))
    .flatMap((address) => {
      const ip = nameOf(address);
      const wanted = (what: string, rule: string): Wanted => ({
        comment: `${owner} ${what} ${address}`,
        rule,
      });
      return [
        // What is no guest of tapkit's answers, and no more.
        wanted("out", `${from}${ip} saddr ${address} ${relayed ? known : ""} accept`),
        wanted("in", `${to}${ip} daddr ${address} ${known} accept`),
        // Where what a bridge passes is filtered too: from elsewhere on its network.
        ...link === "" || relayed
          ? []
          : [wanted("near", `${from}${to}${ip} daddr ${address} accept`)],
        ...ports === "open"
          ? [wanted("ports", `${to}${ip} daddr ${address} ct status dnat accept`)]
          : [],
        ...reachableFrom.filter((prefix) => nameOf(prefix.split("/")[0]!) === ip).map((prefix) =>
          wanted(`from ${prefix}`, `${to}${ip} saddr ${prefix} ${ip} daddr ${address} accept`)
        ),
      ];
    });
}

function nameOf(address: string): "ip" | "ip6" {
  const family = isIp(address) as Family;
  return family === 6 ? "ip6" : "ip";
}

/** tapkit's rules in a chain; undefined where there is no such chain. */
function list(nft: Nftables, { family, table, chain }: ForwardChain): Present[] | undefined {
  try {
    const text = nft.run(`list chain ${family} ${table} ${chain}`, "list a chain", "json");
    return (JSON.parse(text) as Listing).nftables.flatMap(({ rule }) =>
      rule?.comment === undefined ? [] : [{ comment: rule.comment, handle: rule.handle }]
    );
  } catch (error) {
    if (error instanceof NftablesError && error.code === "ENOENT") return undefined;
    throw error;
  }
}

/** The owner's among a chain's rules. */
function ownRules(present: readonly Present[], owner: string): Present[] {
  return present.filter(({ comment }) => comment.split(" ", 1)[0] === owner);
}

/**
 * Brings an owner's rules in a chain to what is wanted, in one transaction. A chain that went drops
 * nothing any more.
 */
function bring(
  netns: Netns,
  place: ForwardChain,
  owner: string,
  wanted: readonly Wanted[],
): boolean {
  using nft = withNetns(netns, () => Nftables.open());
  return despiteRaces(() => tryToBring(nft, place, owner, wanted));
}

function tryToBring(
  nft: Nftables,
  place: ForwardChain,
  owner: string,
  wanted: readonly Wanted[],
): boolean {
  const listed = list(nft, place);
  if (listed === undefined) return false;
  const present = ownRules(listed, owner);
  const chain = `${place.family} ${place.table} ${place.chain}`;
  const commands = [
    ...present.filter(({ comment }) => !wanted.some((one) => one.comment === comment))
      .map(({ handle }) => `delete rule ${chain} handle ${handle}`),
    ...wanted.filter(({ comment }) => !present.some((one) => one.comment === comment))
      .map(({ comment, rule }) => `insert rule ${chain} ${rule} comment "${comment}"`),
  ];
  if (commands.length === 0) return false;
  nft.run(`${commands.join("\n")}\n`, `let ${owner} pass`);
  return true;
}

function compare(
  netns: Netns,
  place: ForwardChain,
  owner: string,
  wanted: readonly Wanted[],
): string[] {
  using nft = withNetns(netns, () => Nftables.open());
  const present = ownRules(list(nft, place) ?? [], owner);
  const where = `the nftables chain "${place.family} ${place.table} ${place.chain}"`;
  return [
    ...wanted.filter(({ comment }) => !present.some((one) => one.comment === comment))
      .map(({ comment }) => `${where} lacks the rule "${comment}"`),
    ...present.filter(({ comment }) => !wanted.some((one) => one.comment === comment))
      .map(({ comment }) => `${where} has the rule "${comment}", which is not of the record`),
  ];
}
