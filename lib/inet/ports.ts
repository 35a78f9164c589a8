/**
 * Port mappings: their grammar, and conflicts over host ports.
 *
 * @module
 */

import { InputError, TapkitError } from "../errors.ts";
import { canonicalIp, type Family, isIp, isLoopback, isMulticast } from "./ip.ts";
import { findSlip } from "./port-slips.ts";

/** The transport protocols whose ports can be mapped. */
export type Protocol = "tcp" | "udp" | "sctp";

/** A host port, or a range of them, and the VM's port that it leads to. */
export interface PortMapping {
  /**
   * The host address, canonical. `"0.0.0.0"` and `"::"` mean all addresses of their family; `""`
   * means all addresses of every family that the VM has.
   */
  readonly hostIP: string;
  /** The first host port; 0 asks for a free one. */
  readonly hostPort: number;
  /** The first port of the VM. */
  readonly vmPort: number;
  /** The transport protocol. */
  readonly protocol: Protocol;
  /** How many consecutive ports; one when absent. */
  readonly range?: number;
}

/** All of them. */
export const PROTOCOLS: readonly Protocol[] = ["tcp", "udp", "sctp"];

/** Their numbers (linux/in.h). */
export const IPPROTO: Readonly<Record<Protocol, number>> = { tcp: 6, udp: 17, sctp: 132 };

/** The name of a protocol by its number; the number itself for one that has no ports to map. */
export function protocolName(number: number | string): string {
  return PROTOCOLS.find((name) => `${IPPROTO[name]}` === `${number}`) ?? `${number}`;
}
const MEND = "write it as [HOST_ADDRESS:]HOST_PORT:VM_PORT[/tcp|udp|sctp], as in 8080:80";

/**
 * Parses the mappings of one call: `8080:80`, `8080:80/udp`, `127.0.0.1:8080:80`,
 * `[2001:db8::1]:8080:80`, `9000-9009:9000-9009`, `0:80`.
 *
 * @throws {InputError} when one is malformed, or two of them want the same host port
 */
export function parsePorts(texts: readonly string[]): PortMapping[] {
  const mappings = texts.map(parsePort);
  const pair = findPortOverlap(mappings);
  if (pair === undefined) return mappings;
  const [first, second] = pair.map(formatPort);
  throw new InputError(`the ports "${first}" and "${second}" overlap on the host`, {
    mend: "give each host port once",
  });
}

function parsePort(text: string): PortMapping {
  const slash = text.indexOf("/");
  const protocol = slash < 0 ? "tcp" : text.slice(slash + 1);
  if (!isProtocol(protocol)) {
    throw refuse(
      text,
      protocol === "" ? "the protocol is empty" : `"${protocol}" is not a protocol tapkit maps`,
    );
  }
  const match = /^(?:(?:\[([^\]]*)\]|([^:[\]]*)):)?([^:]*):([^:]*)$/.exec(
    slash < 0 ? text : text.slice(0, slash),
  );
  if (match === null) throw refuse(text, "it does not read as a port mapping");
  const hostIP = parseHostIP(text, match[1], match[2]);
  const host = parsePortRange(text, "host", match[3]!);
  const vm = parsePortRange(text, "VM", match[4]!);
  if (vm.first === 0) throw refuse(text, "VM port 0 has no meaning");
  if (host.first === 0 && host.length > 1) throw refuse(text, "host port 0 cannot begin a range");
  if (host.length !== vm.length) {
    throw refuse(text, `the ranges have ${host.length} and ${vm.length} ports`);
  }
  const mapping = { hostIP, hostPort: host.first, vmPort: vm.first, protocol };
  return host.length === 1 ? mapping : { ...mapping, range: host.length };
}

/** Whether ports of a protocol can be mapped. */
export function isProtocol(text: string): text is Protocol {
  return PROTOCOLS.some((protocol) => protocol === text);
}

