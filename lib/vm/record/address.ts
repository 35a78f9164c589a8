/**
 * What tapkit did not attach, and the host has rules for: an address that ports are mapped to, and a
 * bridge of other makers whose traffic other firewalls let pass as a whole. Pure.
 *
 * @module
 */

import type { GuestRules } from "../../firewall/model.ts";
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
  return served(firewall, `map-port --to ${to} …`, {
    owner: addressTag(to),
    link,
    addresses: [to],
    masquerade: false,
    forward: true,
    ports: portsOf(claims),
    relayed: true,
    openPorts,
  });
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
  return served(firewall, "setup-weave", {
    owner: bridgeTag(link),
    link,
    addresses: [],
    masquerade: false,
    forward: true,
    ports: [],
    whole: true,
  });
}

/** What has the rules of one guest, and nothing of a VM's. */
function served(firewall: FirewallKind, command: string, guest: GuestRules): Served {
  return {
    firewall,
    owners: [guest.owner],
    guests: [guest],
    asymmetric: false,
    executed: false,
    command,
  };
}
