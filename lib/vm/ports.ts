/**
 * A VM's published ports: whose they are, refused where they are taken, bound to addresses.
 *
 * @module
 */

import type { NetworkAttachment, RecordedPlugin } from "../cni/plan.ts";
import { TapkitError } from "../errors.ts";
import { DOCKER_OWNER, dockerConflict } from "../firewall/docker-ports.ts";
import type { Firewall } from "../firewall/firewall.ts";
import { chooseHostPorts, refuseListeners } from "../firewall/host-ports.ts";
import type { GuestRules } from "../firewall/model.ts";
import { type Family, isIp } from "../inet/ip.ts";
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
import { getRoute } from "../netlink/route.ts";
import { readSysctl } from "../sys/sysctl.ts";
import { RecordedPorts } from "./recorded-ports.ts";
import type { Host } from "./session.ts";
import { addressOf, containerId, type HostPaths } from "./host-paths.ts";
import { nameOfId, type PortOwners, type StoredRecord } from "./state.ts";
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
 * @throws {PortConflictError} when another VM, another's rule or a process has one of them
 */
export async function reservePorts(
  host: Host,
  firewall: Firewall,
  request: AttachRequest,
  old?: StoredRecord,
): Promise<PortMapping[]> {
  const { name } = request;
  const { attach, mapPort } = old === undefined ? { attach: [], mapPort: [] } : portOwners(old);
  if (old !== undefined && hasPorts(old, request)) {
    // Records do not contradict each other: what one has been given nobody else was.
    const look = await kernelLookup(host, firewall, name);
    refuseTaken([...attach, ...mapPort], look([...attach, ...mapPort]));
    refuseListeners(attach);
    return [...attach];
  }
  const asked = askedPorts(request);
  if (asked.length === 0) return [];
  refuseAbsent(host, asked);
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

/**
 * Refuses ports of addresses that the host does not have: nobody would reach them.
 *
 * @throws {TapkitError} naming the address
 */
export function refuseAbsent({ session }: Host, ports: readonly PortMapping[]): void {
  const addresses = new Set(ports.map(({ hostIP }) => hostIP).filter((ip) => !isWildcard(ip)));
  for (const address of addresses) {
    // Not its addresses are asked for: whole prefixes can be local, by a route.
    if (getRoute(session.nl, address)?.type === "local") continue;
    const setting = `net/ipv${isIp(address)}/ip_nonlocal_bind`;
    if (readSysctl(setting) === "1") continue;
    throw new TapkitError(`the host does not have the address ${address} to map ports of`, {
      mend: `add it to a link, or, where it comes later, set ${setting.replaceAll("/", ".")} = 1`,
    });
  }
}

/** How often ports are chosen before it is given up. */
const ATTEMPTS = 3;

/**
 * Does once more what failed because a host port that was chosen became somebody else's meanwhile:
 * who uses another state directory takes another lock.
 *
 * @param asked 0 where a port is chosen
 * @param act undoes what it did when it fails
 */
export async function choosingAgain<T>(
  asked: readonly PortMapping[],
  act: () => Promise<T>,
): Promise<T> {
  for (let attempt = 1;; attempt++) {
    try {
      return await act();
    } catch (error) {
      if (attempt === ATTEMPTS || !(error instanceof PortConflictError)) throw error;
      const { protocol, hostIP, hostPort, owner } = error;
      const taken = [{ owner, mappings: [{ protocol, hostIP, hostPort, vmPort: hostPort }] }];
      const named = findPortConflict(asked, taken) !== undefined;
      if (named || asked.every((port) => port.hostPort !== 0)) throw error;
    }
  }
}

/** The ports of a request, where 0 asks for one to be chosen. */
export function askedPorts({ ports = "none" }: AttachRequest): PortMapping[] {
  return ports === "none" ? [] : parsePorts(ports);
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
  if (conflict !== undefined) throw conflictError(conflict);
}

function conflictError(conflict: PortConflict): PortConflictError {
  if (conflict.owner.startsWith(DOCKER_OWNER)) return dockerConflict(conflict);
  if (conflict.by !== undefined) {
    const mend = "choose another host port, or stop what made that rule";
    return new PortConflictError(conflict, `already mapped by ${conflict.by}`, mend);
  }
  const to = addressOf(conflict.owner);
  return new PortConflictError(
    conflict,
    `already mapped to ${to === undefined ? `VM "${conflict.owner}"` : `address ${to}`}`,
    `choose another host port, or run map-port ${
      to === undefined ? conflict.owner : `--to ${to}`
    } --remove ${givenUp(conflict)}`,
  );
}

/**
 * Sentences on ports that somebody else's rules map too: whoever came later and did not ask.
 *
 * @param owner whose they are
 */
export async function checkOwners(
  host: Host,
  firewall: Firewall,
  owner: string,
  ports: readonly PortMapping[],
): Promise<string[]> {
  if (ports.length === 0) return [];
  const look = await kernelLookup(host, firewall, owner);
  return look(ports).flatMap((taken) => {
    const conflict = findPortConflict(ports, [taken]);
    return conflict === undefined ? [] : `${conflictError(conflict).message} too`;
  });
}

/** The mapping in the way, as a person writes it. */
function givenUp({ other, hostPort }: PortConflict): string {
  if (other === undefined) return `${hostPort}:…`;
  return formatPort({ ...other, hostIP: isWildcard(other.hostIP) ? "" : other.hostIP });
}

/** Finds out who has host ports that are wanted, by VMs' names and owner tags. */
export type PortLookup = (wanted: readonly PortMapping[]) => TakenPorts[];

/**
 * Who has host ports, but for one: the records, which have them also when somebody took their rules
 * away, and the kernel's rules, whoever made them.
 */
export async function portLookup(
  host: Host,
  firewall: Firewall,
  except: string,
): Promise<PortLookup> {
  const { stateDir } = host;
  const records = host.session.keep(`ports of ${stateDir}`, () => new RecordedPorts(host));
  const recorded = (await records.read()).filter(({ owner }) => owner !== except);
  const inKernel = await kernelLookup(host, firewall, except);
  return (wanted) => [...recorded, ...inKernel(wanted)];
}

/** What a session said once. */
class Said implements Disposable {
  readonly texts = new Set<string>();
  [Symbol.dispose](): void {}
}

/** Who has host ports by the kernel's rules alone, but for one. */
async function kernelLookup(
  host: Host,
  firewall: Firewall,
  except: string,
): Promise<PortLookup> {
  const mapped = await firewall.mappedPorts();
  const said = host.session.keep("what of ports cannot be told", () => new Said());
  for (const text of mapped.unread.filter((one) => !said.texts.has(one))) {
    said.texts.add(text);
    host.note(`warning: ${text}`);
  }
  const own = await containerId(except);
  return (wanted) =>
    mapped.of(wanted)
      .map(({ owner, by, mappings }): TakenPorts => {
        // A guest's tag is NAME/INTERFACE. A plugin that tapkit executes says the container's id.
        if (by === undefined) return { owner: owner.split("/", 1)[0]!, mappings };
        const vm = owner === own ? except : nameOfId(host, owner);
        return vm === undefined ? { owner, by, mappings } : { owner: vm, mappings };
      })
      .filter(({ owner }) => owner !== except);
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
