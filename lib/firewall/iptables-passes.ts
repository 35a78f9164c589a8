/**
 * Lets guests pass where iptables drops forwarded packets: by Docker's policy, by ufw's, or by one
 * that was set by hand, in either variant.
 *
 * @module
 */

import type { Finding } from "../finding.ts";
import { BITS, type Family, isIp } from "../inet/ip.ts";
import { optionOf, parseSaved, prefixOption, readOptions, unquoted } from "./iptables-save.ts";
import type { GuestRules } from "./model.ts";
import { byId, type Entry, type Found, type Place, type PlaceChange } from "./place.ts";
import type { Xtables } from "./xtables.ts";

/** The chain of the rules that let guests pass. */
const ACCEPT = "TAPKIT-ACCEPT";
/** Where the jump to it is: Docker calls DOCKER-USER before its own rules, and leaves it to others. */
const JUMP_CHAINS = ["DOCKER-USER", "FORWARD"] as const;
const JUMP = `-m comment --comment tapkit -j ${ACCEPT}`;
/** tapkit's own drops come before its accepts. */
const OWN_JUMP = "-j TAPKIT-FORWARD";

/** The relevant content of a filter table. */
interface Filter {
  /** Whether it drops forwarded packets by default. */
  readonly drops: boolean;
  readonly denies?: string;
  readonly chains: ReadonlyMap<string, readonly string[]>;
}

/** The filter table of one family, of one variant of iptables. */
export class IptablesPasses implements Place {
  readonly layer = "passes";
  readonly whole = true;
  readonly #xtables: Xtables;
  readonly #family: Family;
  readonly #areOpen: (rules: GuestRules) => boolean;
  /** As last read, until something is changed. */
  #seen: Filter | undefined;

  constructor(xtables: Xtables, family: Family, areOpen: (rules: GuestRules) => boolean) {
    this.#xtables = xtables;
    this.#family = family;
    this.#areOpen = areOpen;
  }

  get #filter(): Filter {
    return this.#seen ??= readFilter(this.#xtables.save(this.#family, "filter"));
  }

  /** Whether it drops forwarded packets by default. */
  get drops(): boolean {
    return this.#filter.drops;
  }

  /** The firewall that keeps published ports closed unless they are opened: `"ufw"`. */
  get denies(): string | undefined {
    return this.#filter.denies;
  }

  want(rules: GuestRules): readonly Entry[] {
    if (!rules.forward || !this.drops) return [];
    return passes(rules, this.#areOpen(rules), this.#family).map(asEntry);
  }

  read(_: unknown, want: readonly Entry[]): Found<Entry> {
    const { chains } = this.#filter;
    const present = chains.get(ACCEPT);
    const jumps = JUMP_CHAINS.some((place) => chains.get(place)?.includes(JUMP));
    return {
      exists: present !== undefined,
      lacking: jumps || want.length === 0 ? [] : [
        { object: this.#name, problem: `drops what is forwarded, and lacks a jump to ${ACCEPT}` },
      ],
      entries: byId((present ?? []).map(asEntry)),
    };
  }

  change({ owner, remove, add, mend }: PlaceChange<Entry>, found: Found<Entry>): void {
    const { chains } = this.#filter;
    this.#seen = undefined;
    const lines: string[] = [];
    if (add.length > 0 && !found.exists) lines.push(`:${ACCEPT} - [0:0]`);
    if (mend) {
      const place = JUMP_CHAINS.find((name) => chains.has(name))!;
      const first = chains.get(place)?.[0]?.endsWith(OWN_JUMP) ? " 2" : "";
      lines.push(`-I ${place}${first} ${JUMP}`);
    }
    lines.push(...remove.map(({ key }) => `-D ${ACCEPT} ${key[0]}`));
    lines.push(...add.map(({ key }) => `-A ${ACCEPT} ${key[0]}`));
    if (found.exists && found.entries.size + add.length === remove.length) {
      const jumps = JUMP_CHAINS.filter((place) => chains.get(place)?.includes(JUMP));
      lines.push(...jumps.map((place) => `-D ${place} ${JUMP}`), `-X ${ACCEPT}`);
    }
    const text = ["*filter", ...lines, "COMMIT", ""].join("\n");
    this.#xtables.restore(this.#family, text, `let ${owner} pass`);
  }

  missing({ key }: Entry): Finding {
    const rule = `-A ${ACCEPT} ${key[0]}`;
    return {
      object: this.#name,
      problem: `drops what is forwarded, and lacks the rule "${rule}"`,
    };
  }

  extra({ key }: Entry): Finding | undefined {
    if (!this.drops) return undefined;
    return {
      object: this.#name,
      problem: `has the rule "-A ${ACCEPT} ${key[0]}", not of the record`,
    };
  }

  get #name(): string {
    return `${this.#family === 4 ? "iptables" : "ip6tables"} (${this.#xtables.variant})`;
  }
}

function asEntry(spec: string): Entry {
  return { set: ACCEPT, key: [spec], owner: optionOf(readOptions(spec), "--comment") ?? "" };
}

/** The rules that let a guest pass, as `iptables-save` prints them, without quotes. */
function passes(rules: GuestRules, areOpen: boolean, family: Family): string[] {
  const { owner, link, addresses, relayed, whole, reachableFrom = [] } = rules;
  const whose = `-m comment --comment ${owner}`;
  const [from, to] = link === "" ? ["", ""] : [` -i ${link}`, ` -o ${link}`];
  if (whole) {
    const states = ["RELATED,ESTABLISHED", ...areOpen ? ["DNAT"] : []];
    const into = states.map((state) =>
      `${to.trim()} -m conntrack --ctstate ${state} ${whose} -j ACCEPT`
    );
    return [`${from.trim()} ${whose} -j ACCEPT`, ...into];
  }
  return addresses.filter((address) => isIp(address) === family).flatMap((address) => {
    const host = `${address}/${BITS[family]}`;
    const state = (name: string) =>
      `-d ${host}${to} -m conntrack --ctstate ${name} ${whose} -j ACCEPT`;
    return [
      // A relayed address is not a guest of tapkit: it may answer, but not connect.
      relayed
        ? `-s ${host}${from} -m conntrack --ctstate RELATED,ESTABLISHED ${whose} -j ACCEPT`
        : `-s ${host}${from} ${whose} -j ACCEPT`,
      state("RELATED,ESTABLISHED"),
      // From its own network, for hosts that also filter bridged packets.
      ...link === "" || relayed ? [] : [`-d ${host}${from}${to} ${whose} -j ACCEPT`],
      ...areOpen ? [state("DNAT")] : [],
      ...reachableFrom.filter((prefix) => isIp(prefix.split("/")[0]!) === family)
        .map((prefix) => `${prefixOption("-s", prefix)}-d ${host}${to} ${whose} -j ACCEPT`),
    ];
  });
}

function readFilter(saved: string): Filter {
  const filter = parseSaved(saved).filter(({ table }) => table === "filter");
  const chains = new Map(filter.map(({ chain, rules }) => [chain, rules.map(unquoted)]));
  const policy = filter.find(({ chain }) => chain === "FORWARD")?.policy ?? "ACCEPT";
  const managed = chains.has("ufw-before-forward")
    ? "ufw"
    : chains.has("FORWARD_IN_ZONES") || chains.has("FORWARD_POLICIES_pre")
    ? "firewalld"
    : undefined;
  const drops = policy !== "ACCEPT" ||
    (chains.get("FORWARD") ?? []).some((spec) => /-j (REJECT|DROP)\b/.test(spec));
  return { drops, chains, ...managed !== undefined && drops ? { denies: managed } : {} };
}
