/**
 * Leaving Weave Net's network.
 *
 * @module
 */

import { tidyDefaultCni } from "../cni/default-network.ts";
import { docker, requireEngine } from "../docker/docker.ts";
import { asError, describe, DockerError, TapkitError, WeaveError } from "../errors.ts";
import { isThere } from "../files.ts";
import { NetlinkConnection } from "../netlink/connection.ts";
import { deleteLink, getLink, listLinks } from "../netlink/link.ts";
import { CONTAINER, IMAGE } from "./command.ts";
import { type CniDirs, conflistPath, removeFiles, restoreDefault } from "./conflist.ts";
import { findContainers } from "./containers.ts";
import { WEAVE_BRIDGE } from "./host.ts";
import { leave, report as askRouter } from "./router.ts";
import { removeWeaveRules } from "./rules.ts";
import { forgetSettings, hasData, readSettings, removeData } from "./settings.ts";
import type { WeaveHost } from "./types.ts";
import { forgetXtablesLock } from "./xtables-lock.ts";

/** The router's own links, and its tunnel of the fast datapath. */
const LINKS = /^(vethwe-|vxlan-6784$)/;
/** The hosts' ends of what is attached. */
const PORTS = /^vethwepl/;
const DATAPATH = "datapath";

/** How to leave. */
export interface LeaveOptions {
  /** Remove the router's data too: which addresses it owned, and its peers. */
  readonly purge?: boolean;
  /** Install the default network again. */
  readonly restoreDefault?: boolean;
}

/**
 * Tells the peers that this host leaves, and removes the container, bridge, rules, configuration and
 * plugins of Weave Net. What is not there is passed over.
 *
 * @param installDefault installs the default network where Weave Net took none's place
 * @returns whether there was anything
 * @throws {TapkitError} while VMs or others are on the bridge; nothing was touched. Else naming all that
 * could not be removed: the rest is gone
 */
export async function removeWeave(
  options: LeaveOptions,
  host: WeaveHost,
  installDefault: () => Promise<void>,
): Promise<boolean> {
  refuseUsed(host);
  const run = { signal: host.signal };
  const there = isHere(host.dirs);
  try {
    await requireEngine(run);
  } catch (error) {
    // Without docker there was no container, and so nothing else.
    if (there || error instanceof DockerError) throw error;
    return false;
  }
  const { container, replaced } = await findContainers(run);
  const before = readSettings()?.replaced;
  if (container?.State.Running) await tellPeers(host);
  const failures: unknown[] = [];
  const attempt = async (step: () => unknown) => {
    try {
      await step();
    } catch (error) {
      failures.push(error);
    }
  };
  for (const each of [container, replaced]) {
    if (each !== undefined) await attempt(() => docker(["rm", "-f", each.Id]));
  }
  await attempt(() => takeRouterAway(host.dirs, container?.Config.Image));
  await attempt(() => host.revoke());
  await attempt(forgetXtablesLock);
  if (options.restoreDefault) {
    await attempt(async () => {
      // A killed call may have left a file aside.
      tidyDefaultCni(host.dirs.confDir);
      if (before === undefined) await installDefault();
      else restoreDefault(host.dirs, before);
    });
  }
  if (failures.length === 0) await attempt(options.purge ? removeData : forgetSettings);
  if (failures.length > 0) {
    throw new TapkitError(failures.map((error) => asError(error).message).join("; "), {
      mend: "mend that, and run setup-weave --remove again",
      cause: failures[0],
    });
  }
  return there || container !== undefined || replaced !== undefined;
}

/** Removes what the router made, and the router. */
export async function takeRouterAway(dirs: CniDirs, image: string = IMAGE): Promise<void> {
  await removeContainer(CONTAINER);
  using nl = NetlinkConnection.open();
  if (getLink(nl, DATAPATH)?.kind === "openvswitch") {
    // Its internal port cannot be deleted as a link.
    const reset = ["--entrypoint", "/usr/bin/weaveutil", image, "delete-datapath", DATAPATH];
    await docker(["run", "--rm", "--privileged", "--net", "host", ...reset]);
  }
  const links = listLinks(nl).map(({ name }) => name).filter((name) => LINKS.test(name));
  for (const name of [...links, WEAVE_BRIDGE]) deleteLink(nl, name);
  removeWeaveRules();
  removeFiles(dirs);
}

/** Removes a container. One that is not there is fine. */
export async function removeContainer(name: string): Promise<void> {
  try {
    await docker(["rm", "-f", name]);
  } catch (error) {
    if (!(error instanceof DockerError && /no such/i.test(error.stderr))) throw error;
  }
}

/** The addresses of one that has left may be given to others, so nobody may be using them. */
function refuseUsed(host: WeaveHost): void {
  const vms = host.attached().map(({ name }) => name);
  if (vms.length > 0) {
    const names = vms.map((name) => `VM ${JSON.stringify(name)}`).join(", ");
    throw new TapkitError(`${names} ${vms.length > 1 ? "are" : "is"} on Weave Net`, {
      mend: `run attach-vm ${vms.join(" ")} --remove first`,
    });
  }
  using nl = NetlinkConnection.open();
  const bridge = getLink(nl, WEAVE_BRIDGE);
  const others = bridge === undefined
    ? []
    : listLinks(nl, { master: bridge.index }).map(({ name }) => name)
      .filter((name) => PORTS.test(name));
  if (others.length === 0) return;
  throw new TapkitError(
    `others than tapkit's VMs are on the bridge "${WEAVE_BRIDGE}", by ${others.join(", ")}`,
    { mend: "take them off Weave Net first; where nobody uses such a link, delete it" },
  );
}

function isHere(dirs: CniDirs): boolean {
  using nl = NetlinkConnection.open();
  return hasData() || isThere(conflistPath(dirs)) || getLink(nl, WEAVE_BRIDGE) !== undefined;
}

/** Gives this host's part of the range to a peer, if there is one to take it. */
async function tellPeers({ note, signal }: WeaveHost): Promise<void> {
  try {
    const { connections } = await askRouter({ signal });
    if (connections.some(({ state }) => state === "established")) await leave({ signal });
  } catch (error) {
    if (!(error instanceof WeaveError)) throw error;
    note(
      `warning: the peers were not told: ${describe(error)}. On one of them: ` +
        "curl -X DELETE http://127.0.0.1:6784/peer/NAME, with the name that it lists for this host",
    );
  }
}
