/**
 * Validating requests to attach, before the first effect.
 *
 * @module
 */

import { validateNetworkName } from "../cni/types.ts";
import { InputError } from "../errors.ts";
import { MOST } from "../firewall/model.ts";
import { addressOf, asPrefix, cidrContains, isIp, parseCidr } from "../inet/ip.ts";
import { parseMac } from "../inet/mac.ts";
import { formatPort, parsePorts, type PortMapping } from "../inet/ports.ts";
import { MAX_TAP_QUEUES } from "../sys/tap.ts";
import { DEFAULT_LINK_LOCAL } from "./record/derive.ts";
import { validateName } from "./record/identity.ts";
import { validateNetns } from "./record/netns-path.ts";
import type { AttachRequest, NetworkPlugin } from "./types.ts";
import { resolveOwner } from "./users.ts";

/** The minimum of IPv4 (RFC 791), and the maximum of a veth in the kernel. */
const MTU = { MIN: 68, MAX: 65535 } as const;

/**
 * Checks all of a request that can be checked without an effect.
 *
 * @throws {InputError} naming what is wrong, and the correct form
 */
export function validateAttach(request: AttachRequest): void {
  validateName(request.name);
  if (request.ports !== undefined && request.ports !== "none") readPorts(request.ports);
  if (request.ip !== undefined) addressOf(request.ip);
  if (request.bandwidth !== undefined) parseRate(request.bandwidth);
  if (request.mac !== undefined) parseMac(request.mac);
  if (request.mtu !== undefined) validateMtu(request.mtu);
  if (request.tapOwner !== undefined) resolveOwner(request.tapOwner);
  if (request.queues !== undefined) validateQueues(request.queues);
  if (request.netns !== undefined) validateNetns(request.netns);
  for (const network of request.networks ?? []) validateNetworkName(network);
  if (networkPluginOf(request) === "cni") refuseOfDocker(request);
  Object.keys(request.capabilities ?? {}).forEach(validateCapability);
  for (const [key, value] of Object.entries(request.cniArgs ?? {})) validateCniArg(key, value);
  if (request.linkLocal !== undefined) validateLinkLocal(request.linkLocal);
  for (const prefixes of [request.denyEgress, request.allowEgress, request.reachableFrom]) {
    if (prefixes !== "none") prefixes?.forEach((text) => parseCidr(asPrefix(text)));
  }
  validateLimit("--max-connections", request.maxConnections);
  validateLimit("--new-connections", request.newConnections);
  // The other lists and flags may be in the record.
  if (request.antispoof === false) {
    const { denyEgress = [] } = request;
    const denied = denyEgress === "none" ? [] : denyEgress;
    validatePolicy({ denyEgress: denied, allowEgress: [], antispoof: false });
  }
}

/** The network plugins that there are. */
const NETWORK_PLUGINS: readonly NetworkPlugin[] = ["cni", "docker-bridge"];

/**
 * What makes the network of a VM that is new.
 *
 * @throws {InputError} when TAPKIT_NETWORK_PLUGIN names no network plugin
 */
export function networkPluginOf({ networkPlugin }: AttachRequest): NetworkPlugin {
  const variable = "TAPKIT_NETWORK_PLUGIN";
  const named = networkPlugin ?? (Deno.env.get(variable) || "cni");
  const plugin = NETWORK_PLUGINS.find((plugin) => plugin === named);
  if (plugin !== undefined) return plugin;
  const message = `${variable} is ${JSON.stringify(named)}, which is not a network plugin`;
  throw new InputError(message, { mend: `set it to ${NETWORK_PLUGINS.join(" or ")}, or unset it` });
}

function refuseOfDocker({ image, container }: AttachRequest): void {
  const flag = image !== undefined
    ? "--image"
    : container !== undefined
    ? "--container"
    : undefined;
  if (flag === undefined) return;
  throw new InputError(`${flag} is for Docker's network`, {
    mend: `leave it out, or add --network-plugin docker-bridge`,
  });
}

/**
 * Checks that policies do not exclude each other.
 *
 * @throws {InputError} for exceptions without a denied prefix, and for denied prefixes of a guest that
 * may use other addresses
 */
export function validatePolicy({ denyEgress, allowEgress, antispoof }: {
  readonly denyEgress: readonly string[];
  readonly allowEgress: readonly string[];
  readonly antispoof: boolean;
}): void {
  if (denyEgress.length === 0 && allowEgress.length > 0) {
    throw new InputError("egress is allowed, but none is denied", {
      mend: "name with --deny-egress what it is an exception of: 0.0.0.0/0, ::/0",
    });
  }
  if (denyEgress.length > 0 && !antispoof) {
    throw new InputError("a guest that may take other addresses cannot be restricted", {
      mend: "leave out --no-antispoof, or --deny-egress",
    });
  }
}

