/**
 * Opening the firewall: which backend, of which network namespace.
 *
 * @module
 */

import { ownAddresses } from "../netlink/address.ts";
import { openNetfilter } from "../netlink/conntrack.ts";
import { NetlinkConnection } from "../netlink/connection.ts";
import { currentNetns, type Netns, withNetns } from "../sys/netns.ts";
import { Firewall } from "./firewall.ts";
import { NftStore } from "./kernel.ts";
import { CLOSED_TABLE, TABLE } from "./ruleset.ts";
import { PolicyStore } from "./policy.ts";
import type { FirewallKind, NftTable, Survey } from "./store.ts";
import { chainExists, legacyTables, listTables } from "./survey.ts";

/** The chain that tapkit has in iptables wherever it has any. */
const PUBLISHED = "TAPKIT-PUBLISHED";

/** Which firewall to open. */
export interface OpenOptions {
  /** The backend. Absent, it is nftables where the kernel has it, else iptables. */
  readonly kind?: FirewallKind | undefined;
  /** Of which network namespace; the current one's when absent. */
  readonly netns?: Netns;
}

/**
 * Opens the host's firewall. Nothing is changed.
 *
 * @throws {TapkitError} when iptables is asked for and is not installed
 */
export async function openFirewall({ kind, netns: at }: OpenOptions = {}): Promise<Firewall> {
  using stack = new DisposableStack();
  const netns = stack.use(inside(at, currentNetns));
  const netfilter = stack.use(inside(at, openNetfilter));
  const survey = { tables: listTables(netfilter), legacy: inside(at, legacyTables) };
  const store = (kind ?? await usualKind(survey)) === "nftables"
    ? new NftStore(netns, netfilter)
    : (await import("./iptables.ts")).openIptables(netns, survey);
  const foreign = survey.tables?.some(({ name }) => !isOwn(name)) || survey.legacy.length > 0;
  const gates = foreign ? (await import("./gates.ts")).findGates(netns, netfilter, survey) : [];
  stack.move();
  const addresses = () =>
    withNetns(netns, () => {
      using nl = NetlinkConnection.open();
      return ownAddresses(nl);
    });
  return new Firewall(store, {
    policies: new PolicyStore(netns, netfilter),
    netfilter,
    ownAddresses: addresses,
    isMixed: () => {
      const tables = listTables(netfilter) ?? [];
      return store.kind === "nftables"
        ? hasIptables({ tables, legacy: withNetns(netns, legacyTables) }, netfilter)
        : tables.some(isOwnTable);
    },
    gates,
    lookAtPorts: async () => {
      const { lookAtPorts } = await import("./mapped-ports.ts");
      return await lookAtPorts({ netns, netfilter, ownAddresses: addresses });
    },
  });
}

/** Whether iptables has chains of tapkit's, or may have: the old tables are not looked into. */
function hasIptables({ tables = [], legacy }: Survey, netfilter: NetlinkConnection): boolean {
  return legacy.some(({ name }) => name === "nat") ||
    tables.some((table) =>
      table.name === "nat" && (table.family === "ip" || table.family === "ip6") &&
      chainExists(netfilter, table, PUBLISHED)
    );
}

/** Whether a backend's programs are there; nftables needs none to take rules away. */
export async function isInstalled(kind: FirewallKind): Promise<boolean> {
  return kind === "nftables" || (await import("./xtables.ts")).installedVariants().length > 0;
}

function inside<T>(netns: Netns | undefined, fn: () => T): T {
  return netns === undefined ? fn() : withNetns(netns, fn as () => never);
}

/** The backend that is taken where none is asked for. */
export async function usualKind({ tables }: Survey): Promise<FirewallKind> {
  if (tables !== undefined) return "nftables";
  // Without either, what the kernel lacks is to be named.
  return await isInstalled("iptables") ? "iptables" : "nftables";
}

/** Of a table that needs no look at those of others. */
function isOwn(name: string): boolean {
  return name.startsWith(TABLE) && name !== CLOSED_TABLE;
}

function isOwnTable({ family, name }: NftTable): boolean {
  return family === "inet" && name === TABLE;
}
