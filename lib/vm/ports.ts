/**
 * A VM's published ports: whose they are, refused where they are taken, bound to addresses.
 *
 * @module
 */

import { DOCKER_OWNER, dockerConflict } from "../firewall/docker-ports.ts";
import { chooseHostPorts, refuseListeners } from "../firewall/host-ports.ts";
import type { Firewall } from "../firewall/firewall.ts";
import type { GuestRules } from "../firewall/model.ts";
import {
  bindPorts,
  findPortConflict,
  formatPort,
  isWildcard,
  parsePorts,
  type PortConflict,
  PortConflictError,
  type PortMapping,
  portsOverlap,
  subtractPorts,
  type TakenPorts,
} from "../inet/ports.ts";
import { type Family, isIp } from "../inet/ip.ts";
import {
  addressNames,
  addressOf,
  type HostPaths,
  type PortOwners,
  readGeneration,
  readRecords,
  type StoredRecord,
  writeGeneration,
} from "./state.ts";
import type { NetworkAttachment, RecordedPlugin } from "../cni/plan.ts";
import type { AttachRequest } from "./types.ts";

/** Whose a record's ports are. */
export function portOwners({ ports, made }: Pick<StoredRecord, "ports" | "made">): PortOwners {
  return made.portOwners ?? { attach: ports, mapPort: [] };
}

/** Whose ports are, where map-port has been at it; attach-vm's may be others now. */
export function ownersOf(
  old: StoredRecord | undefined,
  attach: readonly PortMapping[],
): Pick<StoredRecord["made"], "portOwners"> {
  const owners = old?.made.portOwners;
  return owners === undefined ? {} : { portOwners: { ...owners, attach } };
}

/** Whether the ports of a VM's first interface are published by a plugin that is executed. */
export function publishedByPlugin([first]: readonly NetworkAttachment[]): boolean {
  return first?.plugins.some(isPublisher) ?? false;
}

/** Whether a plugin is executed and publishes ports. */
export function isPublisher({ implementation, config }: RecordedPlugin): boolean {
  return implementation === "exec" && config.capabilities?.portMappings === true;
}

/** Of a VM's ports those that tapkit's own firewall maps: map-port's alone, where a plugin is at it. */
export function portsOfFirewall(
  networks: readonly NetworkAttachment[],
  ports: readonly PortMapping[],
  old: StoredRecord | undefined,
): readonly PortMapping[] {
  if (!publishedByPlugin(networks)) return ports;
  return old === undefined ? [] : portOwners(old).mapPort;
}

/** All ports as a record shows them, each once: attach-vm's first. */
export function allPorts({ attach, mapPort }: PortOwners): PortMapping[] {
  return [
    ...attach,
    ...subtractPorts(mapPort, attach).map(({ hostIP, hostPort, vmPort, protocol, range }) => ({
      hostIP,
      hostPort,
      vmPort,
      protocol,
      ...range === undefined ? {} : { range },
    })),
  ];
}

/**
 * attach-vm's own ports of a request, with a host port chosen wherever 0 asks for one. The caller
 * holds the host's lock until they are in the firewall.
 *
 * @param old what the VM had before: host ports that were chosen then stay, and map-port's too
 * @throws {PortConflictError} when another VM, Docker or a process has one of them
 */
export async function reservePorts(
  host: HostPaths,
  firewall: Firewall,
  request: AttachRequest,
  old?: StoredRecord,
): Promise<PortMapping[]> {
  const { name, ports = [] } = request;
  const { attach, mapPort } = old === undefined ? { attach: [], mapPort: [] } : portOwners(old);
  if (old !== undefined && hasPorts(old, request)) {
    // Records do not contradict each other: what one has been given nobody else was.
    const taken = portsInKernel(firewall, [...attach, ...mapPort]);
    refuseTaken([...attach, ...mapPort], taken.filter(({ owner }) => owner !== name));
    refuseListeners(attach);
    return [...attach];
  }
  const asked = ports === "none" ? [] : parsePorts(ports);
  if (asked.length === 0) return [];
  const look = await portLookup(host, firewall, name);
  const wanted = chooseHostPorts(
    asked,
    (candidate) => findPortConflict([candidate], look([candidate])) !== undefined,
  );
  refuseTaken(wanted, look(wanted));
  const contradicts = wanted.flatMap((port) =>
    mapPort.filter((other) => portsOverlap(port, other) && !leadsAlike(port, other))
  );
  refuseTaken(wanted, [{ owner: name, mappings: contradicts }]);
  refuseListeners(wanted);
  return wanted;
}

/** Whether two mappings that overlap lead to the same ports by the same address. */
function leadsAlike(a: PortMapping, b: PortMapping): boolean {
  return a.hostPort - a.vmPort === b.hostPort - b.vmPort &&
    (a.hostIP === b.hostIP || (a.hostIP === "" && isWildcard(b.hostIP)));
}

/**
 * Refuses ports that somebody has.
 *
 * @throws {PortConflictError} naming whose it is and how it is given up
 */
