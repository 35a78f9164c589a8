/**
 * Setting Weave Net up on this host, as the documentation has it done by hand.
 *
 * @module
 */

import { checkpoint } from "../checkpoint.ts";
import { type Container, docker, type DockerRun, requireEngine } from "../docker/docker.ts";
import { TapkitError } from "../errors.ts";
import { NetlinkConnection } from "../netlink/connection.ts";
import { getLink } from "../netlink/link.ts";
import { type Lock, lockFileAsync, lockHolder } from "../sys/flock.ts";
import { UndoStack } from "../undo.ts";
import {
  CONTAINER,
  differences,
  environmentOf,
  IMAGE,
  type ImageStart,
  type Launch,
  runArguments,
  shellText,
} from "./command.ts";
import { conflistPath, removeDefault, replaceable, restoreDefault } from "./conflist.ts";
import { findContainers, type Found, nameOf, REPLACED } from "./containers.ts";
import {
  DEFAULT_RANGE,
  findCollision,
  machineIdFault,
  refuseOverlap,
  WEAVE_BRIDGE,
} from "./host.ts";
import { ensureImage, hasImage, readStart } from "./image.ts";
import { refuseKubernetes } from "./kubernetes.ts";
import type { Peer } from "./peers.ts";
import { launchOf, readRequest, type Wanted, wantedOf } from "./plan.ts";
import { removePolicyRules } from "./policy-rules.ts";
import { lookAtWeave, waitReady } from "./ready.ts";
import { removeContainer, takeRouterAway } from "./remove.ts";
import type { WeaveReport } from "./report.ts";
import { connect } from "./router.ts";
import {
  forgetSettings,
  hasData,
  readPassword,
  readSettings,
  removeData,
  writePassword,
  writeSettings,
} from "./settings.ts";
import type { WeaveHost, WeaveRequest, WeaveState } from "./types.ts";
import { ensureXtablesLock, isXtablesLock } from "./xtables-lock.ts";

const LOCK = "/run/setup-weave.lock";
const WAIT_SECONDS = 60;

/**
 * Starts Weave Net's router, or changes the one that runs, and waits until it gives out addresses.
 *
 * @throws {InputError} when the request is malformed
 * @throws {TapkitError} when a step failed; what was begun is undone. Where only others are missing, what
 * was begun goes on
 */
export async function setupWeave(request: WeaveRequest, host: WeaveHost): Promise<WeaveState> {
  const asked = readRequest(request);
  refuseKubernetes(host.dirs.confDir);
  const { signal } = host;
  using _lock = await lockWeave(host);
  await requireEngine({ signal });
  const found = await findContainers({ signal });
  using nl = NetlinkConnection.open();
  const wanted = await wantedOf(nl, asked, found.container);
  refuseOverlap(nl, wanted.settings.range ?? DEFAULT_RANGE);
  const { image = IMAGE } = wanted.settings;
  await ensureImage(image, host);
  const start = await readStart(image, { signal });
  const vms = host.attached();
  const launch = launchOf(nl, wanted, { start, dirs: host.dirs, used: vms.length > 0 });
  const reasons = differencesOf(nl, found, launch, wanted);
  refuseUnderVms(nl, found, launch, vms.map(({ name }) => name));
  const replaced = replaceable(host.dirs, host.usersOf);
  warn(nl, wanted, found, host);

  const undo = new UndoStack();
  const changes: string[] = [];
  try {
    keepSettings(wanted, replaced, undo);
    changes.push(...ensureXtablesLock(undo).map((path) => `created ${path}`));
    undo.push("the bridge's way past other firewalls", async () => {
      if (found.container === undefined && vms.length === 0) await host.revoke();
    });
    if (await host.allow()) changes.push("let the bridge's traffic pass other firewalls");
    if (replaced !== undefined) {
      undo.push("the default network", () => restoreDefault(host.dirs, replaced));
      removeDefault(host.dirs);
      changes.push("removed the default network");
    }
    changes.push(...await startRouter(nl, found, launch, { reasons, host, undo }));
    for (const { problem } of removePolicyRules()) {
      changes.push(problem.replace(/^has /, "removed "));
    }
    const id = (await findContainers({ signal })).container?.Id ?? CONTAINER;
    let told = false;
    const { report, awaited } = await waitReady(id, {
      seconds: request.wait ?? WAIT_SECONDS,
      look: async () => {
        const seen = await lookAtWeave(nl, host.dirs, wanted.peers, signal);
        if (seen.report === undefined || told) return seen;
        changes.push(...await connectPeers(wanted.peers, seen.report.targets, host));
        told = true;
        return seen;
      },
      note: host.note,
      signal,
    });
    await checkpoint(signal);
    undo.commit();
    await removeReplaced({ signal });
    if (report === undefined || awaited.length > 0) {
      throw notReady(request.wait ?? WAIT_SECONDS, awaited, report);
    }
    await host.claim();
    const collision = findCollision(report.connections);
    if (collision !== undefined) host.note(`warning: ${collision}`);
    return { ...stateOf(host, wanted, { id, report, ready: true }), changes };
  } catch (error) {
    throw await undo.fail(error);
  }
}

