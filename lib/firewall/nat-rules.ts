/**
 * Which ports rules of others translate, pure: what is known of a rule, and following rules through
 * the chains they jump to.
 *
 * @module
 */

/** The packets that a rule is about; what is absent is not looked at. */
export interface Match {
  readonly protocols?: readonly string[];
  /** Destination ports, each range with its first and last. */
  readonly ports?: readonly (readonly [first: number, last: number])[];
  /** Destinations: addresses, or prefixes. */
  readonly addresses?: readonly string[];
}

/** A rule, as far as it matters here. */
export interface NatRule {
  readonly chain: string;
  readonly match: Match;
  readonly comment?: string;
  /** Where it leads, `""` where that is not told; absent where it translates nothing. */
  readonly translatesTo?: string;
  /** The chain that it goes on in. */
  readonly jump?: string;
}

/** Ports that somebody's rules translate. */
export interface Claim {
  /** The chain that translates. */
  readonly chain: string;
  readonly match: Match & Required<Pick<Match, "ports">>;
  readonly comment?: string;
  readonly to: string;
}

/**
 * The ports that rules translate. What a rule does not say, the rules that lead to it do: portmap
 * names a container's ports where it jumps to its chain, Kubernetes names no port anywhere else.
 *
 * A rule that names no port, or all but some, translates what nobody else wants, as routers forward
 * everything to one machine; it claims none.
 */
export function findClaims(rules: readonly NatRule[]): Claim[] {
  const chains = Map.groupBy(rules, ({ chain }) => chain);
  const called = new Set(rules.map(({ jump }) => jump));
  const claims: Claim[] = [];
  const seen = new Set<string>();
  const follow = (chain: string, above: Pick<NatRule, "match" | "comment">) => {
    const key = JSON.stringify([chain, above]);
    if (seen.has(key)) return;
    seen.add(key);
    for (const rule of chains.get(chain) ?? []) {
      const match = { ...above.match, ...rule.match };
      const comment = rule.comment ?? above.comment;
      const { ports } = match;
      const said = comment === undefined ? {} : { comment };
      if (rule.translatesTo !== undefined && ports !== undefined) {
        claims.push({ chain, match: { ...match, ports }, ...said, to: rule.translatesTo });
      } else if (rule.jump !== undefined) follow(rule.jump, { match, ...said });
    }
  };
  // One that nothing leads to counts too: whoever made it will see to that.
  for (const chain of chains.keys()) if (!called.has(chain)) follow(chain, { match: {} });
  return claims;
}
