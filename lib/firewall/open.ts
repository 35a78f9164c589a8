/**
 * Opening the firewall: which backend, of which network namespace.
 *
 * @module
 */

import { ownAddresses } from "../netlink/address.ts";
import { NetlinkConnection } from "../netlink/connection.ts";
import { openNetfilter } from "../netlink/nfnetlink.ts";
import { NftMemory } from "../netlink/nftables/memory.ts";
import { getChain, listTables } from "../netlink/nftables/objects.ts";
import { currentNetns, type Netns, withNetns } from "../sys/netns.ts";
import { Firewall } from "./firewall.ts";
import { GoneGuests } from "./gone-flows.ts";
import { describeElement, elementsOf } from "./guest-elements.ts";
import { NftStore } from "./nft-store.ts";
import { otherFirewalls } from "./passes.ts";
import { policyStores } from "./policy.ts";
import { MAIN_TABLE, TABLE } from "./ruleset.ts";
import type { FirewallKind, Survey } from "./store.ts";
import { installedVariants, LegacyTables } from "./xtables.ts";

/** The chain that tapkit has in iptables wherever it has any. */
const PUBLISHED = "TAPKIT-PUBLISHED";

/** Which firewall to open. */
export interface OpenOptions {
  /** The backend. Absent, it is nftables where the kernel has it, else iptables. */
  readonly kind?: FirewallKind | undefined;
  /** Of which network namespace; the current one's when absent. */
  readonly netns?: Netns;
  /** The directory of what does not outlive a reboot; only a test names another. */
  readonly runDirectory?: string;
}

/**
 * Opens the host's firewall. Nothing is changed.
 *
 * @throws {TapkitError} when iptables is asked for and is not installed
 */
export async function openFirewall(
  { kind, netns: at, runDirectory }: OpenOptions = {},
): Promise<Firewall> {
  using stack = new DisposableStack();
  const netns = stack.use(inside(at, currentNetns));
  const netfilter = stack.use(inside(at, openNetfilter));
  const legacy = stack.use(new LegacyTables(netns));
  const memory = new NftMemory(netfilter);
  memory.refresh();
  const survey = () => ({
    tables: memory.recall("tables", () => listTables(netfilter)),
    legacy: legacy.list(),
  });
  const seen = survey();
  const store = (kind ?? usualKind(seen)) === "nftables"
    ? new NftStore(netns, memory, {
      layer: "rules",
      table: () => MAIN_TABLE,
      want: elementsOf,
      describe: describeElement,
    })
    : (await import("./iptables.ts")).openIptables(netns, seen);
  stack.move();
  const addresses = () =>
    withNetns(netns, () => {
      using nl = NetlinkConnection.open();
      return ownAddresses(nl);
    });
  return new Firewall(store, {
    policies: policyStores(netns, memory),
    memory,
    legacy,
    ownAddresses: addresses,
    open: () => withNetns(netns, openNetfilter),
    isMixed: () => {
      const now = survey();
      return store.kind === "nftables"
        ? hasIptables(now, netfilter)
        : now.tables?.some(({ family, name }) => family === "inet" && name === TABLE) === true;
    },
    gone: inside(at, () => new GoneGuests(runDirectory)),
    others: () => {
      const now = survey();
      const find = () => otherFirewalls({ ...now, netns, netfilter });
      // The kernel does not tell of changes of the old tables.
      return now.legacy.length > 0 ? find() : memory.recall("other firewalls", find);
    },
    lookAtPorts: async () => {
      const { lookAtPorts } = await import("./mapped-ports.ts");
      return await lookAtPorts({ netns, netfilter, ownAddresses: addresses }, survey(), memory);
    },
  });
}

/** Whether iptables has chains of tapkit's, or may have: the old tables are not looked into. */
function hasIptables({ tables = [], legacy }: Survey, netfilter: NetlinkConnection): boolean {
  return legacy.some(({ name }) => name === "nat") ||
    tables.some((table) =>
      table.name === "nat" && (table.family === "ip" || table.family === "ip6") &&
      getChain(netfilter, { family: table.family, table: "nat", chain: PUBLISHED }) !== undefined
    );
}

/** Whether a backend's programs are there; nftables needs none to take rules away. */
export function isInstalled(kind: FirewallKind): boolean {
  return kind === "nftables" || installedVariants().length > 0;
}

function inside<T>(netns: Netns | undefined, fn: () => T): T {
  return netns === undefined ? fn() : withNetns(netns, fn as () => never);
}

/** The backend that is taken where none is asked for. */
export function usualKind({ tables }: Survey): FirewallKind {
  if (tables !== undefined) return "nftables";
  // Without either, what the kernel lacks is to be named.
  return isInstalled("iptables") ? "iptables" : "nftables";
}
