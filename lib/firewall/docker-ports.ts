/**
 * Host ports that Docker publishes: saying whose they are.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import { runSync } from "../exec.ts";
import { type PortConflict, PortConflictError } from "../inet/ports.ts";

/** How the owners of Docker's ports begin; the container's address follows. */
export const DOCKER_OWNER = "docker:";

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
