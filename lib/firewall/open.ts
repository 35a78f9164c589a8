/**
 * Opening the firewall: which backend, of which network namespace.
 *
 * @module
 */

import { openNetfilter } from "../netlink/conntrack.ts";
import { NetlinkConnection } from "../netlink/connection.ts";
import { currentNetns, type Netns, withNetns } from "../sys/netns.ts";
import { Firewall } from "./firewall.ts";
import { listTables, NftStore, type NftTable } from "./kernel.ts";
import { hasLibnftables } from "./libnftables.ts";
import { TABLE } from "./ruleset.ts";
import type { FirewallKind } from "./store.ts";

/** Which firewall to open. */
export interface OpenOptions {
  /** The backend. Absent, it is nftables where kernel and libnftables allow it, else iptables. */
  readonly kind?: FirewallKind | undefined;
  /** Of which network namespace; the current one's when absent. */
  readonly netns?: Netns;
}

/** What a look at a host tells of its firewalls. */
interface Survey {
  /** Absent where the kernel has no nf_tables. */
  readonly tables: readonly NftTable[] | undefined;
  /** The old tables of iptables that were ever used. */
  readonly legacy: readonly string[];
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
  const route = stack.use(inside(at, () => NetlinkConnection.open()));
  const survey = { tables: listTables(netfilter), legacy: inside(at, legacyTables) };
  const store = (kind ?? await usualKind(survey)) === "nftables"
    ? new NftStore(netns, netfilter)
    : (await import("./iptables.ts")).openIptables(netns, survey);
  stack.move();
  return new Firewall(store, netfilter, route);
}

function inside<T>(netns: Netns | undefined, fn: () => T): T {
  return netns === undefined ? fn() : withNetns(netns, fn as () => never);
}

async function usualKind({ tables }: Survey): Promise<FirewallKind> {
  if (tables?.some(isOwnTable) || tables !== undefined && hasLibnftables()) return "nftables";
  // Without either, what is missing is to be named.
  const { installedVariants } = await import("./xtables.ts");
  return installedVariants().length > 0 ? "iptables" : "nftables";
}

function isOwnTable({ family, name }: NftTable): boolean {
  return family === "inet" && name === TABLE;
}

/** The old tables of iptables that have been used in the current network namespace. */
function legacyTables(): string[] {
  return ["ip", "ip6"].flatMap((family) => {
    try {
      const names = Deno.readTextFileSync(`/proc/thread-self/net/${family}_tables_names`);
      return names.split("\n").filter((name) => name !== "");
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return [];
      throw error;
    }
  });
}
