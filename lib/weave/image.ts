/**
 * Weave Net's image: getting it, and looking at how it starts.
 *
 * @module
 */

import { docker, type DockerRun, inspect } from "../docker/docker.ts";
import { describe, DockerError, TapkitError } from "../errors.ts";
import type { ImageStart } from "./command.ts";

const LAUNCH = "/home/weave/launch.sh";

/** How to say what goes on. */
export interface Telling {
  readonly note: (text: string) => void;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Makes sure that the image is on this host.
 *
 * Equivalent to: `docker image inspect IMAGE || docker pull IMAGE`
 *
 * @throws {TapkitError} when there is none, and it cannot be pulled
 */
export async function ensureImage(image: string, { note, signal }: Telling): Promise<void> {
  if (await hasImage(image, { signal })) return;
  note(`pulling ${image}`);
  const layers = new Map<string, boolean>();
  let said = "";
  const onLine = (line: string) => {
    const [, layer, state] = /^([0-9a-f]{12}): (.*)$/.exec(line.trim()) ?? [];
    if (layer === undefined || state === undefined) return;
    const done = state === "Pull complete" || state === "Already exists";
    layers.set(layer, done || layers.get(layer) === true);
    const count = [...layers.values()].filter(Boolean).length;
    const text = `pulling ${image}: ${count} of ${layers.size} layers`;
    if (done && text !== said) note(said = text);
  };
  try {
    await docker(["pull", image], { signal, onLine });
  } catch (cause) {
    if (!(cause instanceof DockerError)) throw cause;
    throw new TapkitError(`the image ${image} is not on this host: ${describe(cause)}`, {
      mend: "check its name and the network, or load it with docker load",
      cause,
    });
  }
}

/** Whether the image is on this host. */
export async function hasImage(image: string, run: DockerRun = {}): Promise<boolean> {
  return await inspect("image", image, run) !== undefined;
}

/**
 * Looks at how an image starts. The container that is looked at has no network and is gone afterwards.
 *
 * Equivalent to: `docker run --rm --network none --entrypoint cat IMAGE /home/weave/launch.sh`
 *
 * @throws {TapkitError} when it is not Weave Net's for CNI
 */
export async function readStart(image: string, run: DockerRun = {}): Promise<ImageStart> {
  let script: string;
  try {
    const look = ["run", "--rm", "--network", "none", "--entrypoint", "cat", image, LAUNCH];
    script = await docker(look, run);
  } catch (cause) {
    if (!(cause instanceof DockerError)) throw cause;
    throw new TapkitError(`the image ${image} has no ${LAUNCH}: ${describe(cause)}`, {
      mend: "name Weave Net's for Kubernetes, as weaveworks/weave-kube:2.5.2",
      cause,
    });
  }
  const start = startOf(script);
  if (start !== undefined) return start;
  throw new TapkitError(
    `the image ${image} does not take its peers from KUBE_PEERS, so it cannot run without Kubernetes`,
    { mend: "use weaveworks/weave-kube:2.5.2, or rajchaudhuri/weave-kube" },
  );
}

/**
 * How an image starts, told by its launch.sh: up to 2.8.0 as the documentation says, later ones ask
 * Kubernetes for its version, and end where there is none.
 *
 * @returns undefined when it cannot start without Kubernetes
 */
export function startOf(script: string): ImageStart | undefined {
  const lines = script.split("\n").filter((line) => !/^\s*#/.test(line)).join("\n");
  if (!/\bKUBE_PEERS\b/.test(lines)) return undefined;
  return {
    asksKubernetes: /=\$\(\S*kube-utils -print-[^|\n]*$/m.test(lines),
    metrics: /\bWEAVE_METRICS_ADDR\b/.test(lines) ? "WEAVE_METRICS_ADDR" : "WEAVE_STATUS_ADDR",
  };
}
