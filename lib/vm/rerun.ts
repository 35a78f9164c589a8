/**
 * Plugins of other makers run again on what is attached: where CHECK of a chained one fails, and to
 * publish other ports. The interface, the TAP and the guest are left alone.
 *
 * A record says of a plugin that it is in doubt from before its DEL until after its ADD, so that
 * after a crash it is run again, or taken away with every configuration it may have.
 *
 * @module
 */

import { checkpoint } from "../checkpoint.ts";
import type { MadeAttachment, NetworkAttachment, RecordedPlugin } from "../cni/plan.ts";
import { canRerun, rememberFailures, type Rerun, rerunPlugins } from "../cni/rerun.ts";
import type { PluginConfig } from "../cni/types.ts";
import { describe, TapkitError } from "../errors.ts";
import type { PortMapping } from "../inet/ports.ts";
import { UndoStack } from "../undo.ts";
import { checkNetworks, type NetworkFinding } from "./check.ts";
import { mendSeen } from "./executed-link.ts";
import { openVm } from "./netns.ts";
import { portMappings } from "./networks.ts";
import { allPorts, isPublisher, portOwners, withShownPorts } from "./ports.ts";
import type { Host } from "./session.ts";
import { guardSettings, returnSettings } from "./settings.ts";
import { firewallOf, type StoredRecord, writeRecord } from "./state.ts";
import type { AttachRequest } from "./types.ts";
import { movesIdentity } from "./wires.ts";

/** Places of plugins in the chains of a VM's networks, by the network's number. */
type Places = ReadonlyMap<number, ReadonlySet<number>>;

/**
 * Runs those plugins again whose CHECK failed, and puts back what masquerades.
 *
 * @returns the record, or `undefined` where everything has to be done over
 */
export async function rerunFailed(
  host: Host,
  record: StoredRecord,
  findings: readonly NetworkFinding[],
): Promise<StoredRecord | undefined> {
  const { networks } = record.made;
  const failed = findings.filter(({ masquerade }) => masquerade !== true);
  const alone = failed.every(({ network, executed }) =>
    network !== undefined && executed !== undefined &&
    isMade(networks[network]) && canRerun(networks[network], executed)
  );
  if (!alone) return undefined;
  const places = placesOf(failed);
  writeRecord(host, withNetworks(record, mapPlugins(networks, places, doubt)));
  const again: NetworkAttachment[] = [...networks];
  try {
    for (const { network } of findings.filter(({ masquerade }) => masquerade)) {
      await (await import("../cni/reference-faults.ts")).restoreMasquerade(networks[network!]!);
    }
    for (const [network, chained] of places) {
      const attachment = again[network] as MadeAttachment;
      const reruns = [...chained].map((place) => [place, asBefore(attachment, place)] as const);
      const environment = { host, netns: record.netns };
      again[network] = await rerunPlugins(attachment, new Map(reruns), environment);
    }
  } catch (error) {
    host.signal?.throwIfAborted();
    if (!(error instanceof TapkitError)) throw error;
    host.note(`attaching anew: running it again by itself does not do: ${describe(error)}`);
    return undefined;
  }
  // Ports that a change was to bring are not there now.
  const ports = allPorts(portOwners(record));
  const checked = await remember(host, { ...withNetworks(record, again), ports }, places);
  if (checked.others.length > 0) return undefined;
  writeRecord(host, checked.record);
  return checked.record;
}

/**
 * Mends what was seen to differ of a VM's interfaces.
 *
 * @returns the findings that are left: what needs its plugins
 */
export function mendVisible(
  host: Host,
  record: StoredRecord,
  findings: readonly NetworkFinding[],
): NetworkFinding[] {
  using stack = new DisposableStack();
  const { interfaces, made } = record;
  const vmNl = openVm(stack, record);
  const mended = new Set(findings.flatMap(({ seen, network = -1 }) => {
    const attachment = made.networks[network];
    const link = interfaces.find(({ name }) => name === attachment?.ifName);
    if (!seen || link === undefined || vmNl === undefined) return [];
    const identityMoved = movesIdentity(link.mode);
    const options = { hostNl: host.session.nl, vmNl, identityMoved };
    return mendSeen(attachment as MadeAttachment, link, options) ? [network] : [];
  }));
  return findings.filter(({ seen, network }) => !seen || !mended.has(network!));
}