function parseHostIP(text: string, bracketed?: string, plain?: string): string {
  const address = bracketed ?? plain;
  if (address === undefined) return "";
  if (address.includes("%")) throw refuse(text, `the address "${address}" has a zone`);
  const family = isIp(address);
  if (family === 0) throw refuse(text, `"${address}" is not an IP address`);
  if ((family === 6) !== (bracketed !== undefined)) {
    throw refuse(text, "brackets are for IPv6 addresses, and IPv6 addresses need them");
  }
  const canonical = canonicalIp(address);
  if (family === 6 && isLoopback(canonical)) {
    throw new InputError(`port "${text}": IPv6 loopback cannot be translated by the kernel`, {
      mend: "bind 127.0.0.1, or a global IPv6 address of the host",
    });
  }
  if (isMulticast(canonical) || canonical === "255.255.255.255" || isLinkLocal(canonical)) {
    throw refuse(text, `"${address}" is not an address a port can be bound to`);
  }
  if (canonical.startsWith("::ffff:")) {
    throw refuse(text, `"${address}" is an IPv4 address in IPv6 writing`);
  }
  return canonical;
}

/** Addresses of fe80::/10 are ambiguous without a zone. */
function isLinkLocal(canonical: string): boolean {
  return /^fe[89ab][0-9a-f]:/.test(canonical);
}

function parsePortRange(
  text: string,
  side: string,
  range: string,
): { first: number; length: number } {
  const dash = range.indexOf("-", 1);
  const first = parseNumber(text, side, dash < 0 ? range : range.slice(0, dash));
  if (dash < 0) return { first, length: 1 };
  const last = parseNumber(text, side, range.slice(dash + 1));
  if (last < first) throw refuse(text, `the ${side} range ${range} is reversed`);
  return { first, length: last - first + 1 };
}

function parseNumber(text: string, side: string, digits: string): number {
  const value = /^(0|[1-9]\d{0,4})$/.test(digits) ? Number(digits) : NaN;
  if (value <= 65535) return value;
  throw refuse(text, `the ${side} port "${digits}" is not a number from 1 to 65535`);
}

function refuse(text: string, why: string): InputError {
  const slip = findSlip(text);
  return new InputError(`port "${text}": ${slip?.why ?? why}`, { mend: slip?.mend ?? MEND });
}

/** A mapping as text for {@linkcode parsePorts}, without `/tcp`. */
export function formatPort(mapping: PortMapping): string {
  const { hostIP, hostPort, vmPort, protocol, range = 1 } = mapping;
  const ports = (first: number) => range === 1 ? `${first}` : `${first}-${first + range - 1}`;
  const address = hostIP === "" ? "" : `${bracketed(hostIP)}:`;
  const suffix = protocol === "tcp" ? "" : `/${protocol}`;
  return `${address}${ports(hostPort)}:${ports(vmPort)}${suffix}`;
}

/** A range as single mappings, in order. */
export function expandPorts(mapping: PortMapping): PortMapping[] {
  const { hostIP, hostPort, vmPort, protocol, range = 1 } = mapping;
  return Array.from({ length: range }, (_, index) => ({
    hostIP,
    hostPort: hostPort + index,
    vmPort: vmPort + index,
    protocol,
  }));
}

/** The families of a mapping, among those that the VM has addresses of. */
export function portFamilies(mapping: PortMapping, vmFamilies: readonly Family[]): Family[] {
  const families: readonly Family[] = [4, 6];
  return families.filter((family) =>
    vmFamilies.includes(family) && (mapping.hostIP === "" || isIp(mapping.hostIP) === family)
  );
}

/**
 * The mappings as a record shows them: `""` becomes `"0.0.0.0"`, `"::"`, or one entry of each,
 * by the families the VM has addresses of.
 *
 * @throws {InputError} when a host address is of a family that the VM lacks
 */
export function bindPorts(
  mappings: readonly PortMapping[],
  vmFamilies: readonly Family[],
): PortMapping[] {
  return mappings.flatMap((mapping) => {
    const families = portFamilies(mapping, vmFamilies);
    if (families.length === 0) {
      const lacking = mapping.hostIP === "" ? "IP" : `IPv${isIp(mapping.hostIP)}`;
      throw new InputError(`port "${formatPort(mapping)}": the VM has no ${lacking} address`, {
        mend: "use a host address of a family that the VM has, or a network with both families",
      });
    }
    if (mapping.hostIP !== "") return [mapping];
    return families.map((family) => ({ ...mapping, hostIP: family === 4 ? "0.0.0.0" : "::" }));
  });
}

