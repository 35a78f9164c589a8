/**
 * Host ports: who has them, and claiming them for a VM or an address.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import { DOCKER_OWNER, dockerConflict } from "../firewall/docker-ports.ts";
import type { Firewall } from "../firewall/firewall.ts";
import { chooseHostPorts, refuseListeners } from "../firewall/host-ports.ts";
import { isIp } from "../inet/ip.ts";
import {
  findPortConflict,
  formatHostPort,
  formatPort,
  intersectPorts,
  isWildcard,
  type PortConflict,
  PortConflictError,
  type PortMapping,
  portsOverlap,
  subtractPorts,
  type TakenPorts,
} from "../inet/ports.ts";
import { getRoute } from "../netlink/route.ts";
import { readSysctl } from "../sys/sysctl.ts";
import type { Claim } from "./record/attachment.ts";
import { claimsBy, portsOf } from "./record/derive.ts";
import { addressOfTag, identityOf, vmOfTag } from "./record/identity.ts";
import { nameOfId } from "./record/ids.ts";
import { bindTo } from "./record/served.ts";
import { RecordedPorts } from "./recorded-ports.ts";
import type { Host } from "./session.ts";
import type { Difference } from "./types.ts";

/** Who wants which ports. */
export interface Wish {
  /** The VM's name, or the tag of an address, as conflicts name it. */
  readonly owner: string;
  readonly by: Claim["by"];
  /** The ports, each bound or not; 0 where one is to be chosen. */
  readonly asked: readonly PortMapping[];
  /** What the owner has. */
  readonly had: readonly Claim[];
  /** Its addresses, without prefix lengths; absent while they are not known. */
  readonly addresses?: readonly string[] | undefined;
}

/**
 * Claims the ports of a wish, with a host port chosen wherever 0 asks for one; one that was chosen before
 * answers again. The caller holds the host's lock until they are recorded.
 *
 * @returns the claims by that one, in the order of what is asked
 * @throws {PortConflictError} when another VM, another's rule or a process has one of them
 */
export async function claimPorts(host: Host, firewall: Firewall, wish: Wish): Promise<Claim[]> {
  const { owner, by, asked, had, addresses } = wish;
  if (asked.length === 0) return [];
  const bind = (ports: readonly PortMapping[]) =>
    addresses === undefined ? [...ports] : bindTo(ports, addresses);
  const own = had.filter((claim) => claim.by === by);
  const { answered, numbers } = answerAgain(asked, own);
  const named = bind(answered.filter(({ hostPort }) => hostPort !== 0));
  const fresh = subtractPorts(named, portsOf(had));
  const unchosen = answered.filter(({ hostPort }) => hostPort === 0);
  const claim = (chosen: boolean) => (port: PortMapping): Claim => ({ ...port, by, chosen });
  const wasChosen = (port: PortMapping) =>
    claim(numbers.has(formatPort({ ...port, hostIP: "" })))(port);
  if (fresh.length + unchosen.length === 0) return named.map(wasChosen);

  refuseAbsent(host, [...fresh, ...unchosen]);
  const look = await portLookup(host, firewall, owner);
  // What attach-vm had of its own makes room for what it asks for now.
  const staying = by === "map" ? portsOf(had) : claimsBy(had, "map");
  const isTaken = (candidate: PortMapping) =>
    findPortConflict([candidate], [{ owner, mappings: staying }, ...look([candidate])]) !==
      undefined;
  const chosen = chooseHostPorts([...fresh, ...unchosen], isTaken).slice(fresh.length);
  const others = staying.filter((port) => !fresh.some((wanted) => leadsAlike(wanted, port)));
  refuseTaken(fresh, [{ owner, mappings: others }, ...look(fresh)]);
  refuseListeners(fresh);
  return [...named.map(wasChosen), ...bind(chosen).map(claim(true))];
}

/**
 * Makes sure that nobody has ports which were claimed before and are about to be published again.
 *
 * @throws {PortConflictError} naming who has one
 */
export async function verifyClaims(
  host: Host,
  firewall: Firewall,
  owner: string,
  claims: readonly Claim[],
): Promise<void> {
  if (claims.length === 0) return;
  // Records do not contradict each other: what one has been given nobody else was.
  const look = await kernelLookup(host, firewall, owner);
  const ports = portsOf(claims);
  refuseTaken(ports, look(ports));
  refuseListeners(claimsBy(claims, "attach"));
}

/** Claims without some ports, each bound to an address. */
export function withoutPorts(claims: readonly Claim[], gone: readonly PortMapping[]): Claim[] {
  const kept: Claim[] = [];
  const kinds = Map.groupBy(claims, ({ by, chosen }) => `${by} ${chosen}`);
  for (const group of kinds.values()) {
    const { by, chosen } = group[0]!;
    const ports = claimsBy(group, by);
    kept.push(...subtractPorts(ports, gone).map((port) => ({ ...port, by, chosen })));
  }
  return kept;
}

/** Whether any of some claims is of these ports. */
export function holdsAny(claims: readonly Claim[], ports: readonly PortMapping[]): boolean {
  return intersectPorts(portsOf(claims), ports).length > 0;
}

