/**
 * An address that tapkit did not attach and that ports are mapped to. Pure.
 *
 * @module
 */

import type { FirewallKind } from "../../firewall/store.ts";
import type { Claim } from "./attachment.ts";
import { portsOf } from "./derive.ts";
import { addressTag } from "./identity.ts";
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
