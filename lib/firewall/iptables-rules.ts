/**
 * tapkit's chains in iptables, pure: what they consist of, which rules an element is, and the text
 * that changes them.
 *
 * Rules are written as `iptables-save` prints them, but for the quotes around comments, so that a
 * rule is found among those saved by its text.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import type { Finding } from "../finding.ts";
import { BITS, type Family } from "../inet/ip.ts";
import { hostPortOf } from "./guest-elements.ts";
import {
  optionOf,
  prefixOption,
  readOptions,
  type SavedChain,
  type SavedOption,
  unquoted,
} from "./iptables-save.ts";
import type { Entry } from "./place.ts";
import { ANSWER_MARK } from "./ruleset.ts";

/** The tables of iptables that tapkit has rules in. */
export type IptablesTable = "raw" | "mangle" | "nat" | "filter";

const TABLES: readonly IptablesTable[] = ["raw", "mangle", "nat", "filter"];
/** Those that guard 127.0.0.0/8. */
const IPV4_ALONE: readonly IptablesTable[] = ["raw", "mangle"];

/** What tapkit's chains and the rules that no owner has are recognised by. */
const PREFIX = "TAPKIT-";
const SHARED = "-m comment --comment tapkit";

/** A rule, and at which end of its chain it is added. */
interface Rule {
  readonly table: IptablesTable;
  readonly chain: string;
  /** As `iptables-save` prints it after the chain's name. */
  readonly spec: string;
  readonly at: "head" | "tail";
}

/** The rules that iptables has, of those that matter: by table and chain. */
export type SavedRules = ReadonlyMap<string, ReadonlySet<string>>;

const chainKey = ({ table, chain }: { readonly table: string; readonly chain: string }) =>
  `${table} ${chain}`;

/** tapkit's chains; a guest's rules come before those at the head, or after those at the tail. */
const CHAINS: readonly { readonly table: IptablesTable; readonly chain: string }[] = [
  { table: "raw", chain: "TAPKIT-LOOPBACK" },
  { table: "mangle", chain: "TAPKIT-ANSWERS" },
  { table: "nat", chain: "TAPKIT-PUBLISHED" },
  { table: "nat", chain: "TAPKIT-AT" },
  { table: "nat", chain: "TAPKIT-PORTS" },
  { table: "nat", chain: "TAPKIT-MASQUERADE" },
  { table: "filter", chain: "TAPKIT-FORWARD" },
];

/** The jumps to them: first in the kernel's own chains, whatever else is there. */
const JUMPS: readonly Rule[] = ([
  ["raw", "PREROUTING", "", "TAPKIT-LOOPBACK"],
  ["mangle", "PREROUTING", "", "TAPKIT-ANSWERS"],
  ["nat", "PREROUTING", "-m addrtype --dst-type LOCAL ", "TAPKIT-PUBLISHED"],
  ["nat", "OUTPUT", "-m addrtype --dst-type LOCAL ", "TAPKIT-PUBLISHED"],
  ["nat", "POSTROUTING", "", "TAPKIT-MASQUERADE"],
  ["filter", "FORWARD", "", "TAPKIT-FORWARD"],
] as const).map(([table, chain, condition, target]) => ({
  table,
  chain,
  spec: `${condition}${SHARED} -j ${target}`,
  at: "head",
}));

/** The rules that are the same on every host. */
function sharedRules(family: Family): Rule[] {
  const of = (table: IptablesTable, chain: string, ...specs: string[]) =>
    specs.map((spec): Rule => ({ table, chain, spec, at: "tail" }));
  const published = ["-j TAPKIT-AT", "-j TAPKIT-PORTS"];
  // The kernel does not translate what comes from ::1: refused is better than lost.
  if (family === 6) published.splice(1, 0, "-d ::1/128 -j RETURN");
  return [
    // route_localnet on a guests' link would open the host's loopback servers to guests.
    ...family === 6 ? [] : of(
      "raw",
      "TAPKIT-LOOPBACK",
      "-d 127.0.0.0/8 ! -i lo -j DROP",
      "-s 127.0.0.0/8 ! -i lo -j DROP",
    ),
    ...family === 6 ? [] : of(
      "mangle",
      "TAPKIT-ANSWERS",
      "-m conntrack --ctorigsrc 127.0.0.0/8 --ctdir REPLY " +
        `-j MARK --set-xmark 0x${ANSWER_MARK.toString(16)}/0xffffffff`,
    ),
    ...of("nat", "TAPKIT-PUBLISHED", ...published),
    ...of(
      "nat",
      "TAPKIT-MASQUERADE",
      ...family === 6 ? ["-d ff00::/8 -j RETURN"] : [
        "-s 127.0.0.0/8 ! -o lo -m conntrack --ctstate DNAT -j MASQUERADE",
        "-d 224.0.0.0/4 -j RETURN",
      ],
    ),
    ...of(
      "filter",
      "TAPKIT-FORWARD",
      "-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN",
      "-m conntrack --ctstate DNAT -j RETURN",
    ),
  ];
}