/** Asks CHECK of all plugins once more right after ADD, which was for its sake. */
export async function checkAdded(host: Host, record: StoredRecord): Promise<StoredRecord> {
  const places = record.made.networks.map(({ plugins }, network) => {
    const executed = [...plugins.keys()].filter((place) => isExecuted(plugins[place]!));
    return [network, new Set(executed)] as const;
  });
  const checked = await remember(host, record, new Map(places));
  writeRecord(host, checked.record);
  return checked.record;
}

/** Other ports for the plugins that publish them; see {@linkcode planRepublishing}. */
export interface Republishing {
  /** The record while it is done. */
  readonly doubtful: StoredRecord;
  /** Whether the plugins are as {@linkcode doubtful} says before or after, or nobody knows. */
  isSettled(): boolean;
  /** Runs them; the undo runs them again with what they had. */
  run(undo: UndoStack): Promise<readonly NetworkAttachment[]>;
}

/**
 * Plans to run the plugins of a VM's first network again that publish its ports. Nothing is touched.
 *
 * @param ports attach-vm's own as they are asked for, each with its host port
 * @param bound the same, bound to addresses
 * @throws {TapkitError} when a plugin does that which makes the interface too
 */
export function planRepublishing(
  host: Host,
  record: StoredRecord,
  ports: readonly PortMapping[],
  bound: readonly PortMapping[],
): Republishing {
  const { made, vm, netns } = record;
  const [first, ...others] = made.networks;
  if (!isMade(first)) throw new TypeError(`"${vm}" has no network`);
  const publishers = [...first.plugins.keys()].filter((place) =>
    isPublisher(first.plugins[place]!)
  );
  const fixed = publishers.find((place) => !canRerun(first, place));
  if (fixed !== undefined) {
    throw new TapkitError(
      `its ports are published by the plugin "${first.plugins[fixed]!.type}", which makes its ` +
        "interface too, and stay while it is attached",
      { mend: `run attach-vm ${vm} --remove first, or use map-port` },
    );
  }
  const configs = new Map(publishers.map((place) => {
    return [place, publishing(first.plugins[place]!.config, ports)] as const;
  }));
  const owners = portOwners(record);
  const doubtful = mapPlugins([first], new Map([[0, new Set(publishers)]]), (plugin, place) => ({
    ...plugin,
    inDoubt: configs.get(place)!,
  }));
  const environment = { host, netns };
  let settled = true;
  return {
    doubtful: {
      ...record,
      ports: allPorts({ attach: owners.attach, mapPort: [...bound, ...owners.mapPort] }),
      made: { ...made, portOwners: owners, networks: [...doubtful, ...others] },
    },
    isSettled: () => settled,
    run: async (undo) => {
      undo.push(`the ports that plugins of "${first.network}" publish`, async () => {
        const back = publishers.map((place) => {
          const { config } = first.plugins[place]!;
          return [place, { del: [configs.get(place)!, config], add: config }] as const;
        });
        settled = false;
        // What undoes is not cut short.
        const { signal: _, ...uninterrupted } = host;
        await rerunPlugins(first, new Map(back), { ...environment, host: uninterrupted });
        settled = true;
      });
      settled = false;
      const reruns = publishers.map((place) => {
        const { config } = first.plugins[place]!;
        return [place, { del: [config], add: configs.get(place)! }] as const;
      });
      const made = await rerunPlugins(first, new Map(reruns), environment);
      settled = true;
      const added = withNetworks(record, [made]);
      const checked = await remember(host, added, new Map([[0, new Set(publishers)]]));
      return [...checked.record.made.networks, ...others];
    },
  };
}

/**
 * Has the plugins of a VM's first network publish fewer ports.
 *
 * @param attach attach-vm's own that are left
 * @param request what attaching again is to ask for
 * @returns the record as it is then
 */
