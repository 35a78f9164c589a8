/**
 * The `portmap` plugin: ports of the host that lead to the guest.
 *
 * It contributes the mappings of the `portMappings` capability to the guest's firewall rules and
 * passes the previous result on.
 *
 * @module
 */

import { InputError } from "../../errors.ts";
import { isIp } from "../../inet/ip.ts";
import { isProtocol, type PortMapping, PROTOCOLS } from "../../inet/ports.ts";
import type { AddContext, AddOutcome, BuiltinPlugin } from "../plugin.ts";
import { requirePrevResult, unknownKey } from "../plugin.ts";
import type { CapabilityPortMapping, PluginConfig } from "../types.ts";

const PLUGIN = "portmap";
const MAX_PORT = 65535;

/** The built-in `portmap`. */
export const portmap: BuiltinPlugin = {
  supports(conf: PluginConfig): true | string {
    const unknown = unknownKey(conf, [
      "snat",
      "conditionsV4",
      "conditionsV6",
      "masqAll",
      "backend",
      // The rules made here mark no packets, so whichever bit is reserved for it is left alone.
      "markMasqBit",
    ]);
    if (unknown !== undefined) return unknown;
    // Without it a guest could not reach itself by its published port, nor the host by 127.0.0.1.
    if (conf.snat === false) return "snat";
    if (conf.masqAll === true) return "masqAll";
    if (Array.isArray(conf.conditionsV4) && conf.conditionsV4.length > 0) return "conditionsV4";
    if (Array.isArray(conf.conditionsV6) && conf.conditionsV6.length > 0) return "conditionsV6";
    if (conf.backend === "iptables") return "backend";
    return true;
  },

  validate(conf: PluginConfig): void {
    capabilityPorts(conf);
  },

  add(context: AddContext): AddOutcome {
    const result = requirePrevResult(PLUGIN, context);
    const ports = capabilityPorts(context.conf);
    return ports.length === 0 ? { result } : { result, guest: { ports } };
  },

  del: () => {},

  check: () => [],
};

/** The mappings of a configuration's `runtimeConfig.portMappings`. */
export function capabilityPorts(conf: PluginConfig): PortMapping[] {
  return (conf.runtimeConfig?.portMappings ?? []).map(toPortMapping);
}

function toPortMapping(raw: CapabilityPortMapping): PortMapping {
  const protocol = (raw.protocol ?? "tcp").toLowerCase();
  const hostIP = raw.hostIP ?? "";
  for (const [what, port] of [["host", raw.hostPort], ["guest", raw.containerPort]] as const) {
    if (Number.isInteger(port) && port > 0 && port <= MAX_PORT) continue;
    throw new InputError(`${what} port ${port} is out of range`, {
      mend: `choose one of 1 to ${MAX_PORT}`,
    });
  }
  if (!isProtocol(protocol)) {
    throw new InputError(`protocol "${protocol}" cannot be mapped`, {
      mend: `choose one of ${PROTOCOLS.join(", ")}`,
    });
  }
  if (hostIP !== "" && isIp(hostIP) === 0) {
    throw new InputError(`"${hostIP}" is not a host address`, { mend: "write an IP address" });
  }
  return {
    hostIP,
    hostPort: raw.hostPort,
    vmPort: raw.containerPort,
    protocol,
  };
}
