/**
 * Attaching to a network: its chain of plugins, run forward for ADD and backward for DEL.
 *
 * A plan is complete before the first effect, so that the caller can record it. DEL and CHECK need
 * only what is recorded: they use the configuration that ran, not what the file says later.
 *
 * @module
 */

import { asError, TapkitError } from "../errors.ts";
import { sentence } from "../finding.ts";
import type { GuestRules } from "../firewall/model.ts";
import { addressOf } from "../inet/ip.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { deleteLink } from "../netlink/link.ts";
import { linkTowards } from "../netlink/route.ts";
import {
  builtinPlugin,
  type ChainFinding,
  type MadeAttachment,
  type NetworkAttachment,
  type Outside,
  type PluginHost,
  type RecordedPlugin,
} from "./plan.ts";
import type {
  AddContext,
  BuiltinPlugin,
  CheckContext,
  DelContext,
  GuestContribution,
  Together,
} from "./plugin.ts";
import type { PluginConfig, Result } from "./types.ts";

/** What the verbs work with. For DEL and CHECK the namespace may be gone. */
export interface AttachmentEnvironment
  extends Pick<DelContext, "netnsPath" | "hostNl" | "vmNl" | "note"> {
  /** See DelContext. */
  readonly together?: Together;
  /** Whether the plugin that made the interface gets no DEL, so that it keeps the address. */
  readonly keepsLease?: boolean;
  /** Where plugins are executed. */
  readonly plugins: PluginHost;
  /** Executes each plugin without the caller's locks. */
  readonly outside?: Outside;
}

const inside: Outside = (act) => act();

/** What ADD works with. */
export interface AddEnvironment
  extends AttachmentEnvironment, Pick<AddContext, "netns" | "ownNetns" | "undo" | "mtu"> {
  readonly vmNl: NetlinkConnection;
  /** Tag of the firewall rules: `"web/eth0"`. */
  readonly owner: string;
  /** Nothing of this attachment exists, so the pool is not searched for its address. */
  readonly fresh?: boolean;
}

/** What ADD returns. */
export interface Added {
  /** To be recorded. */
  readonly attachment: MadeAttachment;
  readonly result: Result;
  /** What the chain wants of the firewall for the guest, if anything. */
  readonly guest?: GuestRules;
}

/**
 * Attaches: runs the chain's ADD. On a failure the caller unwinds the undo stack.
 *
 * The caller holds the host's lock and applies the firewall rules that are returned. A chain of
 * built-in plugins has run before the promise is returned; the same holds for DEL and CHECK.
 */
export async function addNetwork(
  attachment: NetworkAttachment,
  environment: AddEnvironment,
): Promise<Added> {
  const { owner, fresh = false, keepsLease = false, plugins: host } = environment;
  const { outside = inside } = environment;
  const { ifName, network } = attachment;
  let result: Result | undefined;
  const got: (Result | undefined)[] = [];
  let guest: GuestContribution = {};
  if (hasExecuted(attachment)) {
    const { requireReady } = await import("./executed.ts");
    await outside(() => requireReady(attachment, host));
    environment.undo.push(`what the plugins of "${network}" leave`, async () => {
      const { removeRemains } = await import("./reference-faults.ts");
      const made = result === undefined ? attachment : { ...attachment, result };
      for (const failure of await removeRemains(made, environment.hostNl)) throw failure;
    });
  }
  for (const plugin of attachment.plugins) {
    const { type, config } = plugin;
    got.push(result);
    if (plugin.implementation === "exec") {
      const { addExecuted } = await import("./executed.ts");
      const netns = environment.netnsPath;
      const executed = { attachment, plugin, host, netns };
      // With the result that is known then: some plugins find by its addresses what they made.
      const maker = got.length === 1;
      environment.undo.push(`plugin "${type}"`, async () => {
        if (maker && keepsLease) deleteLink(environment.vmNl, ifName);
        else {
          const { delTwice } = await import("./reference-faults.ts");
          await outside(() => delTwice(executed, result));
        }
      });
      const before = result;
      result = await outside(() => addExecuted(executed, before));
      continue;
    }
    const context = contextOf(attachment, environment, config, result);
    const outcome = requireBuiltin(type).add({ ...context, fresh });
    result = outcome.result;
    guest = { ...guest, ...outcome.guest };
  }
  if (result === undefined) throw new TapkitError(`network "${network}" has no plugins`);
  let added: MadeAttachment = { ...attachment, result };
  if (hasExecuted(attachment)) {
    const { findMasquerade } = await import("./reference-faults.ts");
    const masquerade = await findMasquerade(attachment);
    added = withResults(masquerade.length === 0 ? added : { ...added, masquerade }, got);
    const { writeCache, removeCache } = await import("./cache.ts");
    environment.undo.push(`cached result of "${network}"`, () => {
      removeCache(host.stateDir, attachment);
    });
    writeCache(host.stateDir, added, environment.netnsPath);
  }
  const rules = completeRules(owner, guest, result, environment);
  return { attachment: added, result, ...(rules === undefined ? {} : { guest: rules }) };
}