/**
 * The ports of bound mappings that `others` do not have with the same target. Ranges are split if
 * necessary.
 */
export function subtractPorts(
  mappings: readonly PortMapping[],
  others: readonly PortMapping[],
): PortMapping[] {
  if (others.length === 0) return [...mappings];
  const gone = byHostPort(others, spanOf(mappings));
  if (gone.size === 0) return [...mappings];
  const isGone = (mapping: PortMapping, port: number) =>
    gone.get(port)?.some((other) => leadAlike(mapping, other)) === true;
  return mappings.flatMap((mapping) => {
    const { hostPort, range = 1 } = mapping;
    if (range === 1) return isGone(mapping, hostPort) ? [] : [mapping];
    const kept = expandPorts(mapping).filter((port) => !isGone(port, port.hostPort));
    return kept.length === range ? [mapping] : joinRuns(kept);
  });
}

/** Whether two mappings are the same. */
export function isSamePort(a: PortMapping, b: PortMapping): boolean {
  return a.hostPort === b.hostPort && (a.range ?? 1) === (b.range ?? 1) && leadAlike(a, b);
}

/** Whether two mappings of a host port are of the same address and protocol, and lead to one port. */
function leadAlike(a: PortMapping, b: PortMapping): boolean {
  return a.hostPort - a.vmPort === b.hostPort - b.vmPort && a.protocol === b.protocol &&
    a.hostIP === b.hostIP;
}

/** The lowest and the highest host port; the lowest is the higher one where there is none. */
function spanOf(mappings: readonly PortMapping[]): { lowest: number; highest: number } {
  let [lowest, highest] = [Infinity, -Infinity];
  for (const { hostPort, range = 1 } of mappings) {
    if (hostPort < lowest) lowest = hostPort;
    if (hostPort + range - 1 > highest) highest = hostPort + range - 1;
  }
  return { lowest, highest };
}

/** The mappings of each host port within a span. Ports that are still to be chosen are none. */
function byHostPort(
  mappings: readonly PortMapping[],
  { lowest, highest }: ReturnType<typeof spanOf>,
): Map<number, PortMapping[]> {
  const found = new Map<number, PortMapping[]>();
  for (const mapping of mappings) {
    const { hostPort, range = 1 } = mapping;
    if (hostPort === 0) continue;
    const last = Math.min(highest, hostPort + range - 1);
    for (let port = Math.max(lowest, hostPort); port <= last; port++) {
      const known = found.get(port);
      if (known === undefined) found.set(port, [mapping]);
      else known.push(mapping);
    }
  }
  return found;
}

/** The ports of bound mappings that `others` have with the same target. */
export function intersectPorts(
  mappings: readonly PortMapping[],
  others: readonly PortMapping[],
): PortMapping[] {
  return subtractPorts(mappings, subtractPorts(mappings, others));
}

/** Joins single ports of one range, in order, into as few mappings as possible. */
function joinRuns(ports: readonly PortMapping[]): PortMapping[] {
  const runs: PortMapping[] = [];
  for (const port of ports) {
    const last = runs.at(-1);
    const length = last?.range ?? 1;
    if (last !== undefined && last.hostPort + length === port.hostPort) {
      runs[runs.length - 1] = { ...last, range: length + 1 };
    } else runs.push(port);
  }
  return runs;
}

/** Whether a host address means all addresses of a family, or of both. */
export function isWildcard(hostIP: string): boolean {
  return hostIP === "" || hostIP === "0.0.0.0" || hostIP === "::";
}

/** Whether two mappings conflict over a host port. A wildcard conflicts with every address. */
export function portsOverlap(a: PortMapping, b: PortMapping): boolean {
  if (a.hostPort === 0 || b.hostPort === 0) return false;
  return a.protocol === b.protocol && a.hostPort < b.hostPort + (b.range ?? 1) &&
    b.hostPort < a.hostPort + (a.range ?? 1) &&
    addressesOverlap(a.hostIP, b.hostIP);
}

function addressesOverlap(a: string, b: string): boolean {
  if (a === b || a === "" || b === "") return true;
  return isIp(a) === isIp(b) && (isWildcard(a) || isWildcard(b));
}

