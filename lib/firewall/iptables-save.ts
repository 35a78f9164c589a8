/**
 * Reads the output of `iptables-save` (pure).
 *
 * @module
 */

/** A chain and its rules. */
export interface SavedChain {
  readonly table: string;
  readonly chain: string;
  /** `"ACCEPT"`, `"DROP"`; only the kernel's own chains have one. */
  readonly policy?: string;
  /** Without the chain's name: `-p tcp -j ACCEPT`. */
  readonly rules: readonly string[];
}

/** All chains, in order. */
export function parseSaved(text: string): SavedChain[] {
  const chains = new Map<string, SavedChain & { readonly rules: string[] }>();
  let table = "";
  for (const line of text.split("\n")) {
    if (line.startsWith("*")) table = line.slice(1).trim();
    const [, declared, policy] = /^:(\S+) (\S+)/.exec(line) ?? [];
    const [, appended, spec] = /^-A (\S+) ?(.*)$/.exec(line) ?? [];
    const chain = declared ?? appended;
    if (chain === undefined) continue;
    const key = `${table} ${chain}`;
    const known = chains.get(key) ??
      { table, chain, ...policy === undefined || policy === "-" ? {} : { policy }, rules: [] };
    chains.set(key, known);
    if (spec !== undefined) known.rules.push(spec);
  }
  return [...chains.values()];
}

/** A rule without the quotes around its comment. */
export function unquoted(spec: string): string {
  return spec.replace(/--comment "([^"]*)"/, "--comment $1");
}

/** A prefix as `iptables-save` prints it: it omits the prefix of all addresses. */
export function prefixOption(option: "-s" | "-d", prefix: string): string {
  return prefix.endsWith("/0") ? "" : `${option} ${prefix} `;
}

/** An option of a rule, with the word after it. */
export interface SavedOption {
  readonly name: string;
  readonly negated: boolean;
  readonly value: string;
}

/** The options of a rule: `! -d 10.0.0.0/8 -m comment --comment "two words"`. */
export function readOptions(spec: string): SavedOption[] {
  const words = [...spec.matchAll(/"((?:[^"\\]|\\.)*)"|(\S+)/g)].map(([, quoted, plain]) =>
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

/** The value of the first option with one of these names that is not negated. */
export function optionOf(options: readonly SavedOption[], ...names: string[]): string | undefined {
  return options.find(({ name, negated }) => names.includes(name) && !negated)?.value;
}