function ownChains(family: Family) {
  return CHAINS.filter(({ table }) => family === 4 || !IPV4_ALONE.includes(table));
}

function jumps(family: Family) {
  return JUMPS.filter(({ table }) => family === 4 || !IPV4_ALONE.includes(table));
}

/** The rules that an element is, in the order in which they are added. */
export function rulesOfElement(element: Entry): Rule[] {
  const { set, key, value, owner } = element;
  const family = set.endsWith("6") ? 6 : 4;
  const whose = `-m comment --comment ${owner}`;
  const host = (address: string) => `${address}/${BITS[family]}`;
  if (value !== undefined) {
    const [target, port] = value;
    const { protocol, hostPort } = hostPortOf(element);
    const at = key.length === 3;
    const to = family === 4 ? `${target}:${port}` : `[${target}]:${port}`;
    return [{
      table: "nat",
      chain: at ? "TAPKIT-AT" : "TAPKIT-PORTS",
      spec: `${at ? `-d ${host(key[0]!)} ` : ""}-p ${protocol} -m ${protocol} ` +
        `--dport ${hostPort} ${whose} -j DNAT --to-destination ${to}`,
      at: "tail",
    }];
  }
  const [address = "", link = ""] = key;
  const [from, to, dnat] = [
    `-s ${host(address)}`,
    `-d ${host(address)}`,
    "-m conntrack --ctstate DNAT",
  ];
  const rule =
    (table: IptablesTable, chain: string) => (at: Rule["at"], match: string, target: string) => ({
      table,
      chain,
      spec: `${match} ${whose} -j ${target}`,
      at,
    });
  const [nat, filter] = [rule("nat", "TAPKIT-MASQUERADE"), rule("filter", "TAPKIT-FORWARD")];
  switch (set.slice(0, -1)) {
    case "guests":
      return [
        nat("head", `${from} -o ${link}`, "RETURN"),
        // A neighbour would answer past the host, and the answer would not be translated back.
        nat("head", `${from} -o ${link} ${dnat}`, "MASQUERADE"),
        filter("head", `${to} -i ${link}`, "RETURN"),
        // What says that it is the guest, and comes by another link.
        filter("head", `${from} ! -i ${link} ${dnat}`, "DROP"),
      ];
    case "relayed":
      return [nat("head", `${to} ${dnat}`, "MASQUERADE")];
    case "apart":
      return [filter("tail", `-i ${address} -o ${link}`, "DROP")];
    case "reachable":
      return [
        nat("head", `${from} ${prefixOption("-d", link)}-m conntrack ! --ctstate DNAT`, "RETURN"),
        filter("head", `${prefixOption("-s", link)}${to}`, "RETURN"),
      ];
    case "private":
      return [nat("tail", from, "MASQUERADE"), filter("tail", to, "DROP")];
  }
  throw new TapkitError(`iptables has no rules for "${set}" of ${owner}`, {
    mend: "use nftables, or leave isolation and egress rules out",
  });
}

/** Of the chains that `iptables-save` prints tapkit's, and the jumps to them. */
export function ownRules(chains: readonly SavedChain[]): SavedRules {
  const entries = chains.map((chain): [string, Set<string>] => {
    const own = chain.chain.startsWith(PREFIX);
    const specs = own ? chain.rules : chain.rules.filter((spec) => spec.includes(PREFIX));
    return [chainKey(chain), new Set(specs.map(unquoted))];
  });
  return new Map(entries.filter(([name, specs]) => specs.size > 0 || name.includes(` ${PREFIX}`)));
}

/** Whether there is any of tapkit's chains. */
export function hasChains(saved: SavedRules): boolean {
  return CHAINS.some((chain) => saved.has(chainKey(chain)));
}

/** The rules of {@linkcode sharedRules} that are missing. */
export function lackingShared(saved: SavedRules, family: Family): Finding[] {
  const program = family === 4 ? "iptables" : "ip6tables";
  if (!hasChains(saved)) {
    return [{ object: "tapkit's chains", problem: `are missing from ${program}` }];
  }
  return [...jumps(family), ...sharedRules(family)].filter((rule) => !isSaved(saved, rule))
    .map(({ table, chain, spec }) => ({
      object: program,
      problem: `lacks the rule "-t ${table} -A ${chain} ${spec}"`,
    }));
}

