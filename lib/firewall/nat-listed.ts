/**
 * Rules as nftables lists them in JSON, read as far as translating ports goes (pure). What is not
 * understood of a rule narrows nothing.
 *
 * @module
 */

import { isProtocol, protocolName } from "../inet/ports.ts";
import type { Match, NatRule } from "./nat-rules.ts";

/** Some of libnftables' JSON: libnftables-json(5). */
type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };

/** Where the transport header has the destination's port, in bits. */
const DPORT = { OFFSET: 16, LENGTH: 16 } as const;

/** The elements of a table's named sets and maps. */
type NamedSets = ReadonlyMap<string, readonly Json[]>;

/** What a rule does, once for each element where it looks one up. */
type Branch = Pick<NatRule, "match" | "translatesTo" | "jump">;

/** The rules of a table, as `nft -j list table` prints it. */
export function parseListedRules(text: string): NatRule[] {
  const { nftables } = JSON.parse(text) as { nftables: readonly Json[] };
  const objects = nftables.map(asObject);
  const sets: NamedSets = new Map(
    objects.flatMap((object) => {
      const set = asObject(object.set ?? object.map ?? null);
      return typeof set.name === "string" ? [[set.name, asArray(set.elem)] as const] : [];
    }),
  );
  return objects.flatMap((object) => {
    if (object.rule === undefined) return [];
    const { chain, expr, comment } = asObject(object.rule);
    const said = typeof comment === "string" ? { comment } : {};
    return readRule(asArray(expr), sets)
      .map((branch) => ({ chain: String(chain), ...said, ...branch }));
  });
}

function readRule(statements: readonly Json[], sets: NamedSets): Branch[] {
  let branches: Branch[] = [{ match: {} }];
  const split = (alternatives: readonly Branch[]) => {
    branches = branches.flatMap((branch) =>
      alternatives.map((other) => ({
        ...branch,
        ...other,
        match: { ...branch.match, ...other.match },
      }))
    );
  };
  for (const statement of statements.map(asObject)) {
    const [[kind, value = null] = []] = Object.entries(statement);
    const argument = asObject(value);
    switch (kind) {
      case "match":
        if (argument.op === "==" || argument.op === "in") {
          split(readMatches(argument.left, argument.right, sets).map((match) => ({ match })));
        }
        break;
      case "jump":
      case "goto":
        split([{ match: {}, jump: String(argument.target) }]);
        break;
      case "vmap":
        split(
          lookUp(argument.data, sets).flatMap((element) => {
            const [key = null, verdict = null] = asArray(element);
            const { jump, goto } = asObject(verdict);
            const target = asObject(jump ?? goto ?? null).target;
            return readMatches(argument.key, key, sets)
              .map((match) => ({ match, ...target === undefined ? {} : { jump: String(target) } }));
          }),
        );
        break;
      case "dnat":
      case "redirect":
      case "tproxy":
        split(readTargets(argument, sets));
        break;
      case "xt": {
        // iptables' own programs know more of it.
        const { name } = argument;
        if (name === "DNAT" || name === "REDIRECT") split([{ match: {}, translatesTo: "" }]);
      }
    }
  }
  return branches;
}

/** Where a statement translates to; a map has it for each key. */
function readTargets({ addr = null }: { readonly [key: string]: Json }, sets: NamedSets): Branch[] {
  const { map } = asObject(addr);
  if (map === undefined) {
    return [{ match: {}, translatesTo: typeof addr === "string" ? addr : "" }];
  }
  const { key = null, data } = asObject(map);
  return lookUp(data, sets).flatMap((element) => {
    const [from = null, to = null] = asArray(element);
    const [address] = asArray(asObject(to).concat ?? [to]);
    return readMatches(key, from, sets)
      .map((match) => ({ match, translatesTo: typeof address === "string" ? address : "" }));
  });
}

/** What it means that an expression has a value, or one of a set. */
function readMatches(left: Json | undefined, right: Json | undefined, sets: NamedSets): Match[] {
  const values = lookUp(right, sets);
  const fields = asObject(left ?? null).concat;
  if (fields === undefined) return [readField(left, values)];
  return values.map((value) => {
    const parts = asArray(asObject(value).concat);
    return asArray(fields).reduce<Match>(
      (match, field, index) => ({ ...match, ...readField(field, lookUp(parts[index], sets)) }),
      {},
    );
  });
}

function readField(field: Json | undefined, values: readonly Json[]): Match {
  const { payload, meta } = asObject(field ?? null);
  const { protocol, field: name, base, offset, len } = asObject(payload ?? null);
  const isProtocols = asObject(meta ?? null).key === "l4proto" || name === "protocol" ||
    name === "nexthdr";
  if (isProtocols) return { protocols: values.map(String).map(protocolName) };
  const isPort = name === "dport" ||
    base === "th" && offset === DPORT.OFFSET && len === DPORT.LENGTH;
  if (isPort) {
    const own = String(protocol);
    return {
      ports: values.flatMap(portRange),
      ...isProtocol(own) ? { protocols: [own] } : {},
    };
  }
  if (name !== "daddr") return {};
  const addresses = values.map(addressText);
  return addresses.includes(undefined) ? {} : { addresses: addresses as string[] };
}

/** A value's alternatives: those of a set, named or not. */
function lookUp(value: Json | undefined, sets: NamedSets): readonly Json[] {
  if (value === undefined) return [];
  if (typeof value === "string" && value.startsWith("@")) {
    return (sets.get(value.slice(1)) ?? []).map(plainElement);
  }
  const { set } = asObject(value);
  return set === undefined ? [plainElement(value)] : asArray(set).map(plainElement);
}

/** An element without its comment, timeout or counter. */
function plainElement(element: Json): Json {
  if (Array.isArray(element)) return [plainElement(element[0] as Json), ...element.slice(1)];
  return asObject(asObject(element).elem ?? null).val ?? element;
}

function portRange(value: Json): [number, number][] {
  const [first, last] = asArray(asObject(value).range ?? [value, value]).map(Number);
  return Number.isInteger(first) && Number.isInteger(last) ? [[first!, last!]] : [];
}

function addressText(value: Json): string | undefined {
  if (typeof value === "string") return value;
  const { addr, len } = asObject(asObject(value).prefix ?? null);
  return addr === undefined ? undefined : `${addr}/${len}`;
}

function asObject(value: Json): { readonly [key: string]: Json } {
  return typeof value === "object" && value !== null && !Array.isArray(value)
    ? value as { readonly [key: string]: Json }
    : {};
}

function asArray(value: Json | undefined): readonly Json[] {
  return Array.isArray(value) ? value : value === undefined || value === null ? [] : [value];
}