export async function unpublish(
  host: Host,
  record: StoredRecord,
  attach: readonly PortMapping[],
  request: AttachRequest,
): Promise<StoredRecord> {
  const republishing = planRepublishing(host, record, attach, attach);
  const firewall = await host.session.firewall(firewallOf(record.made));
  const owners = portOwners(record);
  const undo = new UndoStack();
  try {
    undo.push(
      `record of "${record.vm}"`,
      () => writeRecord(host, republishing.isSettled() ? record : republishing.doubtful),
    );
    writeRecord(host, republishing.doubtful);
    const guarded = { firewall, publishes: true };
    const networks = await guardSettings(host, guarded, () => republishing.run(undo));
    const portOwners = { ...owners, attach };
    const ports = allPorts(portOwners);
    const [rules] = record.made.guests;
    await returnSettings(host, {
      leaves: (owner) => owner === rules?.owner,
      gone: withShownPorts(record.made.guests.slice(0, 1), record.ports),
      kept: withShownPorts(record.made.guests, ports),
      firewall: firewallOf(record.made),
    });
    if (rules !== undefined) firewall.endStaleFlows({ ...rules, ports }, owners.attach);
    const now = { ...record, ports, made: { ...record.made, portOwners, request, networks } };
    await checkpoint(host.signal);
    writeRecord(host, now);
    return now;
  } catch (error) {
    throw await undo.fail(error);
  }
}

/** A plugin's configuration with other ports in it. */
function publishing(
  { runtimeConfig, ...config }: PluginConfig,
  ports: readonly PortMapping[],
): PluginConfig {
  const { portMappings: _, ...others } = runtimeConfig ?? {};
  const wanted = ports.length === 0 ? others : { ...others, portMappings: portMappings(ports) };
  return Object.keys(wanted).length === 0 ? config : { ...config, runtimeConfig: wanted };
}

/** The plugins of these places once more as they are recorded, whatever is there of them. */
function asBefore({ plugins }: NetworkAttachment, place: number): Rerun {
  const { config, inDoubt } = plugins[place]!;
  return { del: inDoubt === undefined ? [config] : [inDoubt, config], add: config };
}

/** A record with what CHECK says of plugins right after their ADD, and what else it finds. */
async function remember(
  host: Host,
  record: StoredRecord,
  places: Places,
): Promise<{ record: StoredRecord; others: readonly NetworkFinding[] }> {
  using stack = new DisposableStack();
  const vmNl = openVm(stack, record);
  const findings = vmNl === undefined ? [] : await checkNetworks(host, record, vmNl);
  const networks = record.made.networks.map((attachment, network) => {
    const own = findings.filter((finding) => finding.network === network);
    return rememberFailures(attachment, places.get(network) ?? [], own, host.note);
  });
  const others = findings.filter(({ network, executed, ignored }) =>
    !ignored && !places.get(network!)?.has(executed!)
  );
  return { record: withNetworks(record, networks), others };
}

function placesOf(findings: readonly NetworkFinding[]): Map<number, Set<number>> {
  const places = new Map<number, Set<number>>();
  for (const { network = -1, executed = -1 } of findings) {
    places.set(network, (places.get(network) ?? new Set()).add(executed));
  }
  return places;
}

function withNetworks(record: StoredRecord, networks: readonly NetworkAttachment[]): StoredRecord {
  return { ...record, made: { ...record.made, networks } };
}

function mapPlugins(
  networks: readonly NetworkAttachment[],
  places: Places,
  change: (plugin: RecordedPlugin, place: number) => RecordedPlugin,
): NetworkAttachment[] {
  return networks.map((attachment, network) => ({
    ...attachment,
    plugins: attachment.plugins.map((plugin, place) =>
      places.get(network)?.has(place) ? change(plugin, place) : plugin
    ),
  }));
}

function doubt(plugin: RecordedPlugin): RecordedPlugin {
  return { ...plugin, inDoubt: plugin.inDoubt ?? plugin.config };
}

function isMade(attachment: NetworkAttachment | undefined): attachment is MadeAttachment {
  return attachment?.result !== undefined;
}

function isExecuted({ implementation }: RecordedPlugin): boolean {
  return implementation === "exec";
}
