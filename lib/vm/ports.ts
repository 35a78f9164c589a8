/**
 * Host ports: finding their owners, and claiming them for a VM or an address.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import { DOCKER_OWNER, dockerConflict } from "../firewall/docker-ports.ts";
import type { Firewall } from "../firewall/firewall.ts";
import { chooseHostPorts, refuseListeners } from "../firewall/host-ports.ts";
import { addressOf, isIp } from "../inet/ip.ts";
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
import { readVms, sidesOf } from "./record/store.ts";
import { recordedPorts } from "./recorded-ports.ts";
import type { Host } from "./session.ts";
import type { Difference } from "./types.ts";

/** Ports that a VM or an address wants. */
export interface Wish {
  /** The name of the VM, or the tag of the address, as in conflicts. */
  readonly owner: string;
  readonly by: Claim["by"];
  /** The ports, bound or not. Host port 0: choose one. */
  readonly asked: readonly PortMapping[];
  /** The claims that the owner has. */
  readonly had: readonly Claim[];
  /** Its addresses, without prefix lengths. Absent while they are not known. */
  readonly addresses?: readonly string[] | undefined;
}

/**
 * Claims ports. Chooses a host port for each 0, the one chosen before if there is one. The caller
 * holds the host's lock until the claims are recorded.
 *
 * @returns the claims of the asking command, in the order of `asked`
 * @throws {PortConflictError} when another VM, a foreign rule or a process has one of them
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
  // The new claims of attach-vm replace its old ones.
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
 * Checks that nobody else has ports that were claimed before and will be published again.
 *
 * @throws {PortConflictError} naming the owner of one
 */
export async function verifyClaims(
  host: Host,
  firewall: Firewall,
  owner: string,
  claims: readonly Claim[],
): Promise<void> {
  if (claims.length === 0) return;
  // Records never conflict with each other, so only the kernel is asked.
  const look = await kernelLookup(host, firewall, owner);
  const ports = portsOf(claims);
  refuseTaken(ports, look(ports));
  refuseListeners(
    claimsBy(claims, "attach"),
    (container) => vmInSandbox(host, container) === owner,
  );
}

/** Claims without some ports. All are bound to addresses. */
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

/** Whether a claim has one of these ports. */
export function holdsAny(claims: readonly Claim[], ports: readonly PortMapping[]): boolean {
  return intersectPorts(portsOf(claims), ports).length > 0;
}

/** The asked ports with the numbers that were chosen for them before, and these ports, unbound. */
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
 * Refuses ports of addresses that the host does not have: nobody could reach them.
 *
 * @throws {TapkitError} naming the address
 */
function refuseAbsent({ session }: Host, ports: readonly PortMapping[]): void {
  const addresses = new Set(ports.map(({ hostIP }) => hostIP).filter((ip) => !isWildcard(ip)));
  for (const address of addresses) {
    // A route can make a whole prefix local, so the routes are asked, not the addresses.
    if (getRoute(session.nl, address)?.type === "local") continue;
    const setting = `net/ipv${isIp(address)}/ip_nonlocal_bind`;
    if (readSysctl(setting) === "1") continue;
    throw new TapkitError(`the host does not have the address ${address} to map ports of`, {
      mend: `add it to a link, or, if it is added later, set ${setting.replaceAll("/", ".")} = 1`,
    });
  }
}

/** How often to choose ports before giving up. */
const ATTEMPTS = 3;

/**
 * Repeats `act` when a chosen host port was taken by somebody else meanwhile. Calls with another
 * state directory do not share the lock.
 *
 * @param asked host port 0 where a port is chosen
 * @param act must undo what it did when it fails
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

/** Whether two mappings overlap and lead from the same address to the same ports. */
function leadsAlike(a: PortMapping, b: PortMapping): boolean {
  return a.hostPort - a.vmPort === b.hostPort - b.vmPort && portsOverlap(a, b) &&
    (a.hostIP === b.hostIP || (a.hostIP === "" && isWildcard(b.hostIP)));
}

/**
 * Refuses ports that have an owner.
 *
 * @throws {PortConflictError} naming the owner and how to release the port
 */
function refuseTaken(wanted: readonly PortMapping[], taken: readonly TakenPorts[]): void {
  const conflict = findPortConflict(wanted, taken);
  if (conflict !== undefined) throw conflictError(conflict);
}

function conflictError(conflict: PortConflict): PortConflictError {
  if (conflict.owner.startsWith(DOCKER_OWNER)) return dockerConflict(conflict);
  if (conflict.by !== undefined) {
    const mend = "choose another host port, or stop the program that made that rule";
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
 * Finds ports that the rules of somebody else map too, who took them later.
 *
 * @param owner the owner of the ports
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

/** The conflicting mapping, as a user writes it. */
function givenUp({ other, hostPort }: PortConflict): string {
  if (other === undefined) return `${hostPort}:…`;
  return formatPort({ ...other, hostIP: isWildcard(other.hostIP) ? "" : other.hostIP });
}

/** Finds the owners of ports: names of VMs, and owner tags. */
type PortLookup = (wanted: readonly PortMapping[]) => TakenPorts[];

/**
 * The owners of host ports, except one, by the records and by the kernel's rules. A record keeps its
 * ports even if somebody deleted the rules.
 */
async function portLookup(host: Host, firewall: Firewall, except: string): Promise<PortLookup> {
  const recorded = recordedPorts(host, except);
  const inKernel = await kernelLookup(host, firewall, except);
  return (wanted) => [...recorded, ...inKernel(wanted)];
}

/** The VM whose sandbox is the container that Docker publishes a port for. */
function vmInSandbox(host: Host, owner: string): string | undefined {
  if (!owner.startsWith(DOCKER_OWNER)) return undefined;
  const address = owner.slice(DOCKER_OWNER.length);
  const both = readVms(host).flatMap(sidesOf).find(({ spec, facts: { networks: [first] } }) =>
    spec.docker !== undefined &&
    (first?.link?.addresses ?? []).some((one) => addressOf(one.address) === address)
  );
  return both?.spec.id.name;
}

/** The warnings that a session gave. */
class Said implements Disposable {
  readonly texts = new Set<string>();
  [Symbol.dispose](): void {}
}

/** The owners of host ports, except one, by the kernel's rules. */
async function kernelLookup(host: Host, firewall: Firewall, except: string): Promise<PortLookup> {
  const mapped = await firewall.mappedPorts();
  const said = host.session.keep("warnings about ports", () => new Said());
  for (const text of mapped.unread.filter((one) => !said.texts.has(one))) {
    said.texts.add(text);
    host.note(`warning: ${text}`);
  }
  const { containerId: own } = identityOf(except);
  return (wanted) =>
    mapped.of(wanted)
      .map(({ owner, by, mappings }): TakenPorts => {
        if (by === undefined) {
          return { owner: vmInSandbox(host, owner) ?? vmOfTag(owner), mappings };
        }
        // An executed plugin marks its rules with the container id.
        const vm = owner === own ? except : nameOfId(host, owner);
        return vm === undefined ? { owner, by, mappings } : { owner: vm, mappings };
      })
      .filter(({ owner }) => owner !== except);
}
