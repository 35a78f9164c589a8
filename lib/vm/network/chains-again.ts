/**
 * Plugins of other makers run again on what is attached: where CHECK of a chained one fails, and to
 * publish other ports. The interface, the TAP and the guest are left alone.
 *
 * @module
 */

import {
  canRerun,
  type MadeAttachment,
  type NetworkAttachment,
  publisherOf,
} from "../../cni/plan.ts";
import { rememberFailures, replace } from "../../cni/rerun.ts";
import type { PluginConfig } from "../../cni/types.ts";
import { describe, TapkitError } from "../../errors.ts";
import { isSame } from "../../same.ts";
import { checkChains } from "./chains.ts";
import { mendSeen } from "./executed-link.ts";
import type { Context } from "../layers/layer.ts";
import type { Both } from "../record/attachment.ts";
import { guardSettings } from "../settings.ts";
import type { Difference } from "../types.ts";
import { movesIdentity } from "../wire/wires.ts";

/** Plugins of one network's chain, by their places, and the configuration each is to have. */
type Configs = ReadonlyMap<number, PluginConfig>;

/**
 * Repairs what differs of a VM's networks, and gives plugins the configuration that they are to have.
 *
 * @returns `"recreate"` where only making everything anew does
 */
export async function runAgain(
  context: Context<Both>,
  from: Both,
  to: Both,
): Promise<Both | "recreate"> {
  if (!mendVisible(context, from)) return "recreate";
  for (const { place } of context.found.filter(isMasquerade)) {
    const { attachment } = from.facts.networks[place!.network]!;
    await (await import("../../cni/reference-faults.ts")).restoreMasquerade(attachment);
  }
  let at = to;
  const asked: [network: number, places: number[]][] = [];
  for (const [network, { attachment }] of from.facts.networks.entries()) {
    const wanted = to.facts.networks[network]!.attachment;
    const republishing = changedPlaces(attachment, wanted);
    const failed = context.found
      .filter(({ place }) => place?.network === network && place.kind === undefined)
      .flatMap(({ place }) => place?.plugin ?? []);
    const places = [...new Set([...failed, ...republishing])].sort((a, b) => a - b);
    if (places.length === 0) continue;
    asked.push([network, places]);
    const configs = new Map(places.map((place) => [place, wanted.plugins[place]!.config]));
    if (republishing.length > 0) {
      at = withChain(at, network, await republish(context, from, network, configs));
    } else {
      try {
        at = withChain(at, network, await rerun(context, from, network, configs));
      } catch (error) {
        context.host.signal?.throwIfAborted();
        if (!(error instanceof TapkitError)) throw error;
        const why = `running it again by itself does not do: ${describe(error)}`;
        context.host.note(`attaching anew: ${why}`);
        return "recreate";
      }
    }
  }
  return asked.length === 0 ? at : await remember(context, at, new Map(asked));
}

/** Asks CHECK of all plugins once more right after an ADD that was for its sake. */
export async function checkAdded(context: Context<Both>, at: Both): Promise<Both> {
  const places = at.facts.networks.map(({ attachment: { plugins } }, network) => {
    const executed = [...plugins.keys()].filter((place) =>
      plugins[place]!.implementation === "exec"
    );
    return [network, executed] as const;
  });
  const checked = await remember(context, at, new Map(places));
  return checked === "recreate" ? at : checked;
}

/**
 * Refuses other ports where the plugin that publishes them makes the interface, too.
 *
 * @throws {TapkitError} naming the plugin
 */
export function requireRepublishable({ spec, facts: { networks: [first] } }: Both): void {
  if (first === undefined || publisherOf(first.attachment) === "tapkit") return;
  const { plugins } = first.attachment;
  const fixed = [...plugins.keys()].find((place) =>
    plugins[place]!.config.capabilities?.portMappings === true && !canRerun(first.attachment, place)
  );
  if (fixed === undefined) return;
  throw new TapkitError(
    `its ports are published by the plugin "${plugins[fixed]!.type}", which makes its ` +
      "interface too, and stay while it is attached",
    { mend: `run attach-vm ${spec.id.name} --remove first, or use map-port` },
  );
}

