/**
 * Letting guests pass where iptables drops what is forwarded: Docker's policy, ufw's, or one that
 * was set by hand, in either variant.
 *
 * @module
 */

import { type Family, isIp } from "../inet/ip.ts";
import type { Gate } from "./gate.ts";
import { source } from "./iptables-rules.ts";
import type { GuestRules } from "./model.ts";
import { despiteRaces } from "./reconcile.ts";
import type { Xtables } from "./xtables.ts";

const FAMILIES: readonly Family[] = [4, 6];
/** The chain of the rules that let guests pass. */
const ACCEPT = "TAPKIT-ACCEPT";
/** Where the jump to it stands: Docker leaves the first to others, and puts it before its own. */
const PLACES = ["DOCKER-USER", "FORWARD"] as const;
const JUMP = `-m comment --comment tapkit -j ${ACCEPT}`;
/** tapkit's own drops come before what is let pass. */
const OWN_JUMP = "-j TAPKIT-FORWARD";

/** What one family's filter table has, of what matters here. */
interface Filter {
  /** Whether what is forwarded is dropped unless a rule accepts it. */
  readonly drops: boolean;
  readonly denies?: string;
  readonly chains: ReadonlyMap<string, readonly string[]>;
}

/** One variant of iptables. */
export class IptablesGate implements Gate {
  readonly #xtables: Xtables;
  #filters: ReadonlyMap<Family, Filter> | undefined;

  constructor(xtables: Xtables) {
    this.#xtables = xtables;
  }

  get drops(): boolean {
    return [...this.#current().values()].some(({ drops }) => drops);
  }

  get denies(): string | undefined {
    return [...this.#current().values()].find(({ denies }) => denies !== undefined)?.denies;
  }

  open(rules: GuestRules, ports: "open" | "closed"): boolean {
    return this.#bring(rules.owner, (family) => passes(rules, ports, family));
  }

  close(owner: string): boolean {
    return this.#bring(owner, () => []);
  }

  check(rules: GuestRules, ports: "open" | "closed"): string[] {
    this.#filters = undefined;
    return [...this.#current()].flatMap(([family, filter]) => {
      if (!filter.drops) return [];
      const present = filter.chains.get(ACCEPT) ?? [];
      const wanted = passes(rules, ports, family);
      const missing = wanted.filter((spec) => !present.includes(spec));
      const tooMany = present.filter((spec) =>
        ownerOf(spec) === rules.owner && !wanted.includes(spec)
      );
      const jump = wanted.length > 0 && !PLACES.some((place) => hasJump(filter, place));
      const name = `${family === 4 ? "iptables" : "ip6tables"} (${this.#xtables.variant})`;
      return [
        ...missing.map((spec) =>
          `${name} drops what is forwarded, and lacks the rule "-A ${ACCEPT} ${spec}"`
        ),
        ...tooMany.map((spec) => `${name} has the rule "-A ${ACCEPT} ${spec}", not of the record`),
        ...jump ? [`${name} drops what is forwarded, and lacks a jump to ${ACCEPT}`] : [],
      ];
    });
  }

  /** Brings an owner's rules to what is wanted, in one transaction a family. */
  #bring(owner: string, wantedOf: (family: Family) => readonly string[]): boolean {
    return despiteRaces(() => this.#tryToBring(owner, wantedOf));
  }

  #tryToBring(owner: string, wantedOf: (family: Family) => readonly string[]): boolean {
    this.#filters = undefined;
    let changed = false;
    for (const [family, filter] of this.#current()) {
      const wanted = filter.drops ? wantedOf(family) : [];
      const text = planPasses(filter, owner, wanted);
      if (text === "") continue;
      this.#xtables.restore(family, text, `let ${owner} pass`);
      this.#filters = undefined;
      changed = true;
    }
    return changed;
  }