export function refuseTaken(
  wanted: readonly PortMapping[],
  taken: readonly TakenPorts[],
): void {
  const conflict = findPortConflict(wanted, taken);
  if (conflict === undefined) return;
  if (conflict.owner.startsWith(DOCKER_OWNER)) throw dockerConflict(conflict);
  const to = addressOf(conflict.owner);
  throw new PortConflictError(
    conflict,
    `already mapped to ${to === undefined ? `VM "${conflict.owner}"` : `address ${to}`}`,
    `choose another host port, or run map-port ${
      to === undefined ? conflict.owner : `--to ${to}`
    } --remove ${givenUp(conflict)}`,
  );
}

/** The mapping in the way, as a person writes it. */
function givenUp({ other, hostPort }: PortConflict): string {
  if (other === undefined) return `${hostPort}:…`;
  return formatPort({ ...other, hostIP: isWildcard(other.hostIP) ? "" : other.hostIP });
}

/** Finds out who has host ports that are wanted, by VMs' names and owner tags. */
export type PortLookup = (wanted: readonly PortMapping[]) => TakenPorts[];

/**
 * Who has host ports, but for one: as the kernel has it, which knows in the same time however many
 * there are; as the records have it too while some of those may not be in the kernel, after a
 * reboot or when somebody took the rules away; and Docker.
 */
export async function portLookup(
  host: HostPaths,
  firewall: Firewall,
  except: string,
): Promise<PortLookup> {
  const besides = [...await recordedOnly(host, firewall), ...await firewall.dockerPorts()];
  return (wanted) =>
    [...portsInKernel(firewall, wanted), ...besides].filter(({ owner }) => owner !== except);
}

function portsInKernel(firewall: Firewall, wanted: readonly PortMapping[]): TakenPorts[] {
  // A guest's tag is NAME/INTERFACE.
  return (firewall.portsInTheWay(wanted) ?? [])
    .map(({ owner, mappings }) => ({ owner: owner.split("/", 1)[0]!, mappings }));
}

/**
 * The ports of records that the kernel need not have. Once it has been seen to have them all, that
 * is remembered for as long as its rules are the same ones.
 */
async function recordedOnly(host: HostPaths, firewall: Firewall): Promise<TakenPorts[]> {
  const generation = firewall.generation();
  if (generation !== undefined && generation === readGeneration(host)) return [];
  const records = readRecords(host);
  const addresses = addressNames(host).length === 0
    ? []
    : (await import("./addresses.ts")).readAddresses(host);
  const guests = [...records.flatMap(({ made }) => made.guests), ...addresses.map((a) => a.rules)];
  if (generation !== undefined && records.every(({ made }) => made.phase === "attached")) {
    const held = new Map(
      firewall.listGuests().map(({ owner, ports }) => [owner, countPorts(ports)]),
    );
    // What a plugin publishes is never in tapkit's own rules.
    const byPlugin = records.some(({ made, ports }) =>
      ports.length > 0 && publishedByPlugin(made.networks)
    );
    const complete = guests.every(({ owner, ports }) =>
      countPorts(ports) <= (held.get(owner) ?? 0)
    );
    if (complete && !byPlugin) writeGeneration(host, generation);
  }
  return [
    ...records.map(({ vm, ports }) => ({ owner: vm, mappings: ports })),
    ...addresses.map(({ rules: { owner, ports } }) => ({ owner, mappings: ports })),
  ];
}

function countPorts(ports: readonly PortMapping[]): number {
  return ports.reduce((sum, { range = 1 }) => sum + range, 0);
}

/**
 * The ports as the record has them: each bound to an address, or to all of one family the VM has.
 *
 * @param addresses the VM's, without prefix length
 */
export function bindToFamilies(
  ports: readonly PortMapping[],
  addresses: readonly string[],
): PortMapping[] {
  return bindPorts(ports, addresses.map(isIp).filter((family): family is Family => family !== 0));
}

/** What the firewall is told of opening a request's ports. */
export function openPorts({ openFirewall = false }: AttachRequest): Pick<GuestRules, "openPorts"> {
  return { openPorts: openFirewall };
}

/** Whether the VM has the ports that are asked for; a host port once chosen stays. */
export function hasPorts(record: StoredRecord, { ports }: AttachRequest): boolean {
  return JSON.stringify(record.made.request.ports ?? "none") === JSON.stringify(ports ?? "none");
}

/** Guests' rules with all ports of the VM, those too that a plugin publishes. */
export function withShownPorts(
  guests: readonly GuestRules[],
  ports: readonly PortMapping[],
): GuestRules[] {
  return guests.map((rules, index) => index === 0 ? { ...rules, ports } : rules);
}

/**
 * Says which firewall keeps published ports closed to other machines.
 *
 * @param command that opens them: `attach-vm web`
 */
export function noteClosed(
  host: HostPaths,
  firewall: Firewall,
  guests: readonly GuestRules[],
  command: string,
): void {
  const closedBy = guests.map((rules) => firewall.closedBy(rules)).find(Boolean);
  if (closedBy === undefined) return;
  host.note(
    `${closedBy} keeps the published ports closed to other machines: ` +
      `open them with ${command} --open-firewall`,
  );
}
