/**
 * Rules as `iptables-save` writes them, read as far as translating ports goes (pure).
 *
 * @module
 */

import { optionOf, parseSaved, readOptions } from "./iptables-save.ts";
import type { Match, NatRule } from "./nat-rules.ts";

/** The options that a rule is read by, under the names that mean the same. */
const DESTINATION_PORTS: ReadonlySet<string> = new Set([
  "--dport",
  "--dports",
  "--destination-port",
  "--destination-ports",
  // Either end's.
  "--ports",
]);
const TRANSLATING: ReadonlySet<string> = new Set(["DNAT", "REDIRECT", "TPROXY"]);

/** The rules of the `nat` table in a text of `iptables-save`. */
export function parseSavedRules(text: string): NatRule[] {
  return parseSaved(text).filter(({ table }) => table === "nat")
    .flatMap(({ chain, rules }) => rules.map((spec) => parseRule(chain, spec)));
}

function parseRule(chain: string, spec: string): NatRule {
  const options = readOptions(spec);
  const protocol = optionOf(options, "-p");
  const address = optionOf(options, "-d");
  const ports = options.filter(({ name, negated }) => DESTINATION_PORTS.has(name) && !negated)
    .flatMap(({ value }) => parseRanges(value));
  const match: Match = {
    ...protocol === undefined ? {} : { protocols: [protocol] },
    ...address === undefined ? {} : { addresses: [address] },
    ...ports.length === 0 ? {} : { ports },
  };
  const target = optionOf(options, "-j", "-g") ?? "";
  const comment = optionOf(options, "--comment");
  const to = optionOf(options, "--to-destination") ?? "";
  return {
    chain,
    match,
    ...comment === undefined ? {} : { comment },
    ...TRANSLATING.has(target)
      ? { translatesTo: to.replace(/:[\d-]+$/, "").replace(/[[\]]/g, "") }
      : { jump: target },
  };
}

/** `80`, `80,443,8000:8010`. */
function parseRanges(text: string): [number, number][] {
  return text.split(",").map((part): [number, number] => {
    const [first = "", last = first] = part.split(":");
    return [Number(first || 0), Number(last || 65535)];
  }).filter(([first, last]) => first <= last);
}