  #current(): ReadonlyMap<Family, Filter> {
    return this.#filters ??= new Map(
      FAMILIES.map((family) => [family, parseFilter(this.#xtables.save(family, "filter"))]),
    );
  }
}

/** The rules that let a guest pass, as `iptables-save` prints them but for quotes. */
function passes(rules: GuestRules, ports: "open" | "closed", family: Family): string[] {
  const { owner, link, addresses, relayed, reachableFrom = [] } = rules;
  const whose = `-m comment --comment ${owner}`;
  const [from, to] = link === "" ? ["", ""] : [` -i ${link}`, ` -o ${link}`];
  return addresses.filter((address) => isIp(address) === family).flatMap((address) => {
    const host = `${address}/${family === 4 ? 32 : 128}`;
    const state = (name: string) =>
      `-d ${host}${to} -m conntrack --ctstate ${name} ${whose} -j ACCEPT`;
    return [
      // What is no guest of tapkit's answers, and no more.
      relayed
        ? `-s ${host}${from} -m conntrack --ctstate RELATED,ESTABLISHED ${whose} -j ACCEPT`
        : `-s ${host}${from} ${whose} -j ACCEPT`,
      state("RELATED,ESTABLISHED"),
      // Where what a bridge passes is filtered too: from elsewhere on its network.
      ...link === "" || relayed ? [] : [`-d ${host}${from}${to} ${whose} -j ACCEPT`],
      ...ports === "open" ? [state("DNAT")] : [],
      ...reachableFrom.filter((prefix) => isIp(prefix.split("/")[0]!) === family)
        .map((prefix) => `${source("-s", prefix)}-d ${host}${to} ${whose} -j ACCEPT`),
    ];
  });
}

/** Reads what `iptables-save` prints, whichever tables it does. */
function parseFilter(text: string): Filter {
  const chains = new Map<string, string[]>();
  let policy = "ACCEPT";
  let table = "";
  for (const line of text.split("\n")) {
    if (line.startsWith("*")) table = line.slice(1).trim();
    if (table !== "filter") continue;
    const [, name, chainPolicy] = /^:(\S+) (\S+)/.exec(line) ?? [];
    if (name !== undefined) {
      chains.set(name, []);
      if (name === "FORWARD") policy = chainPolicy!;
    } else if (line.startsWith("-A ")) {
      const [, chain = "", spec = ""] = /^-A (\S+) (.*)$/.exec(line) ?? [];
      chains.get(chain)?.push(spec.replace(/--comment "([^"]*)"/, "--comment $1"));
    }
  }
  const forward = chains.get("FORWARD") ?? [];
  const managed = chains.has("ufw-before-forward")
    ? "ufw"
    : chains.has("FORWARD_IN_ZONES") || chains.has("FORWARD_POLICIES_pre")
    ? "firewalld"
    : undefined;
  const drops = policy !== "ACCEPT" || forward.some((spec) => /-j (REJECT|DROP)\b/.test(spec));
  return { drops, chains, ...managed !== undefined && drops ? { denies: managed } : {} };
}

function hasJump({ chains }: Filter, place: string): boolean {
  return chains.get(place)?.includes(JUMP) ?? false;
}

function ownerOf(spec: string): string | undefined {
  return /--comment (\S+)/.exec(spec)?.[1];
}

/** The text that leaves an owner with the rules that are wanted; empty where it has them. */
function planPasses(filter: Filter, owner: string, wanted: readonly string[]): string {
  const present = filter.chains.get(ACCEPT);
  const own = present?.filter((spec) => ownerOf(spec) === owner) ?? [];
  const stale = own.filter((spec) => !wanted.includes(spec));
  const missing = wanted.filter((spec) => !own.includes(spec));
  const left = (present?.length ?? 0) - stale.length + missing.length;
  const lines: string[] = [];
  if (wanted.length > 0 && present === undefined) lines.push(`:${ACCEPT} - [0:0]`);
  if (wanted.length > 0 && !PLACES.some((place) => hasJump(filter, place))) {
    const place = PLACES.find((name) => filter.chains.has(name))!;
    const first = filter.chains.get(place)?.[0]?.endsWith(OWN_JUMP) ? " 2" : "";
    lines.push(`-I ${place}${first} ${JUMP}`);
  }
  lines.push(...stale.map((spec) => `-D ${ACCEPT} ${spec}`));
  lines.push(...missing.map((spec) => `-A ${ACCEPT} ${spec}`));
  if (present !== undefined && left === 0) {
    lines.push(...PLACES.filter((place) => hasJump(filter, place)).map((at) => `-D ${at} ${JUMP}`));
    lines.push(`-X ${ACCEPT}`);
  }
  return lines.length === 0 ? "" : ["*filter", ...lines, "COMMIT", ""].join("\n");
}