/** What DEL works with. */
export interface DelEnvironment extends AttachmentEnvironment {
  /**
   * Other versions of the same attachment, where a change was cut off: DEL gets the configurations
   * of their plugins too.
   */
  readonly also?: readonly NetworkAttachment[];
}

/**
 * Detaches: runs the chain's DEL backward, past failures. What is not there is no failure. What
 * executed plugins leave is removed too: see reference-faults.ts.
 *
 * @returns what failed
 */
export async function delNetwork(
  attachment: NetworkAttachment,
  { also = [], ...environment }: DelEnvironment,
): Promise<Error[]> {
  const failures: Error[] = [];
  const { plugins: host, vmNl, netnsPath } = environment;
  const { keepsLease = false, outside = inside } = environment;
  const versions = [...also, attachment];
  const faults = versions.some(hasExecuted) ? await import("./reference-faults.ts") : undefined;
  const result = attachment.result ?? (faults && await knownResult(attachment, environment));
  let remains = faults?.lacksAddresses(attachment, vmNl) ?? false;
  const places = Math.max(...versions.map(({ plugins }) => plugins.length));
  const chain = Array.from({ length: places }, (_, place) => versionsAt(place, versions));
  for (const plugin of chain.slice(keepsLease ? 1 : 0).reverse().flat()) {
    try {
      if (plugin.implementation === "exec") {
        const netns = vmNl === undefined ? "" : netnsPath;
        const executed = { attachment, plugin, host, netns };
        if (await outside(() => faults!.delTwice(executed, result))) remains = true;
      } else {
        const { type, config } = plugin;
        requireBuiltin(type).del(contextOf(attachment, environment, config, attachment.result));
      }
    } catch (error) {
      failures.push(asError(error));
    }
  }
  if (keepsLease && vmNl !== undefined) deleteLink(vmNl, attachment.ifName);
  if (remains || failures.length > 0) {
    failures.push(...await faults?.removeRemains(attachment, environment.hostNl) ?? []);
  }
  if (failures.length === 0 && faults !== undefined && !keepsLease) {
    const { removeCache } = await import("./cache.ts");
    removeCache(host.stateDir, attachment);
  }
  return failures;
}

/** The result of an attachment that was cut off, or whose record is lost, as far as it is known. */
async function knownResult(
  attachment: NetworkAttachment,
  { plugins: host, vmNl, netnsPath }: AttachmentEnvironment,
): Promise<Result | undefined> {
  const { containerId, ifName, network } = attachment;
  const { readCache } = await import("./cache.ts");
  const cached = readCache(host.stateDir, containerId)
    .find((entry) => entry.list.name === network && entry.ifName === ifName);
  if (cached?.result !== undefined || vmNl === undefined) return cached?.result;
  return (await import("./executed.ts")).seenResult(ifName, { vmNl, netnsPath });
}

/** What CHECK works with. */
export type CheckEnvironment = AttachmentEnvironment & Pick<CheckContext, "identityMoved">;

/** Compares what ADD made with what is there. */
export async function checkNetwork(
  attachment: NetworkAttachment,
  environment: CheckEnvironment,
): Promise<ChainFinding[]> {
  const { result, network, ifName, plugins } = attachment;
  const { outside = inside } = environment;
  if (result === undefined) {
    const problem = `was never completely attached to "${network}"`;
    return [{ object: `"${ifName}"`, problem }];
  }
  const findings: ChainFinding[] = [];
  for (const [index, plugin] of plugins.entries()) {
    if (plugin.implementation === "builtin") {
      const context = contextOf(attachment, environment, plugin.config, result);
      const found = requireBuiltin(plugin.type).check({ ...context, prevResult: result });
      findings.push(...found);
    } else if (environment.identityMoved !== true) {
      const { checkExecuted } = await import("./executed.ts");
      const { plugins: host, netnsPath: netns } = environment;
      const executed = { attachment, plugin, host, netns };
      const found = await outside(() => checkExecuted(executed, result));
      if (found === undefined) continue;
      const ignored = sentence(found) === plugin.checkFailure ? { ignored: true as const } : {};
      findings.push({ ...found, executed: index, ...ignored });
    }
  }
  if (attachment.masquerade !== undefined) {
    const { checkMasquerade } = await import("./reference-faults.ts");
    for (const found of await checkMasquerade(attachment)) {
      findings.push({ ...found, masquerade: true });
    }
  }
  return findings;
}

