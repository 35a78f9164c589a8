/**
 * Checks that a VM's networks allow its isolation and egress rules.
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
 * Checks that a VM's policy can be enforced on its networks.
 *
 * @param note gets a warning about neighbours that the policy does not cover
 * @throws {TapkitError} naming the interface and the reason
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
        `"${ifName}" cannot be isolated: network "${network}" is not a bridge of this host`,
        { mend: "leave out --isolated, or use a network of the bridge plugin" },
      );
    }
    if (egress.length === 0) continue;
    requireRouting(fact, hostNl);
    if (!isolated) noteNeighbours(fact, egress, note);
  }
}

/** The host can only restrict what it routes. */
function requireRouting(
  { attachment: { ifName, network }, link, reach, wire }: NetworkFact,
  hostNl: NetlinkConnection,
): void {
  const addresses = link?.addresses ?? [];
  const own = ownAddresses(hostNl);
  const routers = addresses.flatMap(({ gateway }) => gateway ?? []);
  const prefixes = addresses.map(({ address }) => parseCidr(address));
  // Without a default route, a guest may still use the host as its router.
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
    mend: "leave out --deny-egress, or use a network whose gateway is this host",
  });
}

/** Whether packets between ports of a bridge pass the rules for forwarded packets. */
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
    `warning: ${reached.prefix} contains neighbours of "${ifName}", which it reaches without the ` +
      "host: use --isolated to separate them",
  );
}
