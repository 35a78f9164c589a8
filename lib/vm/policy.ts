/**
 * What a VM's isolation and egress rules need of its networks.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import type { EgressRule } from "../firewall/model.ts";
import { cidrContains, cidrsOverlap, type Family, parseCidr } from "../inet/ip.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { ownAddresses } from "../netlink/address.ts";
import { readSysctl } from "../sys/sysctl.ts";
import type { Both, NetworkFact } from "./record/attachment.ts";
import { egressOf } from "./record/served.ts";

/**
 * Checks that a VM's networks leave the means to enforce its policy.
 *
 * @param note is told of what the policy does not reach
 * @throws {TapkitError} naming the interface, and why not
 */
export function requireEnforceable(
  { spec, facts }: Both,
  { hostNl, note }: { readonly hostNl: NetlinkConnection; note(text: string): void },
): void {
  const { isolated } = spec.policy;
  const egress = egressOf(spec.policy);
  for (const fact of facts.networks) {
    const { attachment: { ifName, network }, reach } = fact;
    if (isolated && reach?.bridge === undefined) {
      throw new TapkitError(
        `"${ifName}" cannot be isolated: network "${network}" is no bridge of this host`,
        { mend: "leave --isolated out, or use a network of the bridge plugin" },
      );
    }
    if (egress.length === 0) continue;
    requireRouting(fact, hostNl);
    if (!isolated) noteNeighbours(fact, egress, note);
  }
}

/** What the host does not route it cannot restrict. */
function requireRouting(
  { attachment: { ifName, network }, link, reach, wire }: NetworkFact,
  hostNl: NetlinkConnection,
): void {
  const addresses = link?.addresses ?? [];
  const own = ownAddresses(hostNl);
  const routers = addresses.flatMap(({ gateway }) => gateway ?? []);
  const prefixes = addresses.map(({ address }) => parseCidr(address));
  // Without a default route the guest may still make the host its router.
  const hops = routers.length > 0
    ? routers
    : [...own].filter((ip) => prefixes.some((prefix) => cidrContains(prefix, ip)));
  const why = reach?.hostEnd === undefined || hops.length === 0 || !hops.every((ip) => own.has(ip))
    ? `this host is not the router of network "${network}"`
    : wire?.guarded === false
    ? "this kernel lacks CONFIG_NET_CLS_BPF, and the guest may take another MAC address"
    : undefined;
  if (why === undefined) return;
  throw new TapkitError(`the egress of "${ifName}" cannot be restricted: ${why}`, {
    mend: "leave --deny-egress out, or use a network whose gateway is this host",
  });
}

/** Whether what passes from one port of a bridge to another meets the rules of what is forwarded. */
function bridgesByRules(family: Family): boolean {
  return readSysctl(`net/bridge/bridge-nf-call-${family === 4 ? "ip" : "ip6"}tables`) === "1";
}

function noteNeighbours(
  { attachment: { ifName }, link }: NetworkFact,
  egress: readonly EgressRule[],
  note: (text: string) => void,
): void {
  const prefixes = (link?.addresses ?? []).map(({ address }) => parseCidr(address));
  const reached = egress.find(({ prefix, action }) =>
    action === "deny" &&
    prefixes.some((own) => cidrsOverlap(own, parseCidr(prefix)) && !bridgesByRules(own.family))
  );
  if (reached === undefined) return;
  note(
    `warning: ${reached.prefix} holds neighbours of "${ifName}", which are reached past the host: ` +
      "--isolated keeps them apart",
  );
}
