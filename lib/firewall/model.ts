/**
 * What a guest needs of the host's firewall, as plain data.
 *
 * @module
 */

import { InputError } from "../errors.ts";
import { canonicalIp, type Family, isIp } from "../inet/ip.ts";
import { findOverlap, formatPort, portFamilies, type PortMapping } from "../inet/ports.ts";

/** The rules of one interface of one guest. */
export interface GuestRules {
  /** Who they belong to, and the tag on everything made of them: `"web/eth0"`. */
  readonly owner: string;
  /**
   * The host's interface the guest is reached by: `"ignite0"`. Guests of one network share it.
   * Empty where it is not known: the guest then reaches no published port of itself or of a
   * neighbour.
   */
  readonly link: string;
  /** The guest's addresses, without prefix length. Ports lead to the first of each family. */
  readonly addresses: readonly string[];
  /**
   * Whether the guest's network is private: its connections leave with the host's address, and
   * none reaches it from elsewhere but by a mapped port.
   */
  readonly masquerade: boolean;
  /**
   * Whether tapkit answers for the forwarding of the guest's packets where another firewall's
   * default is to drop them. tapkit's own nftables table lets them pass in any case.
   */
  readonly forward: boolean;
  readonly ports: readonly PortMapping[];
}

// An owner tag and a link's name stand between quotes in nft's language.
const OWNER = /^[A-Za-z0-9][A-Za-z0-9._:@/-]{0,119}$/;
const LINK = /^[A-Za-z0-9_.@+=-]{1,15}$/;

/**
 * Checks the rules and brings their addresses to canonical form.
 *
 * @throws {InputError} when a value cannot stand in a firewall rule
 */
export function validateRules(rules: GuestRules): GuestRules {
  const { owner, link, addresses, ports } = rules;
  if (!OWNER.test(owner)) {
    throw new InputError(`"${owner}" cannot tag firewall rules`, {
      mend: "use letters, digits and ._:@/- , 120 at most",
    });
  }
  if (link !== "" && !LINK.test(link)) {
    throw new InputError(`the rules of ${owner}: "${link}" is no name of a link`);
  }
  const canonical = addresses.map(canonicalIp);
  const families = canonical.map((address): Family => isIp(address) === 6 ? 6 : 4);
  for (const port of ports) validatePort(owner, port, families);
  const pair = findOverlap(ports);
  if (pair !== undefined) {
    const [first, second] = pair.map(formatPort);
    throw new InputError(`the rules of ${owner}: ports "${first}" and "${second}" overlap`);
  }
  return { ...rules, addresses: canonical };
}

function validatePort(owner: string, port: PortMapping, families: readonly Family[]): void {
  const { hostIP, hostPort, vmPort, protocol, range = 1 } = port;
  const sane = (first: number) =>
    Number.isInteger(first) && first >= 1 && first + range - 1 <= 65535;
  if (
    !["tcp", "udp", "sctp"].includes(protocol) || !Number.isInteger(range) || range < 1 ||
    !sane(hostPort) || !sane(vmPort) || (hostIP !== "" && isIp(hostIP) === 0)
  ) {
    throw new InputError(`the rules of ${owner}: ${JSON.stringify(port)} is no port mapping`);
  }
  if (portFamilies(port, families).length > 0) return;
  throw new InputError(
    `the rules of ${owner}: port "${formatPort(port)}" needs an address of its family`,
    { mend: "bind an address of a family the VM has" },
  );
}