/** A host port that two owners want. */
export interface PortConflict {
  readonly protocol: Protocol;
  /** The address in the mapping that is wanted. */
  readonly hostIP: string;
  /** The first port in both mappings. */
  readonly hostPort: number;
  /** The present owner: a VM's name, an owner tag, or a process. */
  readonly owner: string;
  /** The owner's mapping, if it is a mapping. */
  readonly other?: PortMapping;
  /** For rules of others: where they are, and how a message describes them. */
  readonly by?: string;
}

/** The mappings of one owner. */
export interface TakenPorts {
  readonly owner: string;
  readonly mappings: readonly PortMapping[];
  /** For rules of others: where they are, and how a message describes them. */
  readonly by?: string;
}

/** Two mappings of a list that conflict, the earlier one first. */
export function findPortOverlap(
  mappings: readonly PortMapping[],
): [PortMapping, PortMapping] | undefined {
  const byPort = new Map<number, PortMapping[]>();
  for (const mapping of mappings) {
    for (const port of hostPorts(mapping)) {
      const earlier = byPort.get(port);
      const other = earlier?.find((candidate) => portsOverlap(candidate, mapping));
      if (other !== undefined) return [other, mapping];
      if (earlier === undefined) byPort.set(port, [mapping]);
      else earlier.push(mapping);
    }
  }
  return undefined;
}

/** The host ports of a mapping; none if they are still to be chosen. */
function hostPorts({ hostPort, range = 1 }: PortMapping): number[] {
  if (hostPort === 0) return [];
  return Array.from({ length: range }, (_, index) => hostPort + index);
}

/**
 * The first conflict between `wanted` and what owners have. Wildcards conflict with every address.
 */
export function findPortConflict(
  wanted: readonly PortMapping[],
  taken: readonly TakenPorts[],
): PortConflict | undefined {
  const byPort = Map.groupBy(
    wanted.flatMap((mapping) => hostPorts(mapping).map((port) => ({ port, mapping }))),
    ({ port }) => port,
  );
  const [lowest, highest] = [Math.min(...byPort.keys()), Math.max(...byPort.keys())];
  for (const { owner, mappings, by } of taken) {
    for (const other of mappings) {
      const last = Math.min(highest, other.hostPort + (other.range ?? 1) - 1);
      for (let port = Math.max(lowest, other.hostPort); port <= last; port++) {
        const met = byPort.get(port)?.find(({ mapping }) => portsOverlap(mapping, other))?.mapping;
        if (met === undefined) continue;
        const { protocol, hostIP } = met;
        const said = by === undefined ? {} : { by };
        return { protocol, hostIP, hostPort: port, owner, other, ...said };
      }
    }
  }
  return undefined;
}

/** A host port has another owner. Nothing was changed. */
export class PortConflictError extends TapkitError {
  /** The class's name. */
  override readonly name: string = "PortConflictError";
  /** The protocol of the port. */
  readonly protocol: Protocol;
  /** The host address that was asked for: `""` for all of them. */
  readonly hostIP: string;
  /** The first host port that is taken. */
  readonly hostPort: number;
  /** The present owner: a VM's name, an owner tag, a container or a process. */
  readonly owner: string;

  /**
   * An error about the first port that two owners want.
   *
   * @param state what the message says of the port: `already mapped to VM "api"`,
   * `in use by nginx (pid 812)`
   */
  constructor(conflict: PortConflict, state: string, mend = "choose another host port") {
    super(`host port ${formatHostPort(conflict)} is ${state}`, { mend });
    this.protocol = conflict.protocol;
    this.hostIP = conflict.hostIP;
    this.hostPort = conflict.hostPort;
    this.owner = conflict.owner;
  }
}

/** A host port in messages: `8080/tcp`, `127.0.0.1:53/udp`. */
export function formatHostPort(
  port: Pick<PortMapping, "hostIP" | "hostPort" | "protocol">,
): string {
  const { hostIP, hostPort, protocol } = port;
  if (isWildcard(hostIP)) return `${hostPort}/${protocol}`;
  return `${bracketed(hostIP)}:${hostPort}/${protocol}`;
}

function bracketed(ip: string): string {
  return isIp(ip) === 6 ? `[${ip}]` : ip;
}
