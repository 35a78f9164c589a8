/**
 * What tapkit did not attach, and the host has rules for: an address that ports are mapped to, and a
 * bridge of other makers whose traffic other firewalls let pass as a whole. Pure.
 *
 * @module
 */

import type { FirewallKind } from "../../firewall/store.ts";
import type { Claim } from "./attachment.ts";
import { portsOf } from "./derive.ts";
import { addressTag, bridgeTag } from "./identity.ts";
import type { Served } from "./served.ts";

/** What is mapped to an address. */
export interface AddressAttachment {
  /** The address, canonical. */
  readonly to: string;
  /** The backend of its rules. */
  readonly firewall: FirewallKind;
  /** The link by which the host reaches it. */
  readonly link: string;
  readonly claims: readonly Claim[];
  /** Whether ufw and firewalld are told to accept its ports. */
  readonly openPorts: boolean;
}

/** The rules for an address. */
export function servedAddress(
  { to, firewall, link, claims, openPorts }: AddressAttachment,
): Served {
  const owner = addressTag(to);
  return {
    firewall,
    owners: [owner],
    guests: [{
      owner,
      link,
      addresses: [to],
      masquerade: false,
      forward: true,
      ports: portsOf(claims),
      relayed: true,
      openPorts,
    }],
    asymmetric: false,
    executed: false,
    command: `map-port --to ${to} …`,
  };
}

/** What is recorded of a bridge. */
export interface BridgeAttachment {
  /** Its name. The rules need no such link. */
  readonly link: string;
  /** The backend of its rules. */
  readonly firewall: FirewallKind;
}

/** The rules for a bridge. */
export function servedBridge({ link, firewall }: BridgeAttachment): Served {
  const owner = bridgeTag(link);
  return {
    firewall,
    owners: [owner],
    guests: [{
      owner,
      link,
      addresses: [],
      masquerade: false,
      forward: true,
      ports: [],
      whole: true,
    }],
    asymmetric: false,
    executed: false,
    command: "setup-weave",
  };
}
