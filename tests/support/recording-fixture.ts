/**
 * A throwaway host and guest with made-up plugins.
 *
 * @module
 */

import { parseConfig } from "../../lib/cni/conflist.ts";
import { type NetworkAttachment, planNetwork } from "../../lib/cni/plan.ts";
import type { RuntimeConfig } from "../../lib/cni/types.ts";
import { UndoStack } from "../../lib/undo.ts";
import { CniGuest, CniHost } from "./cni-reference.ts";
import { RecordingPlugins } from "./recording-plugin.ts";

type Conf = Record<string, unknown>;

/** A host with made-up plugins, and what the verbs of a chain of them need. */
export class Fixture implements Disposable {
  readonly plugins: RecordingPlugins;
  readonly host = new CniHost();
  readonly guest = new CniGuest();
  readonly undo = new UndoStack();

  constructor(...names: string[]) {
    this.plugins = new RecordingPlugins(...names);
  }

  get pluginHost() {
    const { binDir, stateDir } = this.plugins;
    return { binDirs: ["/nowhere", binDir], stateDir, timeoutMs: 1500 };
  }

  get environment() {
    return {
      netns: this.guest.netns,
      netnsPath: this.guest.path,
      ownNetns: true,
      hostNl: this.host.nl,
      vmNl: this.guest.nl,
      undo: this.undo,
      owner: "web/eth0",
      plugins: this.pluginHost,
      note: () => {},
    };
  }

  plan(list: Conf, runtimeConfig: RuntimeConfig = {}): NetworkAttachment {
    const choice = { mode: "exec", isDefault: false, host: this.pluginHost } as const;
    const parsed = parseConfig(JSON.stringify({ name: "net", ...list }), "f");
    return planNetwork({ list: parsed, containerId: "c1", ifName: "eth0", runtimeConfig, choice });
  }

  /** The environment the specification prescribes. */
  env(verb: string, more: Record<string, string> = {}): Record<string, string> {
    return {
      CNI_COMMAND: verb,
      CNI_CONTAINERID: "c1",
      CNI_NETNS: this.guest.path,
      CNI_IFNAME: "eth0",
      CNI_ARGS: "",
      CNI_PATH: `/nowhere:${this.plugins.binDir}`,
      ...more,
    };
  }

  [Symbol.dispose](): void {
    this.guest[Symbol.dispose]();
    this.host[Symbol.dispose]();
    this.plugins[Symbol.dispose]();
  }
}
