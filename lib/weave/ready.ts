/**
 * Whether Weave Net is ready, what it waits for, and waiting for that.
 *
 * @module
 */

import { pause } from "../checkpoint.ts";
import { type Container, inspectContainer } from "../docker/docker.ts";
import { asError, TapkitError, WeaveError } from "../errors.ts";
import { listAddresses } from "../netlink/address.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { getLink } from "../netlink/link.ts";
import { lastWords } from "./containers.ts";
import { type CniDirs, missingFiles } from "./conflist.ts";
import { WEAVE_BRIDGE } from "./host.ts";
import type { Peer } from "./peers.ts";
import type { PeerConnection, WeaveReport } from "./report.ts";
import { report as askRouter } from "./router.ts";

const POLL_MS = 200;
/** How often the container is asked about. */
const INSPECT_MS = 1000;
/** After so many ends it is not waited for any more. */
const RESTARTS = 3;

/** What was seen of Weave Net. */
export interface Seen {
  /** Absent while the router does not answer. */
  readonly report?: WeaveReport;
  /** What is waited for, a sentence each; none when it is ready. */
  readonly awaited: readonly string[];
}

/**
 * Looks whether Weave Net is ready: addresses are given out, the bridge has its own, and the
 * configuration and the plugins are there. That the router answers is not enough.
 */
export async function lookAtWeave(
  nl: NetlinkConnection,
  dirs: CniDirs,
  peers: readonly Peer[],
  signal?: AbortSignal,
): Promise<Seen> {
  let report: WeaveReport;
  try {
    report = await askRouter({ signal });
  } catch (error) {
    if (!(error instanceof WeaveError)) throw error;
    return { awaited: [error.message] };
  }
  if (!report.started) return { awaited: ["Weave Net's router is starting"] };
  const bridge = getLink(nl, WEAVE_BRIDGE);
  const address = bridge && listAddresses(nl, { index: bridge.index, family: 4 })[0];
  const allocation = awaitedAddresses(report, missingPeers(report, peers));
  return {
    report,
    awaited: [
      ...allocation === undefined ? [] : [allocation],
      ...address === undefined ? [`the bridge "${WEAVE_BRIDGE}" has no address`] : [],
      ...missingFiles(dirs).map((file) => `${file} is not there`),
    ],
  };
}

/** A peer that is not connected, and why, as far as the router knows. */
interface MissingPeer {
  readonly peer: string;
  readonly why: string;
}

/** The peers that are not connected, without this host itself. */
export function missingPeers(
  { connections }: Pick<WeaveReport, "connections">,
  peers: readonly Peer[],
): MissingPeer[] {
  return peers.filter(({ own }) => !own).flatMap(({ peer, address }) => {
    const tried = connections.filter((connection) => connection.peer === address);
    if (tried.some(isConnected)) return [];
    const why = tried.find(({ info }) => info !== "")?.info ?? "";
    return [{ peer, why: shortened(why) }];
  });
}

/** Of two connections to one peer, the second is given up. */
function isConnected({ state, info }: PeerConnection): boolean {
  return state === "established" || /^multiple connections to /i.test(info);
}

/** Weave Net's reason without what repeats the address, and when it tries again. */
function shortened(info: string): string {
  return info.replace(/, retry: .*/, "").replace(/^dial tcp4? \S+ (connect: )?/, "");
}

/** The missing peers for people: `192.0.2.11 (connection refused)`. */
export function listPeers(missing: readonly MissingPeer[]): string {
  return missing.map(({ peer, why }) => why === "" ? peer : `${peer} (${why})`).join(", ");
}

function awaitedAddresses(
  { ipam }: WeaveReport,
  missing: readonly MissingPeer[],
): string | undefined {
  const peers = missing.length === 0 ? "" : `: not connected: ${listPeers(missing)}`;
  switch (ipam.state) {
    case "ready":
      return undefined;
    case "awaiting consensus":
      return `no addresses are given out before ${ipam.quorum ?? "a majority"} of the peers are ` +
        `connected, and ${ipam.known ?? "less"} are${peers}`;
    case "owners unreachable":
      return `all addresses belong to peers that cannot be reached${peers}`;
    case "waiting for addresses":
      return `this host waits for addresses from other peers${peers}`;
    case "idle":
      return `no address has been asked for${peers}`;
  }
}

/**
 * Waits until Weave Net is ready, and says what it waits for whenever that changes.
 *
 * @param seconds how long
 * @returns what was seen last
 * @throws {TapkitError} when the container ends again and again
 */
export async function waitReady(
  container: string,
  { seconds, look, note, signal }: {
    seconds: number;
    look: () => Promise<Seen>;
    note: (text: string) => void;
    signal?: AbortSignal | undefined;
  },
): Promise<Seen> {
  const deadline = Date.now() + 1000 * seconds;
  let said = "";
  let inspected = 0;
  const restartsBefore = (await inspectContainer(container, { signal }))?.RestartCount ?? 0;
  while (true) {
    const seen = await look();
    const { report, awaited } = seen;
    if (awaited.length === 0 || Date.now() >= deadline) return seen;
    if (Date.now() - inspected >= INSPECT_MS) {
      await refuseEnded(await inspectContainer(container, { signal }), restartsBefore, signal);
      inspected = Date.now();
    }
    // While it starts, everything is missing for a moment.
    const text = report && !["ready", "idle"].includes(report.ipam.state) ? awaited[0]! : said;
    if (text !== said) note(`waiting: ${said = text}`);
    await pause(POLL_MS, signal);
  }
}

async function refuseEnded(
  container: Container | undefined,
  before: number,
  signal: AbortSignal | undefined,
): Promise<void> {
  if (container === undefined) {
    throw new TapkitError("Weave Net's container is gone", { mend: "run setup-weave again" });
  }
  const { RestartCount, State } = container;
  // While it runs it has no exit code.
  if (State.Running && !State.Restarting) return;
  if (State.Restarting && RestartCount - before < RESTARTS) return;
  const words = await lastWords(container, { signal }).catch((error) => asError(error).message);
  throw new TapkitError(
    `Weave Net's container ends at once, with exit code ${State.ExitCode}: ${words || "silently"}`,
    { mend: "see docker logs weave" },
  );
}