/** What is asked for, with the ports in it that were chosen for it before; and these, unbound. */
function answerAgain(asked: readonly PortMapping[], own: readonly Claim[]) {
  const free = own.filter(({ chosen }) => chosen);
  const numbers = new Set<string>();
  const answered = asked.map((port): PortMapping => {
    if (port.hostPort !== 0) return port;
    const answer = free.find((other) =>
      other.protocol === port.protocol && other.vmPort === port.vmPort &&
      (port.hostIP === "" ? isWildcard(other.hostIP) : other.hostIP === port.hostIP)
    );
    if (answer === undefined) return port;
    const { hostPort } = answer;
    for (const other of free.filter((candidate) => candidate.hostPort === hostPort)) {
      free.splice(free.indexOf(other), 1);
    }
    numbers.add(formatPort({ ...port, hostIP: "", hostPort }));
    return { ...port, hostPort };
  });
  return { answered, numbers };
}

/**
 * Refuses ports of addresses that the host does not have: nobody would reach them.
 *
 * @throws {TapkitError} naming the address
 */
function refuseAbsent({ session }: Host, ports: readonly PortMapping[]): void {
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

/** Whether two mappings that overlap lead to the same ports by the same address. */
function leadsAlike(a: PortMapping, b: PortMapping): boolean {
  return portsOverlap(a, b) && a.hostPort - a.vmPort === b.hostPort - b.vmPort &&
    (a.hostIP === b.hostIP || (a.hostIP === "" && isWildcard(b.hostIP)));
}

/**
 * Refuses ports that somebody has.
 *
 * @throws {PortConflictError} naming whose it is and how it is given up
 */
function refuseTaken(wanted: readonly PortMapping[], taken: readonly TakenPorts[]): void {
  const conflict = findPortConflict(wanted, taken);
  if (conflict !== undefined) throw conflictError(conflict);
}

function conflictError(conflict: PortConflict): PortConflictError {
  if (conflict.owner.startsWith(DOCKER_OWNER)) return dockerConflict(conflict);
  if (conflict.by !== undefined) {
    const mend = "choose another host port, or stop what made that rule";
    return new PortConflictError(conflict, `already mapped by ${conflict.by}`, mend);
  }
  const to = addressOfTag(conflict.owner);
  return new PortConflictError(
    conflict,
    `already mapped to ${to === undefined ? `VM "${conflict.owner}"` : `address ${to}`}`,
    `choose another host port, or run map-port ${
      to === undefined ? conflict.owner : `--to ${to}`
    } --remove ${givenUp(conflict)}`,
  );
}

/**
 * Ports that somebody else's rules map too: whoever came later and did not ask.
 *
 * @param owner whose they are
 */
export async function findSecondOwners(
  host: Host,
  firewall: Firewall,
  owner: string,
  ports: readonly PortMapping[],
): Promise<Difference[]> {
  if (ports.length === 0) return [];
  const look = await kernelLookup(host, firewall, owner);
  return look(ports).flatMap((taken): Difference[] => {
    const conflict = findPortConflict(ports, [taken]);
    if (conflict === undefined) return [];
    const { message } = conflictError(conflict);
    const object = `host port ${formatHostPort(conflict)}`;
    const problem = `${message.slice(object.length + 1)} too`;
    return [{ layer: "rules", object, problem, repair: "none" }];
  });
}

/** The mapping in the way, as a person writes it. */
function givenUp({ other, hostPort }: PortConflict): string {
  if (other === undefined) return `${hostPort}:…`;
  return formatPort({ ...other, hostIP: isWildcard(other.hostIP) ? "" : other.hostIP });
}

/** Finds out who has host ports that are wanted, by VMs' names and owner tags. */
type PortLookup = (wanted: readonly PortMapping[]) => TakenPorts[];

/**
 * Who has host ports, but for one: the records, which have them also when somebody took their rules
 * away, and the kernel's rules, whoever made them.
 */
async function portLookup(host: Host, firewall: Firewall, except: string): Promise<PortLookup> {
  const { stateDir } = host;
  const records = host.session.keep(`ports of ${stateDir}`, () => new RecordedPorts(host));
  const recorded = records.read().filter(({ owner }) => owner !== except);
  const inKernel = await kernelLookup(host, firewall, except);
  return (wanted) => [...recorded, ...inKernel(wanted)];
}

/** What a session said once. */
class Said implements Disposable {
  readonly texts = new Set<string>();
  [Symbol.dispose](): void {}
}

/** Who has host ports by the kernel's rules alone, but for one. */
async function kernelLookup(host: Host, firewall: Firewall, except: string): Promise<PortLookup> {
  const mapped = await firewall.mappedPorts();
  const said = host.session.keep("what of ports cannot be told", () => new Said());
  for (const text of mapped.unread.filter((one) => !said.texts.has(one))) {
    said.texts.add(text);
    host.note(`warning: ${text}`);
  }
  const { containerId: own } = await identityOf(except);
  return (wanted) =>
    mapped.of(wanted)
      .map(({ owner, by, mappings }): TakenPorts => {
        if (by === undefined) return { owner: vmOfTag(owner), mappings };
        // A plugin that tapkit executes says the container's id.
        const vm = owner === own ? except : nameOfId(host, owner);
        return vm === undefined ? { owner, by, mappings } : { owner: vm, mappings };
      })
      .filter(({ owner }) => owner !== except);
}
