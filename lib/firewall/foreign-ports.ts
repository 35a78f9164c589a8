/**
 * Host ports that rules of others map: Docker's, those of the portmap plugins of other runtimes,
 * podman's, Kubernetes', or a person's; and tapkit's own in iptables.
 *
 * Such rules translate packets before any listener sees them, and mostly there is no listener.
 *
 * @module
 */

import { describe, TapkitError } from "../errors.ts";
import { BITS, cidrContains, type Family, isIp, parseCidr } from "../inet/ip.ts";
import { type PortMapping, PROTOCOLS, type TakenPorts } from "../inet/ports.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { listRules, type NftTable, tableLabel } from "../netlink/nftables/objects.ts";
import { type Netns, withNetns } from "../sys/netns.ts";
import { DOCKER_OWNER } from "./docker-ports.ts";
import { Nftables } from "./libnftables.ts";
import { parseListedRules } from "./nat-listed.ts";
import { type Claim, findClaims, type NatRule } from "./nat-rules.ts";
import { parseSavedRules } from "./nat-saved.ts";
import { installedVariants, type Variant, Xtables } from "./xtables.ts";

/** The families whose packets come to host ports. */
const FAMILIES: Readonly<Record<string, readonly Family[]>> = { ip: [4], ip6: [6], inet: [4, 6] };
/** What the names of expressions and of iptables' targets are that translate destinations. */
const TRANSLATING = /nat\0|redir\0|tproxy\0|DNAT|REDIRECT|TPROXY/;
/** The beginning of the chains that tapkit has in iptables. */
const OWN_CHAINS = "TAPKIT-";

/** The network namespace that is looked at. */
export interface NetnsView {
  readonly netns: Netns;
  /** Of that namespace. */
  readonly netfilter: NetlinkConnection;
  /** Its addresses, without prefix lengths. */
  readonly ownAddresses: () => ReadonlySet<string>;
}

/** What was read, and sentences on what could not be. */
export interface ForeignPorts {
  readonly taken: readonly TakenPorts[];
  readonly unread: readonly string[];
}

/** Rules, and what messages call the place they are in. */
interface Rules {
  readonly families: readonly Family[];
  readonly place: string;
  readonly rules: readonly NatRule[];
}

/**
 * The ports that rules of others map. Where nothing translates this costs a look at each table.
 *
 * @param tables of nf_tables, but for tapkit's
 * @param legacy the old `nat` tables of iptables that were ever used
 */
export function foreignPorts(
  at: NetnsView,
  tables: readonly NftTable[],
  legacy: readonly NftTable[],
): ForeignPorts {
  const unread: string[] = [];
  const read = (what: string, get: () => Rules | undefined): Rules[] => {
    try {
      const rules = get();
      return rules === undefined ? [] : [rules];
    } catch (error) {
      if (!(error instanceof TapkitError)) throw error;
      unread.push(`which host ports ${what} maps cannot be told: ${describe(error)}`);
      return [];
    }
  };
  const found = [
    ...tables.filter((table) => translates(at.netfilter, table)).flatMap((table) => {
      const label = tableLabel(table);
      const saved = table.name === "nat" && table.family !== "inet"
        ? read(label, () => savedRules(at, "nft", table))
        : [];
      return saved.length > 0 ? saved : read(label, () => listedRules(at, table, label));
    }),
    ...legacy.flatMap((table) => read("iptables-legacy", () => savedRules(at, "legacy", table))),
  ];
  let own: ReadonlySet<string> | undefined;
  const addresses = () => own ??= new Set(["127.0.0.1", ...at.ownAddresses()]);
  const taken = found.flatMap((rules) =>
    findClaims(rules.rules).map((claim) => takenBy(claim, rules, addresses))
  );
  return { taken, unread };
}

/** Whether a table has a rule that translates destinations, or may have. */
function translates(nl: NetlinkConnection, { family, name }: NftTable): boolean {
  if (!(family in FAMILIES)) return false;
  const decoder = new TextDecoder("latin1");
  return listRules(nl, { family, table: name })
    .some(({ expressions }) => TRANSLATING.test(decoder.decode(expressions)));
}

/** Undefined where the table is not one of iptables', or nf_tables' and its programs are missing. */
function savedRules(
  { netns }: NetnsView,
  variant: Variant,
  { family }: NftTable,
): Rules | undefined {
  const program = `iptables-${variant}`;
  if (!installedVariants().includes(variant)) {
    throw new TapkitError(`${program}-save is not installed`, {
      mend: "install the package iptables",
    });
  }
  const saved = new Xtables(variant, netns).save(family === "ip6" ? 6 : 4, "nat");
  if (!/^\*nat$/m.test(saved)) return undefined;
  return { families: FAMILIES[family]!, place: program, rules: parseSavedRules(saved) };
}

function listedRules({ netns }: NetnsView, { family, name }: NftTable, place: string): Rules {
  if (!/^[\w./-]+$/.test(name)) throw new TapkitError("its name is none that nft takes");
  using nft = withNetns(netns, () => Nftables.open());
  const text = nft.run(`list table ${family} ${name}`, `list ${place}`, "json");
  return { families: FAMILIES[family]!, place, rules: parseListedRules(text) };
}

function takenBy(
  { chain, match, comment, to }: Claim,
  { families, place }: Rules,
  own: () => ReadonlySet<string>,
): TakenPorts {
  const wildcards = families.filter((family) => isIp(to) === 0 || isIp(to) === family)
    .map((family) => family === 4 ? "0.0.0.0" : "::");
  const hosts = match.addresses?.flatMap((address) => hostAddresses(address, own)) ?? wildcards;
  const protocols = PROTOCOLS.filter((name) => match.protocols?.includes(name) ?? true);
  const mappings = protocols.flatMap((protocol) =>
    hosts.flatMap((hostIP) =>
      match.ports.map(([first, last]): PortMapping => ({
        hostIP,
        hostPort: first,
        vmPort: first,
        protocol,
        ...first === last ? {} : { range: last - first + 1 },
      }))
    )
  );
  if (chain.startsWith(OWN_CHAINS) && comment !== undefined) return { owner: comment, mappings };
  const byDocker = chain === "DOCKER" || place.includes(" docker-");
  if (byDocker && isIp(to) !== 0) return { owner: `${DOCKER_OWNER}${to}`, mappings };
  const said = comment === undefined ? "" : ` (${comment})`;
  return {
    owner: containerOf(comment) ?? chain,
    mappings,
    by: `chain ${chain} of ${place}${said}`,
  };
}

/** The host's addresses that a rule's destination stands for; another's own is as it is. */
function hostAddresses(destination: string, own: () => ReadonlySet<string>): string[] {
  if (!destination.includes("/")) return [destination];
  const cidr = parseCidr(destination);
  const length = BITS[cidr.family];
  if (cidr.prefixLength === length) return [cidr.address];
  return [...own()].filter((address) =>
    isIp(address) === cidr.family && cidrContains(cidr, address)
  );
}

/** The id of the container that runtimes say a rule is for. */
function containerOf(comment: string | undefined): string | undefined {
  const named = /\bid: "?([^\s"]+)/.exec(comment ?? "")?.[1];
  return named ?? /^[0-9a-f]{64}$/.exec(comment ?? "")?.[0];
}
