/**
 * Sandboxes: containers whose network namespaces VMs get.
 *
 * @module
 */

import { DockerError, TapkitError } from "../errors.ts";
import { type Container, docker, type DockerRun, inspect, inspectContainer } from "./docker.ts";
import { SANDBOX_PROGRAM } from "./sandbox-image.ts";

/** The label of tapkit's own containers: the VM's name. */
const LABEL = "tapkit.vm";

/** The names of the VMs that have a sandbox, running or not. */
export async function listSandboxes(run: DockerRun): Promise<string[]> {
  const format = `{{.Label "${LABEL}"}}`;
  const listed = await docker(["ps", "-a", "--filter", `label=${LABEL}`, "--format", format], run);
  return listed.split("\n").filter(Boolean);
}

/** What a sandbox is made of. */
export interface SandboxRequest {
  /** The VM's name. */
  readonly vm: string;
  readonly image: string;
  /** Its program; that of the image if absent. */
  readonly program?: string | undefined;
  /** A network of Docker's, by name. */
  readonly network: string;
  /** Addresses to ask for, which only networks that a user made take. */
  readonly addresses: readonly string[];
  /** What Docker publishes: `"192.0.2.1:8080:80/tcp"`. */
  readonly publish: readonly string[];
}

/** The name of a VM's sandbox: `"tapkit-web"`. */
export function sandboxName(vm: string): string {
  return `tapkit-${vm}`;
}

/**
 * The container that has the name of a VM's sandbox; undefined if there is none.
 *
 * @throws {TapkitError} for one that tapkit did not make
 */
export async function findSandbox(vm: string, run: DockerRun): Promise<Container | undefined> {
  const name = sandboxName(vm);
  const container = await inspectContainer(name, run);
  if (container === undefined || container.Config.Labels?.[LABEL] === vm) return container;
  throw new TapkitError(`there is a container "${name}" already, and it is not tapkit's`, {
    mend: `remove or rename it (docker rename ${name} …), or give the VM another name`,
  });
}

/**
 * Creates a sandbox and starts it.
 *
 * Equivalent to: `docker create --name tapkit-VM --network NET -p … IMAGE`, `docker start tapkit-VM`
 *
 * @param onMade called when a container may be there
 * @throws {TapkitError} when it does not keep running
 */
export async function startSandbox(
  request: SandboxRequest,
  run: DockerRun,
  onMade: () => void,
): Promise<Container> {
  const { vm, image, program, network, addresses, publish } = request;
  const name = sandboxName(vm);
  onMade();
  const args = [
    ...["create", "--name", name, "--hostname", vm.slice(0, 63), "--label", `${LABEL}=${vm}`],
    ...["--network", network],
    ...addresses.flatMap((address) => [address.includes(":") ? "--ip6" : "--ip", address]),
    ...publish.flatMap((port) => ["--publish", port]),
    // It ends at once when it is stopped: as process 1 it hears no other signal.
    ...["--stop-signal", "KILL", "--restart", "no"],
    ...program === undefined ? [image] : [
      ...["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"],
      ...[image, program],
    ],
  ];
  // One that a killed process left half made has the name, and is not wanted.
  for (let attempt = 1;; attempt++) {
    try {
      await docker(args, run);
      break;
    } catch (error) {
      if (attempt === 2 || !isNameTaken(error)) throw error;
      await removeSandbox(vm, run, { cutOff: image });
    }
  }
  await docker(["start", name], run);
  const container = await inspectContainer(name, run);
  if (container?.State.Running) return container;
  throw new TapkitError(
    `container "${name}" of image "${image}" ended at once` +
      (container === undefined ? "" : `, with exit code ${container.State.ExitCode}`),
    { mend: "name an image whose program keeps running, or leave --image out" },
  );
}

/** How long the engine may take to make a container after who asked for it was killed. */
const SETTLING_MS = 10_000;
const POLL_MS = 50;

/**
 * Removes a VM's sandbox, if there is one.
 *
 * Equivalent to: `docker rm --force tapkit-VM`
 *
 * @param options.cutOff the image, if a process that made it may have been killed: the engine may still be
 * making it
 * @returns whether there was one
 */
export async function removeSandbox(
  vm: string,
  run: DockerRun,
  { cutOff }: { readonly cutOff?: string | undefined } = {},
): Promise<boolean> {
  const name = sandboxName(vm);
  const deadline = Date.now() + SETTLING_MS;
  for (;;) {
    const found = await findSandbox(vm, run) !== undefined;
    if (found && await remove(name, run)) return true;
    if (cutOff === undefined || !await isBeingMade(vm, cutOff, run)) return found;
    if (Date.now() > deadline) {
      throw new TapkitError(`Docker neither makes container "${name}" nor forgets it`, {
        mend: "restart Docker's engine, then run the command again",
      });
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

async function remove(name: string, run: DockerRun): Promise<boolean> {
  try {
    await docker(["rm", "--force", "--volumes", name], run);
    return true;
  } catch (error) {
    // Another call removes it, or has removed it.
    const is = (pattern: RegExp) => error instanceof DockerError && pattern.test(error.stderr);
    if (is(/no such container/i)) return true;
    if (is(/removal of container .* is already in progress/i)) return false;
    throw error;
  }
}

/**
 * Whether the engine is still making a sandbox: its name is taken, though there is no container to be
 * seen. That is found by making one; true if that was made, too.
 */
async function isBeingMade(vm: string, image: string, run: DockerRun): Promise<boolean> {
  if (await inspect("image", image, run) === undefined) return false;
  try {
    const args = ["--name", sandboxName(vm), "--label", `${LABEL}=${vm}`, "--network", "none"];
    await docker(["create", ...args, image, SANDBOX_PROGRAM], run);
    return true;
  } catch (error) {
    if (isNameTaken(error)) return true;
    throw error;
  }
}

function isNameTaken(error: unknown): boolean {
  return error instanceof DockerError && /is already in use by container/i.test(error.stderr);
}