function isSaved(saved: SavedRules, rule: Rule): boolean {
  return saved.get(chainKey(rule))?.has(rule.spec) ?? false;
}

/** The elements all rules of which are there. */
export function savedElements(saved: SavedRules, family: Family): Entry[] {
  const specs = (table: IptablesTable, chain: string) => [...saved.get(`${table} ${chain}`) ?? []];
  const elements = [
    ...specs("nat", "TAPKIT-AT"),
    ...specs("nat", "TAPKIT-PORTS"),
    ...specs("nat", "TAPKIT-MASQUERADE"),
    ...specs("filter", "TAPKIT-FORWARD"),
  ].flatMap((spec) => evidentElement(readOptions(spec), family) ?? []);
  return elements.filter((element) =>
    rulesOfElement(element).every((rule) => isSaved(saved, rule))
  );
}

/**
 * The element that a rule is evidently of. Of those with several rules one tells it; whether it is
 * one is seen by comparing all of them.
 */
function evidentElement(options: readonly SavedOption[], family: Family): Entry | undefined {
  const option = (name: string) => optionOf(options, name);
  const host = option("-d")?.replace(/\/\d+$/, "");
  const [from, to, owner] = [option("-i"), option("-o"), option("--comment")];
  if (owner === undefined) return undefined;
  const element = (set: string, key: string[]) => ({ set: `${set}${family}`, key, owner });
  switch (option("-j")) {
    case "DNAT": {
      const [, target, port] = /^\[?([^\]]+?)\]?:(\d+)$/.exec(option("--to-destination") ?? "") ??
        [];
      if (target === undefined) return undefined;
      const key = [option("-p") ?? "", option("--dport") ?? ""];
      const mapped = host === undefined
        ? element("ports", key)
        : element("ports_at", [host, ...key]);
      return { ...mapped, value: [target, port!] };
    }
    case "MASQUERADE":
      return host === undefined ? undefined : element("relayed", [host]);
    case "RETURN":
      if (host === undefined) return undefined;
      return from === undefined
        ? element("reachable", [host, option("-s") ?? (family === 4 ? "0.0.0.0/0" : "::/0")])
        : element("guests", [host, from]);
    case "DROP":
      if (from !== undefined && to !== undefined) return element("apart", [from, to]);
      return host === undefined ? undefined : element("private", [host]);
  }
}

/** The text that deletes elements and adds others. What is half there is made anew. */
export function planElements(
  saved: SavedRules,
  remove: readonly Entry[],
  add: readonly Entry[],
): string {
  const old = new Map(
    [...remove, ...add].flatMap(rulesOfElement)
      .filter((rule) => isSaved(saved, rule))
      .map((rule) => [`${chainKey(rule)} ${rule.spec}`, rule]),
  );
  return planText([...old.values()], add.flatMap(rulesOfElement));
}

/** The text that makes the shared rules anew, with these elements and no others. */
export function planShared(
  saved: SavedRules,
  family: Family,
  elements: readonly Entry[],
): string {
  return planText(
    savedJumps(saved),
    [...jumps(family), ...sharedRules(family), ...elements.flatMap(rulesOfElement)],
    ownChains(family),
  );
}

/** The text that takes everything away; empty where nothing is there. */
export function planDelete(saved: SavedRules): string {
  const chains = CHAINS.filter((chain) => saved.has(chainKey(chain)));
  return chains.length === 0 ? "" : planText(savedJumps(saved), [], chains, true);
}

function savedJumps(saved: SavedRules): Rule[] {
  return JUMPS.filter((jump) => isSaved(saved, jump));
}

/**
 * Text for `iptables-restore --noflush`.
 *
 * @param chains those to be made, or emptied
 * @param drop whether they are deleted then
 */
function planText(
  remove: readonly Rule[],
  add: readonly Rule[],
  chains: readonly Pick<Rule, "table" | "chain">[] = [],
  drop = false,
): string {
  let text = "";
  for (const table of TABLES) {
    const of = <T extends { readonly table: IptablesTable }>(all: readonly T[]) =>
      all.filter((one) => one.table === table);
    const own = of(chains);
    const lines = [
      ...own.map(({ chain }) => `:${chain} - [0:0]`),
      ...of(remove).map(({ chain, spec }) => `-D ${chain} ${spec}`),
      ...of(add).map(({ chain, spec, at }) => `${at === "head" ? "-I" : "-A"} ${chain} ${spec}`),
      ...drop ? own.map(({ chain }) => `-X ${chain}`) : [],
    ];
    if (lines.length > 0) text += [`*${table}`, ...lines, "COMMIT", ""].join("\n");
  }
  return text;
}
