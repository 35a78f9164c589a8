/**
 * The spec of a VM, from a request alone or from a request and the VM's record.
 *
 * @module
 */

import { ConflictError } from "../../errors.ts";
import type { FirewallKind } from "../../firewall/store.ts";
import { addressOf, asPrefix } from "../../inet/ip.ts";
import { formatMac, parseMac } from "../../inet/mac.ts";
import { isSame } from "../../same.ts";
import { networkPluginOf, parseRate, validatePolicy } from "../request.ts";
import type { AttachRequest } from "../types.ts";
import { resolveOwner } from "../users.ts";
import type { Both, Limit, Policy, Spec } from "./attachment.ts";
import { DEFAULT_LINK_LOCAL, pluginOf } from "./derive.ts";
import type { Identity } from "./identity.ts";
import { leadToOne } from "./netns-path.ts";

const OPEN: Policy = {
  isolated: false,
  denyEgress: [],
  allowEgress: [],
  reachableFrom: [],
  maxConnections: "default",
  newConnections: "default",
};

/**
 * The spec of a VM that is not attached. Its ports are claimed later.
 *
 * @param firewall the backend if the request names none
 * @throws {InputError} for policies that exclude each other
 */
export function specOf(request: AttachRequest, id: Identity, firewall: FirewallKind): Spec {
  const { ip, mac, mtu, netns, tapOwner, queues = 1, bandwidth } = request;
  const { image, container } = request;
  return withRequest({
    id,
    networks: request.networks ?? [],
    ...ip === undefined ? {} : { ip },
    ...mac === undefined ? {} : { mac: formatMac(parseMac(mac)) },
    ...mtu === undefined ? {} : { mtu },
    ...netns === undefined ? {} : { netns },
    ...tapOwner === undefined ? {} : { tapOwner },
    ...queues === 1 ? {} : { queues },
    ...bandwidth === undefined ? {} : { bandwidth: parseRate(bandwidth) },
    plugins: "auto",
    mode: request.mode ?? "auto",
    firewall,
    capabilities: request.capabilities ?? {},
    cniArgs: request.cniArgs ?? {},
    antispoof: true,
    linkLocal: DEFAULT_LINK_LOCAL,
    policy: OPEN,
    claims: [],
    openPorts: false,
    ...networkPluginOf(request) === "cni" ? {} : {
      docker: {
        ...image === undefined ? {} : { image },
        ...container === undefined ? {} : { container },
      },
    },
  }, request);
}

/**
 * The spec of an attached VM. Absent fields of the request keep their recorded values.
 *
 * @throws {ConflictError} when the request changes a field that cannot change while the VM may run
 * @throws {InputError} for policies that exclude each other
 */
export function mergeSpec(have: Both, request: AttachRequest): Spec {
  const changed = changedIdentity(have, request);
  if (changed !== undefined) {
    throw new ConflictError(`its ${changed} cannot be changed while it is attached`, {
      mend: `run attach-vm ${request.name} --remove first`,
    });
  }
  return withRequest(have.spec, request);
}

/** Applies those fields of a request that can change while the VM runs. */
export function withRequest(spec: Spec, request: AttachRequest): Spec {
  const { plugins = spec.plugins, antispoof = spec.antispoof } = request;
  const { linkLocal = spec.linkLocal, openFirewall = spec.openPorts } = request;
  const policy = policyOf(spec.policy, request);
  validatePolicy({ ...policy, antispoof });
  return { ...spec, plugins, antispoof, linkLocal, openPorts: openFirewall, policy };
}

function policyOf(had: Policy, request: AttachRequest): Policy {
  const denyEgress = prefixes(request.denyEgress) ?? had.denyEgress;
  // Exceptions go with the prefixes that they are exceptions of.
  const kept = request.denyEgress === "none" ? [] : had.allowEgress;
  return {
    isolated: request.isolated ?? had.isolated,
    denyEgress,
    allowEgress: prefixes(request.allowEgress) ?? kept,
    reachableFrom: prefixes(request.reachableFrom) ?? had.reachableFrom,
    maxConnections: limitOf(request.maxConnections) ?? had.maxConnections,
    newConnections: limitOf(request.newConnections) ?? had.newConnections,
  };
}

function prefixes(asked: AttachRequest["denyEgress"]): readonly string[] | undefined {
  return asked === "none" ? [] : asked?.map(asPrefix);
}

function limitOf(asked: AttachRequest["maxConnections"]): Limit | undefined {
  return asked === "none" ? "unlimited" : asked;
}

/** The first field that a request changes although it cannot change while the VM is attached. */
function changedIdentity({ spec, facts }: Both, request: AttachRequest): string | undefined {
  const { ip, mac, mtu, netns, tapOwner, mode = "auto", networks, bandwidth, firewall } = request;
  const { queues, capabilities, cniArgs, networkPlugin, image, container } = request;
  const [first] = facts.networks;
  const addresses = (first?.link?.addresses ?? []).map(({ address }) => addressOf(address));
  const names = facts.networks.map(({ attachment }) => attachment.network);
  const checks: readonly (readonly [name: string, changed: boolean])[] = [
    ["address", ip !== undefined && !addresses.includes(addressOf(ip))],
    ["MAC address", mac !== undefined && formatMac(parseMac(mac)) !== first?.link?.mac],
    ["MTU", mtu !== undefined && mtu !== first?.link?.mtu],
    ["network namespace", netns !== undefined && !leadToOne(netns, facts.netns.path)],
    ["TAP owner", tapOwner !== undefined && !isSameOwner(tapOwner, spec.tapOwner)],
    ["number of queues", queues !== undefined && queues !== (spec.queues ?? 1)],
    ["bandwidth", bandwidth !== undefined && parseRate(bandwidth) !== spec.bandwidth],
    ["mode", mode !== "auto" && mode !== first?.wire?.mode],
    ["firewall backend", firewall !== undefined && firewall !== spec.firewall],
    ["capability argument", capabilities !== undefined && !isSame(capabilities, spec.capabilities)],
    ["CNI argument", cniArgs !== undefined && !isSame(cniArgs, spec.cniArgs)],
    ["network plugin", networkPlugin !== undefined && networkPlugin !== pluginOf(spec)],
    ["image", image !== undefined && image !== spec.docker?.image],
    ["container", container !== undefined && container !== spec.docker?.container],
    ["network", networks !== undefined && networks.join() !== names.join()],
  ];
  return checks.find(([, changed]) => changed)?.[0];
}

/** Whether two texts name the same user and the same group. */
function isSameOwner(one: string, other: string | undefined): boolean {
  return one === other ||
    other !== undefined && isSame({ ...resolveOwner(one) }, { ...resolveOwner(other) });
}
