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
import type { NetlinkConnection } from "../netlink/connection.ts";
import { currentNetns } from "../sys/netns.ts";
import type { NftTable } from "./store.ts";
import { chainExists, legacyTables } from "./survey.ts";

/** How the owners of Docker's ports begin; the container's address follows. */
export const DOCKER_OWNER = "docker:";

const NAT_TABLES: readonly NftTable[] = ["ip", "ip6"].map((family) => ({ family, name: "nat" }));

/**
 * The ports that Docker's rules map in the current network namespace. Without such rules this
 * costs two looks at the kernel.
 *
 * @param nl a connection to its netfilter
 */
export async function dockerPorts(nl: NetlinkConnection): Promise<TakenPorts[]> {
  const places = [
    ...NAT_TABLES.filter((table) => chainExists(nl, table, "DOCKER"))
      .map(({ family }) => ({ variant: "nft", family } as const)),
    ...legacyTables().filter(({ name }) => name === "nat")
      .map(({ family }) => ({ variant: "legacy", family } as const)),
  ];
  if (places.length === 0) return [];
  const { Xtables } = await import("./xtables.ts");
  using netns = currentNetns();
  return places.flatMap(({ variant, family }) => {
    try {
      const saved = new Xtables(variant, netns).save(family === "ip6" ? 6 : 4, "nat");
      return saved.split("\n").flatMap((rule) => parseDockerRule(rule) ?? []);
    } catch (error) {
      // What cannot be read cannot be told of; a listener may still be found.
      if (error instanceof TapkitError) return [];
      throw error;
    }
  });
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
