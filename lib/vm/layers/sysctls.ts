/**
 * The layer of the kernel's settings: each is set with the first guest that needs it, and goes back with
 * the last one.
 *
 * @module
 */

import { Journal } from "../../firewall/journal.ts";
import { type Served, shownRules } from "../record/served.ts";
import { elsewhere } from "../record/elsewhere.ts";
import { bridgeNames, hasRecords, type HostPaths } from "../record/paths.ts";
import { isSame } from "../../same.ts";
import { bringSettings, checkSettings, returnSettings, settingsFor } from "../settings.ts";
import type { Difference } from "../types.ts";
import type { Layer } from "./layer.ts";

const hasBridges = (host: HostPaths) => bridgeNames(host).length > 0;

/** What the rules need of the kernel. */
export function sysctlLayer<B>(served: (at: B) => Served): Layer<B> {
  const owns = (at: B) => {
    const { owners } = served(at);
    return (owner: string) => owners.includes(owner);
  };
  return {
    name: "sysctls",
    on: "rules",
    outlives: true,

    want: (at) => shownRules(served(at)),

    describe: (at) => `settings of the kernel for ${served(at).owners.join(", ")}`,

    async observe({ host }, at) {
      const firewall = await host.session.firewall(served(at).firewall);
      return checkSettings(host, served(at), firewall)
        .map(({ object, problem }): Difference => ({
          layer: "sysctls",
          object,
          problem,
          repair: "live",
        }));
    },

    begin({ host, undo }, from, to) {
      const { firewall: kind } = served(to);
      undo.push("settings of the kernel", async () => {
        await returnSettings(host, { firewall: kind });
        const firewall = await host.session.firewall(kind);
        if (from === undefined) return firewall.removeIfUnused();
        await bringSettings(host, served(from), { firewall, repairs: true });
      });
    },

    async make({ host }, to, before) {
      const firewall = await host.session.firewall(served(to).firewall);
      await bringSettings(host, served(to), { firewall, repairs: before !== undefined });
      return to;
    },

    async change({ host, found, cutOff }, from, to) {
      const [before, after] = [served(from), served(to)];
      const firewall = await host.session.firewall(after.firewall);
      const known = found.length === 0 && cutOff === undefined && !firewall.isRemade();
      if (known && isSame(settingsFor(before), settingsFor(after))) return to;
      await bringSettings(host, after, { firewall, repairs: true });
      await returnSettings(host, {
        leaves: owns(to),
        gone: shownRules(before),
        kept: shownRules(after),
        firewall: after.firewall,
      });
      return to;
    },

    async take({ host, remaking, cutOff }, from) {
      const { firewall, executed } = served(from);
      if (remaking) return [];
      // What plugins of others opened, rules need not say.
      const gone = executed || cutOff !== undefined ? {} : { gone: shownRules(served(from)) };
      await returnSettings(host, { leaves: owns(from), ...gone, firewall });
      if (hasRecords(host, 2) || elsewhere(host).some(hasBridges)) return [];
      for (const one of await host.session.firewalls(firewall)) one.removeIfUnused();
      new Journal().tidy();
      return [];
    },
  };
}
