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

/** The refusal of a port that Docker has. */
export function dockerConflict(conflict: PortConflict, name?: string): PortConflictError {
  const address = conflict.owner.slice(DOCKER_OWNER.length);
  return new PortConflictError(
    conflict,
    `published by ${
      name === undefined ? `a container of Docker's (${address})` : `Docker's container "${name}"`
    }`,
    "choose another host port, or stop that container",
  );
}

/**
 * The same error, with the container's name where it is a port of Docker's and Docker tells the name.
 * Called with no lock held, because Docker is asked.
 */
export function nameContainer(error: unknown): unknown {
  if (!(error instanceof PortConflictError) || !error.owner.startsWith(DOCKER_OWNER)) return error;
  const name = containerName(error.hostPort, error.protocol);
  return name === undefined ? error : dockerConflict(error, name);
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
