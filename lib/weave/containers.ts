/**
 * The containers on this host that run Weave Net, whoever started them.
 *
 * @module
 */

import { type Container, docker, type DockerRun } from "../docker/docker.ts";
import { DockerError, TapkitError } from "../errors.ts";
import { CONTAINER, isWeave } from "./command.ts";

/** The name of a container for as long as another one takes its place. */
export const REPLACED = "weave-replaced";

/** What runs Weave Net here. */
export interface Found {
  /** The one container; undefined if there is none. */
  readonly container?: Container;
  /** One whose place was being taken when a call was killed. */
  readonly replaced?: Container;
}

/**
 * Looks for the container of Weave Net's router.
 *
 * @throws {TapkitError} naming them, when there are several, or another container has its name
 */
export async function findContainers(run: DockerRun): Promise<Found> {
  const all = await listContainers(run);
  const ours = all.filter((each) => isWeave(each) || nameOf(each) === REPLACED);
  const replaced = ours.find((each) => nameOf(each) === REPLACED);
  const [container, another] = ours.filter((each) => each !== replaced);
  if (another !== undefined) {
    throw new TapkitError(
      `the containers ${nameOf(container!)} and ${nameOf(another)} both run Weave Net`,
      { mend: `remove one of them: docker rm -f ${nameOf(another)}` },
    );
  }
  const other = all.find((each) => nameOf(each) === CONTAINER && !isWeave(each));
  if (other !== undefined) {
    throw new TapkitError(
      `the container "${CONTAINER}" is of ${other.Config.Image} and does not run Weave Net for CNI`,
      { mend: `remove or rename it: docker rename ${CONTAINER} other` },
    );
  }
  return { ...container && { container }, ...replaced && { replaced } };
}

/** A container's name, without the slash. */
export function nameOf({ Name }: Container): string {
  return Name.replace(/^\//, "");
}

/** The last line of a container's standard error, else of its output; "" if there is none. */
export async function lastWords(container: Container, run: DockerRun): Promise<string> {
  const lines: string[] = [];
  const onLine = (line: string) => lines.push(line);
  const output = await docker(["logs", "--tail", "20", container.Id], { ...run, onLine });
  const printed = output.split("\n");
  const said = (line: string) => line.trim() !== "";
  const error = lines.findLast((line) => said(line) && !printed.includes(line));
  return (error ?? printed.findLast(said) ?? "").trim();
}

async function listContainers(run: DockerRun): Promise<Container[]> {
  const ids = (await docker(["ps", "-aq", "--no-trunc"], run)).split("\n").filter(Boolean);
  if (ids.length === 0) return [];
  try {
    return JSON.parse(await docker(["container", "inspect", ...ids], run));
  } catch (error) {
    // One of them is gone meanwhile.
    if (error instanceof DockerError && /no such/i.test(error.stderr)) return listContainers(run);
    throw error;
  }
}
