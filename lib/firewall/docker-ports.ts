/**
 * Host ports that Docker publishes. Its rules translate packets before any listener sees them, and
 * with `userland-proxy` off there is no listener at all.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import { runSync } from "../exec.ts";
import {
  type PortConflict,
  PortConflictError,
  type PortMapping,
  type Protocol,
  type TakenPorts,
} from "../inet/ports.ts";
import { nfgenmsg, NFNL_SUBSYS, nfnlType, openNetfilter } from "../netlink/conntrack.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { NetlinkError } from "../netlink/errors.ts";

/** How the owners of Docker's ports begin; the container's address follows. */
export const DOCKER_OWNER = "docker:";

/** linux/netfilter.h. */
const NFPROTO = { IPV4: 2, IPV6: 10 } as const;
/** linux/netfilter/nf_tables.h. */
const NFT_MSG_GETCHAIN = 4;
const NFTA_CHAIN = { TABLE: 1, NAME: 3 } as const;

/**
 * The ports that Docker's rules map in the current network namespace. Without such rules this
 * costs two looks at the kernel.
 */
export function dockerPorts(): TakenPorts[] {
  using nl = openNetfilter();
  const rules = [
    ...hasNftChain(nl, NFPROTO.IPV4) ? natRules("iptables-nft-save") : [],
    ...hasNftChain(nl, NFPROTO.IPV6) ? natRules("ip6tables-nft-save") : [],
    ...hasLegacyTable("ip_tables_names") ? natRules("iptables-legacy-save") : [],
    ...hasLegacyTable("ip6_tables_names") ? natRules("ip6tables-legacy-save") : [],
  ];
  return rules.flatMap((rule) => parseDockerRule(rule) ?? []);
}

/** Whether iptables-nft has a chain DOCKER in its nat table. */
function hasNftChain(nl: NetlinkConnection, family: number): boolean {
  const payload = nfgenmsg(family)
    .attrString(NFTA_CHAIN.TABLE, "nat").attrString(NFTA_CHAIN.NAME, "DOCKER").finish();
  try {
    const subject = { action: "look up", object: 'iptables chain "DOCKER"' };
    return nl.request(nfnlType(NFNL_SUBSYS.NFTABLES, NFT_MSG_GETCHAIN), 0, payload, subject)
      .length > 0;
  } catch (error) {
    if (error instanceof NetlinkError) return false;
    throw error;
  }
}

/** /proc lists the tables that iptables-legacy has ever made in this namespace. */
function hasLegacyTable(list: string): boolean {
  try {
    return Deno.readTextFileSync(`/proc/thread-self/net/${list}`).split("\n").includes("nat");
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

function natRules(command: string): string[] {
  try {
    return runSync(command, ["-t", "nat"]).split("\n");
  } catch (error) {
    // Whoever made the rules had the program; without it they cannot be read.
    if (error instanceof TapkitError) return [];
    throw error;
  }
}

/**
 * The port that a rule of Docker's maps, as `iptables-save` writes it; undefined for any other
 * rule.
 */
export function parseDockerRule(rule: string): TakenPorts | undefined {
  if (!rule.startsWith("-A DOCKER ")) return undefined;
  const value = (flag: string) => new RegExp(` ${flag} (\\S+)`).exec(rule)?.[1];
  const [to, protocol, hostPort] = [value("--to-destination"), value("-p"), value("--dport")];
  const target = /^\[?([0-9a-f.:]+?)\]?:(\d+)$/.exec(to ?? "");
  if (target === null || protocol === undefined || hostPort === undefined) return undefined;
  const anywhere = target[1]!.includes(":") ? "::" : "0.0.0.0";
  const mapping: PortMapping = {
    hostIP: value("-d")?.replace(/\/.*/, "") ?? anywhere,
    hostPort: Number(hostPort),
    vmPort: Number(target[2]),
    protocol: protocol as Protocol,
  };
  return { owner: `${DOCKER_OWNER}${target[1]}`, mappings: [mapping] };
}

/** The refusal of a port that Docker has, with the container's name where Docker tells it. */
export function dockerConflict(conflict: PortConflict): PortConflictError {
  const address = conflict.owner.slice(DOCKER_OWNER.length);
  const { hostPort, protocol } = conflict;
  const name = containerName(hostPort, protocol);
  return new PortConflictError(
    conflict,
    `published by ${
      name === undefined ? `a container of Docker's (${address})` : `Docker's container "${name}"`
    }`,
    "choose another host port, or stop that container",
  );
}

/**
 * The owner that a listener is of, where it is Docker's proxy for a container.
 *
 * @param pid of the process
 */
export function proxiedContainer(pid: number): string | undefined {
  try {
    const words = Deno.readTextFileSync(`/proc/${pid}/cmdline`).split("\0");
    const address = words[words.indexOf("-container-ip") + 1];
    return words[0]?.endsWith("docker-proxy") && address ? `${DOCKER_OWNER}${address}` : undefined;
  } catch {
    // It ended meanwhile.
    return undefined;
  }
}

/** The container that publishes a host port, where the engine answers. */
function containerName(hostPort: number, protocol: string): string | undefined {
  const filter = `publish=${hostPort}/${protocol}`;
  const ask = ["docker", "ps", "--format", "{{.Names}}", "--filter", filter];
  try {
    return runSync("timeout", ["3", ...ask]).split("\n")[0] || undefined;
  } catch (error) {
    if (error instanceof TapkitError) return undefined;
    throw error;
  }
}
