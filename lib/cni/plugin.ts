/**
 * The interface of a built-in plugin.
 *
 * Built-in plugins are synchronous, push the undo of every step before they take it, and make no
 * firewall call: they contribute to the {@linkcode GuestRules} that the runtime hands to its caller.
 *
 * @module
 */

import type { Finding } from "../finding.ts";
import type { GuestRules } from "../firewall/model.ts";
import type { Link } from "../netlink/link.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import type { Netns } from "../sys/netns.ts";
import type { UndoStack } from "../undo.ts";
import { misconfigured, type PluginConfig, type Result } from "./types.ts";

/** What identifies an attachment to a network. */
export interface Holder {
  readonly containerId: string;
  /** The link's name in the namespace: `"eth0"`. */
  readonly ifName: string;
}

/** The attachment a plugin works on. */
export interface Attachment extends Holder {
  /** The namespace's path as results name it. */
  readonly netnsPath: string;
  /** CNI_ARGS. */
  readonly cniArgs: Readonly<Record<string, string>>;
  /** A connection of the host's namespace, which is also the calling thread's. */
  readonly hostNl: NetlinkConnection;
  /** Gets a line for the user about a change that outlives the attachment. */
  note(text: string): void;
}

/** What ADD works with. */
export interface AddContext extends Attachment {
  /** The configuration with name, cniVersion, runtimeConfig and args injected. */
  readonly conf: PluginConfig;
  readonly prevResult?: Result;
  readonly netns: Netns;
  readonly vmNl: NetlinkConnection;
  /** Whether the namespace is tapkit's own, so that its settings may be changed. */
  readonly ownNetns: boolean;
  /** The MTU asked for, in bytes; it wins over the configuration. */
  readonly mtu?: number;
  /** Whether nothing of this attachment is known to exist, so that nothing is searched for. */
  readonly fresh: boolean;
  readonly undo: UndoStack;
}

/** What DEL works with. The namespace may be gone. */
export interface DelContext extends Attachment {
  readonly conf: PluginConfig;
  readonly prevResult?: Result;
  readonly vmNl?: NetlinkConnection;
  /** Gets the links that are to go with those of other attachments; without it they go at once. */
  readonly together?: Together;
}

/** What is deleted with one message to the kernel, which waits once for all of it. */
export interface Together {
  /**
   * Takes a link, which forwards nothing from then on, and the bridge that may go after it.
   *
   * @returns false where the kernel refuses that
   */
  mark(link: Link, bridge: string): boolean;
}

/** What CHECK works with. */
export interface CheckContext extends DelContext {
  readonly prevResult: Result;
  /**
   * Whether address, MAC and routes of the interface were moved to the guest. Then they are not
   * expected on it, and executed plugins, which would expect them, are not asked.
   */
  readonly identityMoved?: boolean;
}

/** What a plugin wants of the firewall; the owner is added by the runtime. */
export type GuestContribution = Partial<Omit<GuestRules, "owner">>;

/** What ADD of one plugin returns. */
export interface AddOutcome {
  readonly result: Result;
  readonly guest?: GuestContribution;
}

/** What CHECK of a built-in plugin finds. */
export interface BuiltinFinding extends Finding {
  /** Whether it comes back while the guest runs. */
  readonly live?: true;
}

/** A plugin that runs inside this process. */
export interface BuiltinPlugin {
  /** True, or which key of the configuration it cannot honour. */
  supports(conf: PluginConfig): true | string;
  /** Throws if the configuration or the request is wrong, before the first effect. */
  validate(conf: PluginConfig, cniArgs: Readonly<Record<string, string>>): void;
  add(context: AddContext): AddOutcome;
  /** Removes what ADD made, or a part of it; nothing being there is no error. */
  del(context: DelContext): void;
  /** Differences between what ADD made and what is there. */
  check(context: CheckContext): BuiltinFinding[];
  /** Brings back what `check` found to differ, as far as it is `live`: the interface stays. */
  mend?(context: CheckContext): void;
}

/** What IPAM returns: a result without interfaces. */
export type IpamResult = Pick<Result, "ips" | "routes" | "dns">;

/** The first key that is neither common to all plugins nor in `known`. */
export function unknownKey(
  conf: Readonly<Record<string, unknown>>,
  known: readonly string[],
): string | undefined {
  return Object.keys(conf).find((key) => !COMMON_KEYS.includes(key) && !known.includes(key));
}

const COMMON_KEYS: readonly string[] = [
  "name",
  "cniVersion",
  "type",
  "capabilities",
  "runtimeConfig",
  "args",
  "dns",
  "prevResult",
];

/** The result of the plugin before. A chained plugin cannot work without it. */
export function requirePrevResult(plugin: string, context: AddContext): Result {
  if (context.prevResult !== undefined) return context.prevResult;
  const message = `has no plugin before it in network "${context.conf.name}"`;
  throw misconfigured(plugin, message, "put it after the plugin that makes the interface");
}