/**
 * The command that would start Weave Net, for a person to paste. Nothing is changed.
 *
 * @throws {InputError} when the request is malformed
 */
export async function printWeave(request: WeaveRequest, host: WeaveHost): Promise<string> {
  const asked = readRequest(request);
  using nl = NetlinkConnection.open();
  const wanted = await wantedOf(nl, asked, undefined);
  const { image = IMAGE } = wanted.settings;
  let start: ImageStart = { asksKubernetes: false, metrics: "WEAVE_METRICS_ADDR" };
  if (image !== IMAGE) {
    if (await hasImage(image, host)) start = await readStart(image, host);
    else host.note(`${image} is not on this host: it may have to be started in another way`);
  }
  host.note(
    `before this command: touch /run/xtables.lock; rm -f ${host.dirs.confDir}/10-ignite.conflist` +
      (wanted.password === undefined
        ? ""
        : "; install -D -m 600 PASSWORD-FILE /var/lib/weave/tapkit-password"),
  );
  return shellText(launchOf(nl, wanted, { start, dirs: host.dirs, used: false }));
}

/** Waits while another call changes Weave Net. */
export async function lockWeave({ note, signal }: WeaveHost): Promise<Lock> {
  return await lockFileAsync(LOCK, {
    remove: true,
    signal,
    waits: (path) => note(`waiting for ${lockHolder(path) ?? "another setup-weave"}`),
  });
}

/** What is reported of Weave Net. */
export function stateOf(
  { dirs }: WeaveHost,
  { settings, primaryIP, peers }: Wanted,
  { id, report, ready }: { id?: string; report?: WeaveReport | undefined; ready: boolean },
): WeaveState {
  return {
    ...id === undefined ? {} : { container: id },
    image: settings.image ?? IMAGE,
    primaryIP,
    peers: peers.map(({ peer }) => peer),
    ready,
    conflist: conflistPath(dirs),
    connections: report?.connections ?? [],
  };
}

/** How what runs differs from what is wanted, the password too. */
export function differencesOf(
  nl: NetlinkConnection,
  { container }: Found,
  launch: Launch,
  wanted: Wanted,
): string[] {
  if (container === undefined) return [];
  const mtu = bridgeMtu(nl);
  const changed = readPassword() !== wanted.password &&
    environmentOf(container).get("WEAVE_PASSWORD") === undefined;
  return [
    ...differences(container, launch),
    ...changed ? ["has another password"] : [],
    // It stays mounted as what it was when the container was made.
    ...mtu === undefined || mtu === launch.mtu
      ? []
      : [`has a bridge with an MTU of ${mtu}, not ${launch.mtu}`],
    ...isXtablesLock() ? [] : ["was started without the file /run/xtables.lock"],
  ];
}

function rangeOf(container: Container): string {
  return environmentOf(container).get("IPALLOC_RANGE") ?? DEFAULT_RANGE;
}

function bridgeMtu(nl: NetlinkConnection): number | undefined {
  return getLink(nl, WEAVE_BRIDGE)?.mtu;
}

/** What cannot change while VMs are on the bridge. */
function refuseUnderVms(
  nl: NetlinkConnection,
  { container }: Found,
  launch: Launch,
  vms: readonly string[],
): void {
  if (vms.length === 0) return;
  const names = vms.map((name) => `VM ${JSON.stringify(name)}`).join(", ");
  const mend = `run attach-vm ${vms.join(" ")} --remove first`;
  const before = readSettings();
  const range = container ? rangeOf(container) : before && (before.range ?? DEFAULT_RANGE);
  const wanted = launch.range ?? DEFAULT_RANGE;
  if (range !== undefined && range !== wanted) {
    throw new TapkitError(
      `the range ${range} cannot become ${wanted} while it gives ${names} an address`,
      { mend },
    );
  }
  const mtu = bridgeMtu(nl);
  if (mtu !== undefined && mtu !== launch.mtu) {
    throw new TapkitError(
      `the bridge's MTU of ${mtu} cannot become ${launch.mtu} while ${names} ` +
        `${vms.length > 1 ? "are" : "is"} on it`,
      { mend },
    );
  }
}

