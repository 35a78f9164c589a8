/**
 * Docker and Weave Net, where VMs depend on them.
 *
 * @module
 */

import { type DockerRun, inspectContainer, requireEngine } from "../docker/docker.ts";
import { listSandboxes, sandboxName } from "../docker/sandbox.ts";
import { isThere } from "../files.ts";
import { WEAVE_PLUGIN } from "../weave/conflist.ts";
import { machineIdFault } from "../weave/host.ts";
import { readSettings } from "../weave/settings.ts";
import type { Both } from "../vm/record/attachment.ts";
import { usesWeave } from "../vm/network/weave.ts";
import { checkWeave } from "../vm/verbs/weave.ts";
import { type Check, count, fine, type Problem, problemOf, verdict } from "./check.ts";
import type { Examined } from "./host.ts";

const SOCKETS = ["/run/docker.sock", "/var/run/docker.sock"];

/** How long Docker may take to answer all that is asked, in milliseconds. */
const PATIENCE_MS = 30_000;

/** Aborted when the call is, or when Docker takes too long. */
function impatient({ options: { signal } }: Examined): AbortSignal {
  const late = AbortSignal.timeout(PATIENCE_MS);
  return signal === undefined ? late : AbortSignal.any([signal, late]);
}

const docker: Check = {
  name: "Docker",
  async run(host) {
    const vms = host.attached.filter(({ spec }) => spec.docker !== undefined);
    const isNeeded = vms.length > 0 || isWeaveWanted(host);
    if (!isNeeded && !SOCKETS.some(isThere)) {
      return fine("does not run, and nothing needs it (bridge-legacy and setup-weave would)");
    }
    const run = { signal: impatient(host) };
    try {
      const { version } = await requireEngine(run);
      const problems = [...await missingContainers(vms, run), ...await staleSandboxes(host, run)];
      return verdict(problems, `version ${version} answers; ${count(vms.length, "VM")} on it`);
    } catch (error) {
      host.options.signal?.throwIfAborted();
      const late = {
        what: `it does not answer within ${PATIENCE_MS / 1000} seconds`,
        mend: "see what is wrong with it: systemctl status docker",
      };
      const mend = "install the package docker.io, and start docker.service";
      const problem = run.signal.aborted ? late : problemOf(error, mend);
      return isNeeded ? verdict([problem], "") : fine(`${problem.what}; nothing needs it`);
    }
  },
};

async function missingContainers(vms: readonly Both[], run: DockerRun): Promise<Problem[]> {
  const problems: Problem[] = [];
  for (const { spec: { id }, facts } of vms) {
    const name = facts.networks[0]?.docker?.container ?? sandboxName(id.name);
    const container = await inspectContainer(name, run);
    if (container?.State.Running) continue;
    const how = container === undefined ? "is gone" : `is ${container.State.Status}`;
    const what = `the container of VM "${id.name}" ${how}`;
    problems.push({ what, mend: `run attach-vm ${id.name}` });
  }
  return problems;
}

async function staleSandboxes({ names }: Examined, run: DockerRun): Promise<Problem[]> {
  return (await listSandboxes(run)).filter((vm) => !names.has(vm)).map((vm) => ({
    what: `the container ${sandboxName(vm)} is of a VM that has no record`,
    mend: `run attach-vm ${vm} --remove`,
  }));
}

/** Whether Weave Net was set up here, or VMs or a network need it. */
function isWeaveWanted({ configurations, everywhere }: Examined): boolean {
  return configurations.some(({ list }) =>
    list?.plugins.some(({ type }) => type === WEAVE_PLUGIN) ?? false
  ) || everywhere.some(usesWeave) || readSettings() !== undefined;
}

const weave: Check = {
  name: "Weave Net",
  needs: "Docker",
  async run(host) {
    if (!isWeaveWanted(host)) return fine("is not set up");
    const { session: { nl }, confDir, binDirs } = host.host;
    const fault = machineIdFault(nl);
    const { problems = [], connections } = await checkWeave({}, {
      ...host.options,
      signal: impatient(host),
      confDir,
      binDirs,
    });
    const mend = "run setup-weave, and see what it says";
    return verdict(
      [...problems, ...fault === undefined ? [] : [fault]].map((what) => ({ what, mend })),
      `answers, with ${count(connections.length, "connection")} to peers`,
    );
  },
};

export const DOCKER_CHECKS: readonly Check[] = [docker, weave];
