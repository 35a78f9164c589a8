/**
 * Docker and Weave Net, where VMs depend on them.
 *
 * @module
 */

import { inspectContainer, requireEngine } from "../docker/docker.ts";
import { sandboxName } from "../docker/sandbox.ts";
import { isThere } from "../files.ts";
import { WEAVE_PLUGIN } from "../weave/conflist.ts";
import { machineIdFault } from "../weave/host.ts";
import { readSettings } from "../weave/settings.ts";
import { usesWeave } from "../vm/network/weave.ts";
import { checkWeave } from "../vm/verbs/weave.ts";
import { type Check, count, fine, type Problem, problemOf, verdict } from "./check.ts";
import type { Examined } from "./host.ts";

const SOCKETS = ["/run/docker.sock", "/var/run/docker.sock"];

const docker: Check = {
  name: "Docker",
  async run(host) {
    const vms = host.attached.filter(({ spec }) => spec.docker !== undefined);
    const weave = isWeaveWanted(host);
    if (vms.length === 0 && !weave && !SOCKETS.some(isThere)) {
      return fine("does not run, and nothing needs it (bridge-legacy and setup-weave would)");
    }
    const run = { signal: host.options.signal };
    let version: string;
    try {
      ({ version } = await requireEngine(run));
    } catch (error) {
      const problem = problemOf(error, "install the package docker.io, and start docker.service");
      if (vms.length === 0 && !weave) return fine(`${problem.what}; nothing needs it`);
      return verdict([problem], "");
    }
    const problems: Problem[] = [];
    for (const { spec: { id }, facts } of vms) {
      const name = facts.networks[0]?.docker?.container ?? sandboxName(id.name);
      const container = await inspectContainer(name, run);
      if (container?.State.Running) continue;
      problems.push({
        what: `the container of VM "${id.name}" ${
          container === undefined ? "is gone" : `is ${container.State.Status}`
        }`,
        mend: `run attach-vm ${id.name}`,
      });
    }
    return verdict(
      problems,
      `version ${version} answers; ${count(vms.length, "VM")} on its networks`,
    );
  },
};

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