/**
 * Brings back what built-in plugins can bring back of an interface that stays.
 *
 * Equivalent to: `ip link set BRIDGE up`, `ip link set VETH master BRIDGE up`, `ip address add …`, …
 *
 * @returns whether CHECK finds nothing of that any more
 */
export async function mendNetwork(
  attachment: NetworkAttachment,
  environment: CheckEnvironment,
): Promise<boolean> {
  const { result, plugins } = attachment;
  if (result === undefined) return false;
  for (const { type, implementation, config } of plugins) {
    if (implementation !== "builtin") continue;
    const context = contextOf(attachment, environment, config, result);
    requireBuiltin(type).mend?.({ ...context, prevResult: result });
  }
  return (await checkNetwork(attachment, environment)).every(({ live }) => live !== true);
}

/**
 * Records what each plugin got from the one before it, if it differs from the result of the chain.
 *
 * @param got in the order of the chain
 */
export function withResults(
  attachment: MadeAttachment,
  got: readonly (Result | undefined)[],
): MadeAttachment {
  const last = JSON.stringify(attachment.result);
  const plugins = attachment.plugins.map(({ prevResult: _, ...plugin }, index): RecordedPlugin => {
    const prevResult = got[index];
    return prevResult === undefined || JSON.stringify(prevResult) === last
      ? plugin
      : { ...plugin, prevResult };
  });
  return { ...attachment, plugins };
}

/** The plugin at a place of each version of an attachment, those that are alike once. */
export function versionsAt(
  place: number,
  versions: readonly Pick<NetworkAttachment, "plugins">[],
): RecordedPlugin[] {
  const plugins = versions.flatMap(({ plugins }) => plugins[place] ?? []);
  const key = ({ implementation, config }: RecordedPlugin) =>
    JSON.stringify([implementation, config]);
  return [...new Map(plugins.map((plugin) => [key(plugin), plugin])).values()];
}

/** IPAM plugins that give no address again: host-local refuses, static keeps none, dhcp leases anew. */
const REFERENCE_IPAM: readonly unknown[] = ["dhcp", "host-local", "static"];

/**
 * Whether ADD without a DEL before it may give the same address again, as plugins do that keep
 * addresses by container id: Weave Net's, for one. If it may not, that ADD is refused.
 */
export function mayGiveAgain({ plugins: [first] }: NetworkAttachment): boolean {
  return first?.implementation === "exec" && !REFERENCE_IPAM.includes(first.config.ipam?.type);
}

/** Whether any of its plugins is executed. */
export function hasExecuted({ plugins }: NetworkAttachment): boolean {
  return plugins.some(({ implementation }) => implementation === "exec");
}

function requireBuiltin(type: string): BuiltinPlugin {
  const plugin = builtinPlugin(type);
  if (plugin !== undefined) return plugin;
  throw new TapkitError(`plugin "${type}" is not built in`, {
    mend: "use the version of tapkit that made the attachment",
  });
}

function contextOf<Environment extends AttachmentEnvironment>(
  { containerId, ifName, cniArgs }: NetworkAttachment,
  environment: Environment,
  conf: PluginConfig,
  prevResult: Result | undefined,
) {
  const known = prevResult === undefined ? {} : { prevResult };
  return { ...environment, containerId, ifName, cniArgs, conf, ...known };
}

function completeRules(
  owner: string,
  guest: GuestContribution,
  result: Result,
  { hostNl }: AddEnvironment,
): GuestRules | undefined {
  const { masquerade = false, forward = false, ports = [] } = guest;
  if (!masquerade && !forward && ports.length === 0) return undefined;
  // An executed plugin does not say which link leads to the guest.
  const addresses = guest.addresses ?? result.ips.map(({ address }) => addressOf(address));
  const [first] = addresses;
  const link = guest.link ?? (first && linkTowards(hostNl, first)) ?? "";
  return { owner, link, addresses, masquerade, forward, ports };
}
