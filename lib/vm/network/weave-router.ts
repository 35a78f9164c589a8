/**
 * Weave Net's router as VMs need it: it gives out addresses, and its bridge has one, which is the gateway.
 *
 * @module
 */

import { pause } from "../../checkpoint.ts";
import { describe, DockerError, TapkitError } from "../../errors.ts";
import { listAddresses } from "../../netlink/address.ts";
import type { NetlinkConnection } from "../../netlink/connection.ts";
import { getLink } from "../../netlink/link.ts";
import { WEAVE_BRIDGE } from "../../weave/host.ts";
import type { WeaveReport } from "../../weave/report.ts";
import { report as askRouter } from "../../weave/router.ts";
import type { Host } from "../session.ts";

/** How long a router that answers may take until it is ready. */
const READY_MS = 10_000;
/** How long one may take that is started at the same time as the VMs are restored. */
const COMING_MS = 60_000;
const POLL_MS = 250;
/** After how long a note says what is waited for. */
const PATIENCE_MS = 1000;

/** Where a router is waited for. */
type Waiting = Pick<Host, "session" | "note" | "signal">;

/**
 * Waits until the router is ready.
 *
 * @throws {WeaveError} when it does not answer
 * @throws {TapkitError} saying what it waits for, when it does so for too long
 */
export async function readyRouter(
  { session: { nl }, note, signal }: Waiting,
): Promise<WeaveReport> {
  let lacks: string | undefined;
  const waiting = setTimeout(
    () => note(`waiting for Weave Net's router${lacks === undefined ? "" : `: ${lacks}`}`),
    PATIENCE_MS,
  );
  try {
    for (const end = Date.now() + READY_MS;;) {
      const report = await askRouter({ signal });
      lacks = lackOf(report, nl);
      if (lacks === undefined) return report;
      if (Date.now() > end) break;
      await pause(POLL_MS, signal);
    }
  } finally {
    clearTimeout(waiting);
  }
  throw new TapkitError(`Weave Net is not ready: ${lacks}`, {
    mend: "see setup-weave --check, and start Weave Net on the hosts that are missing",
  });
}

/**
 * Waits for the router, where its container is set to come up: after a reboot it may come later than the
 * VMs. What keeps it from coming up is for those to say who need it.
 */
export async function awaitRouter({ session: { nl }, note, signal }: Waiting): Promise<void> {
  const look = async () => {
    try {
      return lackOf(await askRouter({ signal }), nl);
    } catch (error) {
      signal?.throwIfAborted();
      return describe(error);
    }
  };
  let lacks = await look();
  if (lacks === undefined || !await comesUp(signal)) return;
  note(`waiting for Weave Net's router, ${COMING_MS / 1000} s at most: ${lacks}`);
  for (const end = Date.now() + COMING_MS; lacks !== undefined && Date.now() < end;) {
    await pause(POLL_MS, signal);
    lacks = await look();
  }
}

/** Whether Docker is going to start the router, or has just done so. */
async function comesUp(signal: AbortSignal | undefined): Promise<boolean> {
  const { docker, inspectContainer } = await import("../../docker/docker.ts");
  try {
    // Whoever started it, and by whichever name, mounted its db there.
    const ids = await docker(["ps", "-aq", "--filter", "volume=/weavedb"], { signal });
    for (const id of ids.split("\n").filter(Boolean)) {
      const { Running, Restarting } = (await inspectContainer(id, { signal }))?.State ?? {};
      if (Running || Restarting) return true;
    }
    return false;
  } catch (error) {
    signal?.throwIfAborted();
    if (!(error instanceof TapkitError)) throw error;
    // An engine that does not answer yet starts it when it does.
    return error instanceof DockerError;
  }
}

/** What VMs have to wait for. */
function lackOf({ started, ipam }: WeaveReport, nl: NetlinkConnection): string | undefined {
  if (!started) return "it is starting";
  const { state, quorum, known } = ipam;
  switch (state) {
    case "awaiting consensus":
      return quorum === undefined
        ? "it waits for a majority of its peers"
        : `it waits for ${quorum} of its peers, of which ${known ?? 0} are there`;
    case "owners unreachable":
      return "all addresses belong to hosts that it cannot reach";
  }
  const bridge = getLink(nl, WEAVE_BRIDGE);
  const gateway = bridge && listAddresses(nl, { index: bridge.index, family: 4 })[0];
  return gateway === undefined ? `the bridge "${WEAVE_BRIDGE}" has no address` : undefined;
}
