/**
 * What differs of the interfaces that a VM's networks made.
 *
 * @module
 */

import {
  canRerun,
  type ChainFinding,
  type MadeAttachment,
  type NetworkAttachment,
} from "../../cni/plan.ts";
import { checkNetwork, hasExecuted } from "../../cni/runtime.ts";
import type { NetlinkConnection } from "../../netlink/connection.ts";
import { getLink } from "../../netlink/link.ts";
import { isSame } from "../../same.ts";
import type { Context } from "../layers/layer.ts";
import type { Both } from "../record/attachment.ts";
import type { Difference } from "../types.ts";
import { movesIdentity } from "../wire/wires.ts";

/** CHECK of a VM's networks, and what is seen of them without their plugins. */
export async function checkChains(
  context: Context<Both>,
  { facts }: Both,
  vmNl: NetlinkConnection,
): Promise<Difference[]> {
  const { host, outside, cutOff } = context;
  const { nl: hostNl } = host.session;
  const environment = {
    netnsPath: facts.netns.path,
    hostNl,
    vmNl,
    plugins: host,
    outside,
    note: host.note,
  };
  const found: Difference[] = [];
  for (const [network, { attachment, link, wire }] of facts.networks.entries()) {
    const { ifName } = attachment;
    if (hasExecuted(attachment) && getLink(vmNl, ifName) === undefined) {
      // No CHECK need say so: it may be disabled, or fail of something else.
      const object = `interface "${ifName}" of "${attachment.network}"`;
      found.push({ layer: "network", object, problem: "is missing", repair: "recreate" });
      continue;
    }
    const identityMoved = wire !== undefined && movesIdentity(wire.mode);
    const other = cutOff?.to?.facts.networks[network]?.attachment;
    const doubted = doubtedPlaces(attachment, other);
    const findings = await checkNetwork(attachment, { ...environment, identityMoved });
    const differences = findings
      .filter(({ executed }) => executed === undefined || !doubted.includes(executed))
      .map((finding) => differenceOf(finding, attachment, network));
    differences.push(...doubted.map((plugin): Difference => ({
      layer: "network",
      object: `${attachment.plugins[plugin]!.type}:`,
      problem: "running it again was cut off",
      repair: canRerun(attachment, plugin) ? "live" : "recreate",
      place: { network, plugin },
    })));
    // What the plugin that made the interface says of it is told once.
    const told = differences.some(({ place, ignored }) => place?.plugin === 0 && !ignored);
    if (link !== undefined && isMade(attachment) && !told) {
      const { checkSeen } = await import("./executed-link.ts");
      const seen = checkSeen(attachment, link, { hostNl, vmNl, identityMoved });
      differences.push(...seen.map((finding): Difference => ({
        layer: "network",
        ...finding,
        repair: "live",
        place: { network, kind: "seen" },
      })));
    }
    found.push(...differences);
  }
  return found;
}

/** The places of plugins that a change, which was cut off, was giving another configuration. */
function doubtedPlaces(attachment: NetworkAttachment, other?: NetworkAttachment): number[] {
  if (other === undefined) return [];
  return attachment.plugins.flatMap(({ config }, place) =>
    isSame(config, other.plugins[place]?.config) ? [] : [place]
  );
}

function differenceOf(
  { object, problem, executed, masquerade, ignored, live: mendable }: ChainFinding,
  attachment: NetworkAttachment,
  network: number,
): Difference {
  const live = mendable || masquerade || executed !== undefined && canRerun(attachment, executed);
  return {
    layer: "network",
    object,
    problem,
    repair: ignored ? "none" : live ? "live" : "recreate",
    ...ignored ? { ignored } : {},
    ...executed === undefined && !masquerade && !mendable ? {} : {
      place: {
        network,
        ...mendable ? { kind: "builtin" as const } : {},
        ...executed === undefined ? {} : { plugin: executed },
        ...masquerade ? { kind: "masquerade" as const } : {},
      },
    },
  };
}

/** Whether an attachment was made by plugins that were executed. */
function isMade(attachment: NetworkAttachment): attachment is MadeAttachment {
  return hasExecuted(attachment) && attachment.result !== undefined;
}