/** Repairs what is seen to differ; returns whether that did. */
function mendVisible({ host, vm, found }: Context<Both>, { facts }: Both): boolean {
  const networks = new Set(
    found.flatMap(({ place }) => place?.kind === "seen" ? place.network : []),
  );
  return [...networks].every((network) => {
    const { attachment, link, wire } = facts.networks[network]!;
    const vmNl = vm.find(facts.netns)?.nl;
    if (link === undefined || vmNl === undefined || !isMade(attachment)) return false;
    const identityMoved = wire !== undefined && movesIdentity(wire.mode);
    return mendSeen(attachment, link, { hostNl: host.session.nl, vmNl, identityMoved });
  });
}

function isMasquerade({ place }: Difference): boolean {
  return place?.kind === "masquerade";
}

function changedPlaces(attachment: NetworkAttachment, wanted: NetworkAttachment): number[] {
  return [...attachment.plugins.keys()].filter((place) =>
    !isSame(attachment.plugins[place]?.config, wanted.plugins[place]?.config)
  );
}

/** Runs plugins of a chain again. What is there of them may be of a change that was cut off. */
async function rerun(
  { host, outside, cutOff }: Context<Both>,
  { facts }: Both,
  network: number,
  configs: Configs,
): Promise<MadeAttachment> {
  const { attachment } = facts.networks[network]!;
  if (!isMade(attachment)) throw new TypeError(`"${attachment.ifName}" was never made`);
  const other = cutOff?.to?.facts.networks[network]?.attachment;
  const also = other === undefined ? [] : [other];
  return await replace(attachment, configs, { host, netns: facts.netns.path, outside, also });
}

/** Runs plugins again with another configuration; undoing runs them again with what they had. */
async function republish(
  context: Context<Both>,
  from: Both,
  network: number,
  configs: Configs,
): Promise<MadeAttachment> {
  const { host, undo } = context;
  const { attachment } = from.facts.networks[network]!;
  const watched = { firewall: from.spec.firewall, publishes: true };
  return await guardSettings(host, watched, async () => {
    undo.push(`the ports that plugins of "${attachment.network}" publish`, async () => {
      // What undoes is not cut short.
      const { signal: _, ...uninterrupted } = host;
      const had = new Map(
        [...configs.keys()].map((place) => [place, attachment.plugins[place]!.config]),
      );
      const wanted = withConfigs(attachment, configs);
      const { outside } = context;
      const environment = { host: uninterrupted, netns: from.facts.netns.path, outside };
      await replace(attachment as MadeAttachment, had, { ...environment, also: [wanted] });
    });
    return await rerun(context, from, network, configs);
  });
}

function withConfigs(attachment: NetworkAttachment, configs: Configs): NetworkAttachment {
  const plugins = attachment.plugins.map((plugin, place) => ({
    ...plugin,
    config: configs.get(place) ?? plugin.config,
  }));
  return { ...attachment, plugins };
}

/** An attachment with what CHECK says of plugins right after their ADD; "recreate" where it finds more. */
async function remember(
  context: Context<Both>,
  at: Both,
  places: ReadonlyMap<number, readonly number[]>,
): Promise<Both | "recreate"> {
  const { host, vm } = context;
  const vmNl = vm.find(at.facts.netns)?.nl;
  const settled = { ...context, cutOff: undefined };
  const found = vmNl === undefined ? [] : await checkChains(settled, at, vmNl);
  const isOfPlace = ({ place }: Difference, network: number) =>
    place?.network === network && place.plugin !== undefined &&
    places.get(network)?.includes(place.plugin) === true;
  const networks = at.facts.networks.map((fact, network) => {
    const own = found.filter((difference) => isOfPlace(difference, network))
      .map(({ object, problem, place }) => ({ object, problem, executed: place!.plugin! }));
    const asked = places.get(network) ?? [];
    return { ...fact, attachment: rememberFailures(fact.attachment, asked, own, host.note) };
  });
  const others = found.filter((difference) =>
    !difference.ignored && !isOfPlace(difference, difference.place?.network ?? -1)
  );
  if (others.length > 0) return "recreate";
  return { ...at, facts: { ...at.facts, networks } };
}

function withChain(at: Both, network: number, attachment: MadeAttachment): Both {
  const networks = at.facts.networks.with(network, { ...at.facts.networks[network]!, attachment });
  return { ...at, facts: { ...at.facts, networks } };
}

function isMade(attachment: NetworkAttachment): attachment is MadeAttachment {
  return attachment.result !== undefined;
}
