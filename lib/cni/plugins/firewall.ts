/**
 * The `firewall` plugin: the guest's traffic is let through the host.
 *
 * It contributes forwarding to the guest's firewall rules and passes the previous result on.
 *
 * @module
 */

import type { AddContext, AddOutcome, BuiltinPlugin } from "../plugin.ts";
import { requirePrevResult, unknownKey } from "../plugin.ts";
import type { PluginConfig } from "../types.ts";

/** The built-in `firewall`. */
export const firewall: BuiltinPlugin = {
  supports(conf: PluginConfig): true | string {
    const unknown = unknownKey(conf, ["backend", "ingressPolicy", "firewalldZone"]);
    if (unknown !== undefined) return unknown;
    // A backend that is named is the administrator's choice of where the rules are to be seen.
    const { backend, ingressPolicy } = conf;
    if (backend !== undefined && backend !== "" && backend !== "nftables") return "backend";
    if (conf.firewalldZone !== undefined && conf.firewalldZone !== "") return "firewalldZone";
    if (ingressPolicy !== undefined && ingressPolicy !== "" && ingressPolicy !== "open") {
      return "ingressPolicy";
    }
    return true;
  },

  validate: () => {},

  add(context: AddContext): AddOutcome {
    return { result: requirePrevResult("firewall", context), guest: { forward: true } };
  },

  del: () => {},

  check: () => [],
};