function warn(nl: NetlinkConnection, wanted: Wanted, found: Found, { note }: WeaveHost): void {
  const fault = machineIdFault(nl);
  if (fault !== undefined) note(`warning: ${fault}`);
  if (wanted.password === undefined && found.container === undefined) {
    note(
      "warning: no password is set, so whoever reaches TCP port 6783 of this host, VMs included, can " +
        "join the network: use --password-file, with the same password on all hosts",
    );
  }
}

function keepSettings(wanted: Wanted, replaced: string | undefined, undo: UndoStack): void {
  const [before, password] = [readSettings(), readPassword()];
  const made = !hasData();
  undo.push("the settings", () => {
    if (made) return removeData();
    if (before === undefined) forgetSettings();
    else writeSettings(before);
    writePassword(password);
  });
  writeSettings({ ...wanted.settings, ...replaced === undefined ? {} : { replaced } });
  writePassword(wanted.password);
}

interface Starting {
  readonly reasons: readonly string[];
  readonly host: WeaveHost;
  readonly undo: UndoStack;
}

/** Starts a container, or another one in its place. Returns what was changed. */
async function startRouter(
  nl: NetlinkConnection,
  { container, replaced }: Found,
  launch: Launch,
  { reasons, host, undo }: Starting,
): Promise<string[]> {
  const { signal } = host;
  // A call that was killed left it.
  if (replaced !== undefined) await removeReplaced({ signal });
  if (container !== undefined && reasons.length === 0) {
    if (container.State.Running) return [];
    await docker(["start", container.Id], { signal });
    return [`started the container ${nameOf(container)}`];
  }
  if (container === undefined) {
    // A bridge that is there outlived its router: VMs may be on it.
    const kept = bridgeMtu(nl) !== undefined;
    undo.push("Weave Net's router", () => {
      return kept ? removeContainer(CONTAINER) : takeRouterAway(host.dirs);
    });
  } else {
    host.note(`the container ${nameOf(container)} ${reasons.join(", ")}: it is replaced`);
    await setAside(container, undo, signal);
  }
  // The router leaves a bridge's MTU and addresses. No VM is on it: that was refused.
  const moved = container !== undefined && rangeOf(container) !== (launch.range ?? DEFAULT_RANGE);
  if (moved || (bridgeMtu(nl) ?? launch.mtu) !== launch.mtu) await takeRouterAway(host.dirs);
  await docker(runArguments(launch), { signal });
  if (container === undefined) return ["started the container weave"];
  return [`replaced the container, which ${reasons.join(", ")}`];
}

/** Removes a container in whose place another one runs. */
async function removeReplaced(run: DockerRun): Promise<void> {
  const { replaced } = await findContainers(run);
  if (replaced !== undefined) await docker(["rm", "-f", replaced.Id], run);
}

/** Stops a container, for good if this call is killed, and frees its name. */
async function setAside(
  container: Container,
  undo: UndoStack,
  signal: AbortSignal | undefined,
): Promise<void> {
  const policy = container.HostConfig.RestartPolicy.Name || "no";
  undo.push("the container", async () => {
    await removeContainer(CONTAINER);
    await docker(["rename", container.Id, nameOf(container)]).catch(() => {});
    await docker(["update", "--restart", policy, container.Id]);
    await docker(["start", container.Id]);
  });
  await docker(["update", "--restart", "no", container.Id], { signal });
  await docker(["stop", "--time", "2", container.Id], { signal });
  await docker(["rename", container.Id, REPLACED], { signal });
}

/** Tells a router that has other peers. Returns what was changed. */
async function connectPeers(
  wanted: readonly Peer[],
  targets: readonly string[],
  { signal }: WeaveHost,
): Promise<string[]> {
  const peers = wanted.map(({ peer }) => peer);
  const [added, left] = [
    peers.filter((peer) => !targets.includes(peer)),
    targets.filter((peer) => !peers.includes(peer)),
  ];
  if (added.length + left.length === 0) return [];
  await connect(peers, { signal });
  return [
    ...added.map((peer) => `added the peer ${peer}`),
    ...left.map((peer) => `removed the peer ${peer}`),
  ];
}

function notReady(
  seconds: number,
  awaited: readonly string[],
  report: WeaveReport | undefined,
): TapkitError {
  return new TapkitError(`Weave Net is not ready after ${seconds} s: ${awaited.join("; ")}`, {
    mend: report === undefined
      ? "see docker logs weave"
      : "run setup-weave on the other hosts, then here again; the container goes on",
  });
}
