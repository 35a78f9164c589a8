/**
 * Lets guests pass an nftables chain that drops forwarded packets: firewalld's, or one whose policy
 * was set by hand.
 *
 * firewalld accepts every packet whose destination was translated. So a table of tapkit's own closes
 * the ports that should stay closed. A reload of firewalld does not touch that table.
 *
 * @module
 */

import type { Finding } from "../finding.ts";
import { isIp } from "../inet/ip.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import {
  chainLabel,
  deleteTable,
  getChain,
  listRules,
  type NftChain,
} from "../netlink/nftables/objects.ts";
import { Decoder } from "../netlink/wire.ts";
import { type Netns, withNetns } from "../sys/netns.ts";
import type { NetnsView } from "./foreign-ports.ts";
import { Nftables } from "./libnftables.ts";
import type { GuestRules } from "./model.ts";
import { byId, type Entry, type Found, type Place, type PlaceChange } from "./place.ts";
import { CLOSED_TABLE } from "./ruleset.ts";

/** The network namespace of a chain. */
type NetnsHandles = Pick<NetnsView, "netns" | "netfilter">;

/** A rule in a chain. Its comment identifies it: the owner's tag and the purpose. */
interface Pass extends Entry {
  /** The rule's text, if it is wanted. */
  readonly rule?: string;
  /** The rule's handle, if it exists. */
  readonly handle?: bigint;
}

/** The rules that guests need in a chain. */
type Wanted = (rules: GuestRules) => readonly { readonly what: string; readonly rule: string }[];

/** Guests' rules in one chain. */
export class NftPasses implements Place<Pass> {
  readonly layer = "passes";
  readonly whole = true;
  readonly #netns: Netns;
  readonly #nl: NetlinkConnection;
  readonly #chain: NftChain;
  readonly #wanted: Wanted;
  /** The commands that create the chain, if it is tapkit's. */
  readonly #making: string;

  private constructor(
    { netns, netfilter }: NetnsHandles,
    chain: NftChain,
    wanted: Wanted,
    making = "",
  ) {
    this.#netns = netns;
    this.#nl = netfilter;
    this.#chain = chain;
    this.#wanted = wanted;
    this.#making = making;
  }

  /** For a chain of another firewall that drops. */
  static through(
    host: NetnsHandles,
    chain: NftChain,
    areOpen: (rules: GuestRules) => boolean,
  ): NftPasses {
    return new NftPasses(host, chain, (rules) => passes(rules, areOpen(rules), chain.family));
  }

  /** For the chain that closes ports that firewalld would let pass. */
  static closing(host: NetnsHandles, areOpen: (rules: GuestRules) => boolean): NftPasses {
    const hook = "type filter hook forward priority -1; policy accept;";
    return new NftPasses(
      host,
      { family: "inet", table: CLOSED_TABLE, chain: "forward" },
      (rules) => areOpen(rules) ? [] : closings(rules),
      `table inet ${CLOSED_TABLE} { chain forward { ${hook} }; }\n`,
    );
  }

  want(rules: GuestRules): readonly Pass[] {
    if (!rules.forward) return [];
    const { owner } = rules;
    return this.#wanted(rules).map(({ what, rule }) => this.#pass(`${owner} ${what}`, { rule }));
  }

  read(): Found<Pass> {
    const rules = listRules(this.#nl, this.#chain).filter(({ comment }) => comment !== "");
    const own = rules.map(({ comment, handle }) =>
      this.#pass(comment, { handle: new Decoder(handle).asU64be() })
    );
    return {
      exists: rules.length > 0 || getChain(this.#nl, this.#chain) !== undefined,
      lacking: [],
      entries: byId(own),
    };
  }

  /** A foreign chain that was deleted drops nothing any more, so there is nothing to do. */
  change({ owner, remove, add }: PlaceChange<Pass>, { exists }: Found<Pass>): void {
    if (!exists && this.#making === "") return;
    const { family, table, chain } = this.#chain;
    const at = `rule ${family} ${table} ${chain}`;
    const commands = [
      ...remove.map(({ handle }) => `delete ${at} handle ${handle}\n`),
      // Each is inserted before the others, so the last one comes first.
      ...add.map(({ key, rule }) => `insert ${at} ${rule} comment "${key[0]}"\n`),
    ];
    using nft = withNetns(this.#netns, () => Nftables.open());
    nft.run((add.length > 0 ? this.#making : "") + commands.join(""), `let ${owner} pass`);
  }

  tidy(): void {
    const { family, table } = this.#chain;
    if (this.#making === "" || listRules(this.#nl, this.#chain).length > 0) return;
    deleteTable(this.#nl, { family, name: table }, `table "${table}"`);
  }

  missing({ key }: Pass): Finding {
    return { object: this.#label, problem: `lacks the rule "${key[0]}"` };
  }

  extra({ key }: Pass): Finding {
    return {
      object: this.#label,
      problem: `has the rule "${key[0]}", which is not of the record`,
    };
  }

  get #label(): string {
    return `the ${chainLabel(this.#chain)}`;
  }

  #pass(comment: string, rest: Pick<Pass, "rule" | "handle">): Pass {
    return {
      set: this.#chain.chain,
      key: [comment],
      owner: comment.split(" ", 1)[0]!,
      ...rest,
    };
  }
}

/** The rules that let a guest pass, in reverse order. */
function passes(rules: GuestRules, areOpen: boolean, family: string): ReturnType<Wanted> {
  const { link, addresses, relayed, whole, reachableFrom = [] } = rules;
  const known = "ct state established,related";
  const [from, to] = link === "" ? ["", ""] : [`iifname "${link}" `, `oifname "${link}" `];
  if (whole) {
    return [
      { what: "out", rule: `${from}accept` },
      { what: "in", rule: `${to}${known} accept` },
      ...areOpen ? [{ what: "ports", rule: `${to}ct status dnat accept` }] : [],
    ];
  }
  return addresses.filter((address) => family === "inet" || family === nameOf(address))
    .flatMap((address) => {
      const ip = nameOf(address);
      const wanted = (what: string, rule: string) => ({ what: `${what} ${address}`, rule });
      return [
        // A relayed address is not a guest of tapkit: it may answer, but not connect.
        wanted("out", `${from}${ip} saddr ${address} ${relayed ? known : ""} accept`),
        wanted("in", `${to}${ip} daddr ${address} ${known} accept`),
        // From its own network, for hosts that also filter bridged packets.
        ...link === "" || relayed
          ? []
          : [wanted("near", `${from}${to}${ip} daddr ${address} accept`)],
        ...areOpen ? [wanted("ports", `${to}${ip} daddr ${address} ct status dnat accept`)] : [],
        ...reachableFrom.filter((prefix) => nameOf(prefix.split("/")[0]!) === ip).map((prefix) =>
          wanted(`from ${prefix}`, `${to}${ip} saddr ${prefix} ${ip} daddr ${address} accept`)
        ),
      ];
    });
}

function closings({ link, addresses, whole }: GuestRules): ReturnType<Wanted> {
  const from = link === "" ? "" : `iifname != "${link}" `;
  if (whole) {
    const rule = `${from}oifname "${link}" ct state new ct status dnat drop`;
    return [{ what: "closed", rule }];
  }
  return addresses.map((address) => ({
    what: `closed ${address}`,
    rule: `${from}${nameOf(address)} daddr ${address} ct state new ct status dnat drop`,
  }));
}

function nameOf(address: string): "ip" | "ip6" {
  return isIp(address) === 6 ? "ip6" : "ip";
}
