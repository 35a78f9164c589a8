/**
 * What a guest needs of the host's firewall, as plain data.
 *
 * @module
 */

import { InputError } from "../errors.ts";
import { canonicalIp, cidrsOverlap, type Family, familyOf, isIp, parseCidr } from "../inet/ip.ts";
import { formatMac, parseMac } from "../inet/mac.ts";
import {
  findPortOverlap,
  formatPort,
  isProtocol,
  portFamilies,
  type PortMapping,
} from "../inet/ports.ts";

/** The largest limit: the kernel takes a burst of 32 bits. */
export const MOST = 100_000_000;

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
  /**
   * Whether what comes by its ports reaches it under the host's address: it may have no route back
   * through the host. Then `link` is not a network of guests, and nothing else is done for it.
   */
  readonly relayed?: true;
  /**
   * Whether they are of all that is on `link`, which other firewalls then let pass as a whole. It has
   * no addresses here, and nothing else is done for it.
   */
  readonly whole?: true;
  /** Whether its ports are open also where ufw or firewalld denies what is not allowed. */
  readonly openPorts?: boolean;
  /** The guest's MAC address, by which the host knows what an isolated or restricted guest sends. */
  readonly mac?: string;
  /**
   * Where nothing is to pass between the guest and the others of its network: the host's end of
   * its veth pair, a port of the bridge `link`.
   */
  readonly isolatedPort?: string;
  /** Where the guest's new connections may not go; the rule of the longest prefix decides. */
  readonly egress?: readonly EgressRule[];
  /** Prefixes from where it is reached by its own address, and which it reaches under that. */
  readonly reachableFrom?: readonly string[];
  /** How much it may have of what all guests share. */
  readonly limits?: GuestLimits;
}

/** Limits of a guest; what is absent is not limited. */
export interface GuestLimits {
  /** The host's interface that the guest's frames come by: the bridge, where its port is one's. */
  readonly link: string;
  /** Tracked connections that it opened, and as many that were opened to it. */
  readonly connections?: number;
  /** Connections that it opens a second, {@linkcode BURST_SECONDS} seconds' worth at once. */
  readonly openings?: number;
}

/** Whether new connections to a prefix are dropped. Of two rules for one prefix `allow` wins. */
export interface EgressRule {
  /** Its network's address and length: `"169.254.169.254/32"`. */
  readonly prefix: string;
  readonly action: "allow" | "deny";
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
  const { owner, link, addresses, ports, mac, isolatedPort, egress = [], limits } = rules;
  if (!OWNER.test(owner)) {
    throw new InputError(`"${owner}" cannot tag firewall rules`, {
      mend: "use letters, digits and ._:@/- , 120 at most",
    });
  }
  for (const name of [link === "" ? undefined : link, isolatedPort, limits?.link]) {
    if (name === undefined || LINK.test(name)) continue;
    throw new InputError(`the rules of ${owner}: "${name}" is not the name of a link`);
  }
  for (const number of [limits?.connections, limits?.openings]) {
    if (number === undefined || Number.isInteger(number) && number >= 1 && number <= MOST) continue;
    throw new InputError(`the rules of ${owner}: ${number} is not a limit`);
  }
  if (mac === undefined && (isolatedPort !== undefined || egress.length > 0 || limits)) {
    throw new InputError(`the rules of ${owner} need the guest's MAC address`);
  }
  const canonical = addresses.map(canonicalIp);
  const families = canonical.map(familyOf);
  for (const port of ports) validatePort(owner, port, families);
  const pair = findPortOverlap(ports);
  if (pair !== undefined) {
    const [first, second] = pair.map(formatPort);
    throw new InputError(`the rules of ${owner}: ports "${first}" and "${second}" overlap`);
  }
  return {
    ...rules,
    addresses: canonical,
    ...(mac === undefined ? {} : { mac: formatMac(parseMac(mac)) }),
    ...(rules.egress === undefined ? {} : { egress: canonicalEgress(egress) }),
    ...(rules.reachableFrom === undefined
      ? {}
      : { reachableFrom: canonicalPrefixes(rules.reachableFrom) }),
  };
}

/** Each of its network's address, without those that another one holds. */
function canonicalPrefixes(prefixes: readonly string[]): string[] {
  const cidrs = prefixes.map(parseCidr);
  const widest = cidrs.filter((cidr) =>
    !cidrs.some((other) => other.prefixLength < cidr.prefixLength && cidrsOverlap(other, cidr))
  );
  return [...new Set(widest.map(({ network, prefixLength }) => `${network}/${prefixLength}`))];
}

/** One rule a prefix, each of its network's address. */
function canonicalEgress(rules: readonly EgressRule[]): EgressRule[] {
  const actions = new Map<string, EgressRule["action"]>();
  for (const { prefix, action } of rules) {
    const { network, prefixLength } = parseCidr(prefix);
    const key = `${network}/${prefixLength}`;
    if (actions.get(key) !== "allow") actions.set(key, action);
  }
  return [...actions].map(([prefix, action]) => ({ prefix, action }));
}

function validatePort(owner: string, port: PortMapping, families: readonly Family[]): void {
  const { hostIP, hostPort, vmPort, protocol, range = 1 } = port;
  const sane = (first: number) =>
    Number.isInteger(first) && first >= 1 && first + range - 1 <= 65535;
  if (
    !isProtocol(protocol) || !Number.isInteger(range) || range < 1 ||
    !sane(hostPort) || !sane(vmPort) || (hostIP !== "" && isIp(hostIP) === 0)
  ) {
    throw new InputError(`the rules of ${owner}: ${JSON.stringify(port)} is not a port mapping`);
  }
  if (portFamilies(port, families).length > 0) return;
  throw new InputError(
    `the rules of ${owner}: port "${formatPort(port)}" needs an address of its family`,
    { mend: "bind an address of a family the VM has" },
  );
}
