/**
 * Rules as `iptables-save` writes them, read as far as translating ports goes (pure).
 *
 * @module
 */

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

/** The rules of all tables in a text of `iptables-save`. */
export function parseSavedRules(text: string): NatRule[] {
  return text.split("\n").filter((line) => line.startsWith("-A ")).map(parseRule);
}

function parseRule(line: string): NatRule {
  const options = readOptions(line);
  const one = (...names: string[]) =>
    options.find(({ name, negated }) => names.includes(name) && !negated)?.value;
  const protocol = one("-p");
  const address = one("-d");
  const ports = options.filter(({ name, negated }) => DESTINATION_PORTS.has(name) && !negated)
    .flatMap(({ value }) => parsePorts(value));
  const match: Match = {
    ...protocol === undefined ? {} : { protocols: [protocol] },
    ...address === undefined ? {} : { addresses: [address] },
    ...ports.length === 0 ? {} : { ports },
  };
  const target = one("-j", "-g") ?? "";
  const comment = one("--comment");
  return {
    chain: one("-A")!,
    match,
    ...comment === undefined ? {} : { comment },
    ...TRANSLATING.has(target)
      ? {
        translatesTo: one("--to-destination")?.replace(/:[\d-]+$/, "").replace(/[[\]]/g, "") ?? "",
      }
      : { jump: target },
  };
}

interface Option {
  readonly name: string;
  readonly negated: boolean;
  readonly value: string;
}

/** `! -d 10.0.0.0/8 -m comment --comment "two words"`, one by one. */
function readOptions(line: string): Option[] {
  const words = [...line.matchAll(/"((?:[^"\\]|\\.)*)"|(\S+)/g)].map(([, quoted, plain]) =>
    quoted === undefined
      ? { text: plain!, quoted: false }
      : { text: quoted.replace(/\\(.)/g, "$1"), quoted: true }
  );
  return words.flatMap(({ text, quoted }, index) => {
    if (quoted || !text.startsWith("-")) return [];
    const next = words[index + 1];
    return [{ name: text, negated: words[index - 1]?.text === "!", value: next?.text ?? "" }];
  });
}

/** `80`, `80,443,8000:8010`. */
function parsePorts(text: string): [number, number][] {
  return text.split(",").map((part): [number, number] => {
    const [first = "", last = first] = part.split(":");
    return [Number(first || 0), Number(last || 65535)];
  }).filter(([first, last]) => first <= last);
}