/**
 * Reads ports, each a text or a mapping.
 *
 * @throws {InputError} when one is malformed, or two have the same host port
 */
export function readPorts(ports: readonly (string | PortMapping)[]): PortMapping[] {
  return parsePorts(ports.map((port) => typeof port === "string" ? port : formatPort(port)));
}

/** Capabilities and CNI arguments with flags of their own. */
const OWN_CAPABILITIES: Readonly<Record<string, string>> = {
  portMappings: "--ports",
  ips: "--ip",
  mac: "--mac",
  bandwidth: "--bandwidth",
};
const OWN_CNI_ARGS: Readonly<Record<string, string>> = { IP: "--ip", MAC: "--mac" };

function validateCapability(name: string): void {
  const own = OWN_CAPABILITIES[name];
  if (own !== undefined) {
    throw new InputError(`the capability "${name}" has a flag of its own`, { mend: `use ${own}` });
  }
  if (/^[a-zA-Z][a-zA-Z0-9_.-]*$/.test(name)) return;
  throw new InputError(`the capability ${JSON.stringify(name)} is malformed`, {
    mend: "name one that a plugin of the network declares, as aliases",
  });
}

/** libcni splits CNI_ARGS at semicolons and equals signs, which cannot be escaped. */
function validateCniArg(key: string, value: string): void {
  const own = OWN_CNI_ARGS[key];
  if (own !== undefined) {
    throw new InputError(`the CNI argument ${key} has a flag of its own`, { mend: `use ${own}` });
  }
  // deno-lint-ignore no-control-regex -- an environment variable must not have any.
  if (/^[a-zA-Z_][a-zA-Z0-9_]*$/.test(key) && /^[^;=\x00-\x1f]+$/.test(value)) return;
  throw new InputError(`the CNI argument ${JSON.stringify(`${key}=${value}`)} is malformed`, {
    mend: "write KEY=VALUE, the key of letters, digits and _, the value without ; and =",
  });
}

const RATE_UNITS = ["bit", "kbit", "mbit", "gbit", "tbit"];

/**
 * Reads a rate in the syntax of tc(8), in bits per second: `"100mbit"` is 100,000,000.
 *
 * @throws {InputError} when it is malformed
 */
export function parseRate(text: string): number {
  const [, number, unit = ""] = /^(\d{1,12}(?:\.\d{1,6})?)([a-z]+)$/i.exec(text) ?? [];
  const power = RATE_UNITS.indexOf(unit.toLowerCase());
  const rate = Math.round(Number(number) * 1000 ** power);
  if (power >= 0 && rate >= 8 && rate <= Number.MAX_SAFE_INTEGER) return rate;
  throw new InputError(`bandwidth "${text}" is not a rate`, {
    mend: "write it as 100mbit, with bit, kbit, mbit, gbit or tbit",
  });
}

function validateLinkLocal(text: string): void {
  if (text === DEFAULT_LINK_LOCAL || text === "any") return;
  if (isIp(text) === 6 && cidrContains(parseCidr("fe80::/10"), text)) return;
  throw new InputError(`"${text}" is not a link-local address`, {
    mend: "use an address of fe80::/10, any, or eui64, which derives from the MAC",
  });
}

function validateMtu(mtu: number): void {
  if (Number.isInteger(mtu) && mtu >= MTU.MIN && mtu <= MTU.MAX) return;
  throw new InputError(`MTU ${mtu} is not a number from ${MTU.MIN} to ${MTU.MAX}`, {
    mend: "leave it out to use that of the default route's device",
  });
}

function validateQueues(queues: number): void {
  if (Number.isInteger(queues) && queues >= 1 && queues <= MAX_TAP_QUEUES) return;
  throw new InputError(`--queues ${queues} is not a number from 1 to ${MAX_TAP_QUEUES}`, {
    mend: "write the number of the guest's processors, or less",
  });
}

function validateLimit(flag: string, value: AttachRequest["maxConnections"]): void {
  if (value === undefined || value === "none" || value === "default") return;
  if (Number.isInteger(value) && value >= 1 && value <= MOST) return;
  throw new InputError(`${flag} ${value} is not a number from 1 to ${MOST}`, {
    mend: `write ${flag} 1000, ${flag} none or ${flag} default`,
  });
}
