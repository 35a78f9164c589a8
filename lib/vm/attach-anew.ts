/**
 * Attaching a VM of which nothing is there.
 *
 * The record is written before the first effect. Every step pushes its undo before it acts, and
 * a failure unwinds them all.
 *
 * @module
 */

import { checkpoint } from "../checkpoint.ts";
import type { NetworkAttachment } from "../cni/plan.ts";
import { type Added, addNetwork, hasExecuted, mayGiveAgain } from "../cni/runtime.ts";
import type { Result } from "../cni/types.ts";
import type { GuestRules } from "../firewall/model.ts";
import type { FirewallKind } from "../firewall/store.ts";
import { parseCidr } from "../inet/ip.ts";
import type { PortMapping } from "../inet/ports.ts";
import { NetlinkConnection } from "../netlink/connection.ts";
import { netnsIdentity } from "../netlink/identity.ts";
import { requireLink, setLink } from "../netlink/link.ts";
import {
  createNamedNetns,
  deleteNamedNetns,
  type Netns,
  netnsPath,
  openNetns,
  withNetns,
} from "../sys/netns.ts";
import { UndoStack } from "../undo.ts";
import { putGuards } from "./change.ts";
import { keptPolicies } from "./check.ts";
import { withGiven } from "./given-netns.ts";
import {
  assertAsAsked,
  describeInterface,
  explainSecond,
  keepFailures,
  nameHolder,
  planNetworks,
} from "./networks.ts";
import {
  allPorts,
  askedPorts,
  bindToFamilies,
  choosingAgain,
  noteClosed,
  openPorts,
  ownersOf,
  portOwners,
  portsOfFirewall,
  publishedByPlugin,
  reservePorts,
  withShownPorts,
} from "./ports.ts";
import { recordedPolicy, withPolicy } from "./policy.ts";
import { applyRules, recordedLimits, withLimits } from "./limits.ts";
import { validatePolicy } from "./request.ts";
import { hostResolvers, resolversOf } from "./resolvers.ts";
import { asForwarded, noteFilteredBridge } from "./host-end.ts";
import type { Host } from "./session.ts";
import { bringSettings, guardSettings, returnSettings } from "./settings.ts";
import { netnsName } from "./host-paths.ts";
import {
  claimId,
  deleteRecord,
  firewallOf,
  releaseId,
  type StoredRecord,
  writeRecord,
} from "./state.ts";
import type { AttachRequest, VmDns, VmInterface } from "./types.ts";
import { addWire, guardedAs, wireRequest } from "./wires.ts";

/**
 * Attaches a VM of which nothing is there.
 *
 * @param old what is recorded of it, where it is to be the same again
 */
export async function attachAnew(
  host: Host,
  id: string,
  request: AttachRequest,
  old?: StoredRecord,
  options: NewOptions = {},
): Promise<StoredRecord> {
  return await choosingAgain(
    askedPorts(request),
    () => attachOnce(host, id, request, old, options),
  );
}

/** The `-- VMM` call that an attachment is for, and goes with; none where it is to stay. */
export type Running = Pick<StoredRecord["made"], "run">;

interface NewOptions extends Running {
  /** Whether undoing leaves the addresses to the networks that may give them again. */
  readonly keepLeases?: boolean;
}

async function attachOnce(
  host: Host,
  id: string,
  request: AttachRequest,
  old: StoredRecord | undefined,
  { keepLeases = false, run }: NewOptions,
): Promise<StoredRecord> {
  validatePolicy(request);
  const { name } = request;
  const undo = new UndoStack();
  using stack = new DisposableStack();
  try {
    const { nl: hostNl } = host.session;
    const kind = request.firewall ?? (old && firewallOf(old.made));
    const firewall = await host.session.firewall(kind);
    const ports = await reservePorts(host, firewall, request, old);
    const before = old?.interfaces ?? [];
    const networks = keepFailures(
      await planNetworks(host, hostNl, id, request, ports, before),
      old?.made.networks,
    );
    const given = withGiven(plannedRecord(id, request, firewall.kind, networks, ports, old));
    const owner = old === undefined ? run : old.made.run;
    const planned = owner === undefined ? given : { ...given, made: { ...given.made, run: owner } };
    undo.push("settings of the kernel", async () => {
      await returnSettings(host, { firewall: firewall.kind });
      firewall.removeIfUnused();
    });
    undo.push(
      `record of "${name}"`,
      () => old === undefined ? forget(host, id, name) : writeRecord(host, old),
    );
    claimId(host, id, name);
    writeRecord(host, planned);

    const netns = stack.use(enterableNetns(request, undo));
    const vmNl = stack.use(withNetns(netns, () => NetlinkConnection.open()));
    if (request.netns === undefined) bringLoopbackUp(vmNl);
    const added: Added[] = [];
    for (const [index, network] of networks.entries()) {
      const had = before[index];
      const mtu = had?.mtu ?? request.mtu;
      const mac = had?.mac ?? (index === 0 ? request.mac : undefined);
      const environment = {
        netns,
        netnsPath: planned.netns,
        ownNetns: request.netns === undefined,
        hostNl,
        vmNl,
        undo,
        owner: `${name}/${network.ifName}`,
        fresh: old === undefined,
        keepsLease: keepLeases && mayGiveAgain(network),
        plugins: host,
        note: host.note,
        ...mtu === undefined ? {} : { mtu },
      };
      const add = () =>
        addNetwork(network, environment).catch((error) => {
          throw explainSecond(error, network.network, networks.slice(0, index));
        });
      const publishes = index === 0 && ports.length > 0 && publishedByPlugin(networks);
      const one =
        await (hasExecuted(network) ? guardSettings(host, { firewall, publishes }, add) : add());
      added.push(
        hasExecuted(network)
          ? await (await import("./executed-link.ts")).settleLink(one, {
            ...environment,
            ...had === undefined ? {} : { had },
            ...mac === undefined ? {} : { mac },
          })
          : one,
      );
    }
    const wiring = wireRequest(request, { netns, nl: vmNl, undo, note: host.note });
    const interfaces: VmInterface[] = [];
    for (const [index, { attachment, result }] of added.entries()) {
      const link = describeInterface(vmNl, attachment, result, interfaces);
      assertAsAsked(link, index === 0 ? request : { name }, before[index], host.note);
      interfaces.push(addWire(wiring, guardedAs(link, request)));
    }

    const attach = bindToFamilies(ports, addressesOf(interfaces[0]));
    const bound = old === undefined ? attach : allPorts({ ...portOwners(old), attach });
    const mapped = portsOfFirewall(networks, bound, old);
    // map-port's, where the network says nothing of how the guest is reached.
    const locate = mapped.length > 0 && !added[0]?.guest?.link
      ? (await import("./addresses.ts")).locateVm
      : undefined;
    const wanted = added.map(({ guest }, index): GuestRules => {
      const link = interfaces[index]!;
      const ends = { hostNl, vmNl, note: host.note };
      const plain = asForwarded(guest ?? plainRules(`${name}/${link.name}`, link), link, ends);
      noteFilteredBridge(firewall, plain, link, ends);
      const own = index === 0 ? mapped : [];
      const rules = own.length > 0 ? locate?.(hostNl, plain, link) ?? plain : plain;
      const mine = { ...rules, ports: own, ...openPorts(request) };
      return withLimits(withPolicy(mine, link, request, ends), link, request, hostNl);
    });
    if (networks.some(hasExecuted)) {
      const { refuseHeld } = await import("./same-address.ts");
      refuseHeld(host, { vm: name, interfaces, guests: wanted });
    }
    const guests = wanted.map((guest) => {
      undo.push(`the rules of ${guest.owner}`, () => firewall.remove(guest));
      return applyRules(firewall, { wanted: guest, request, note: host.note });
    });
    const policed = { interfaces, ports: bound, made: { guests } };
    const kept = await keptPolicies(host, policed, { fixing: true });
    if (kept.length > 0) putGuards({ ...planned, interfaces }, kept);
    const shown = publishedByPlugin(networks) ? bound : undefined;
    await bringSettings(host, guests, { firewall, request, fresh: old === undefined, shown });
    noteClosed(host, firewall, withShownPorts(guests, bound), `attach-vm ${name}`);

    const dns = guestDns(host, added.map(({ result }) => result), old);
    const record: StoredRecord = {
      ...planned,
      interfaces,
      dns,
      ports: bound,
      made: {
        ...planned.made,
        ...ownersOf(old, attach),
        phase: "attached",
        netnsIs: netnsIdentity(netns, vmNl),
        networks: added.map(({ attachment }) => attachment),
        guests,
      },
    };
    await checkpoint(host.signal);
    writeRecord(host, record);
    return record;
  } catch (error) {
    throw await undo.fail(nameHolder(host, error));
  }
}

/** The record of what is about to be made: enough to take any part of it away. */
function plannedRecord(
  id: string,
  request: AttachRequest,
  firewall: FirewallKind,
  networks: readonly NetworkAttachment[],
  ports: readonly PortMapping[],
  old?: StoredRecord,
): StoredRecord {
  // After a crash they are asked for again.
  const interfaces = old?.interfaces ?? [];
  const attach = old === undefined ? [] : bindToFamilies(ports, addressesOf(interfaces[0]));
  return {
    version: 1,
    vm: request.name,
    id,
    networkPlugin: "cni",
    netns: request.netns ?? netnsPath(netnsName(request.name)),
    interfaces,
    dns: old?.dns ?? { nameservers: [], search: [] },
    ports: old === undefined ? [] : allPorts({ ...portOwners(old), attach }),
    ...recordedPolicy(request),
    ...recordedLimits(request),
    made: {
      phase: "attaching",
      netnsGiven: request.netns !== undefined,
      ...ownersOf(old, attach),
      firewall,
      request,
      networks,
      guests: [],
    },
  };
}

function forget(host: Host, id: string, name: string): void {
  releaseId(host, id, name);
  deleteRecord(host, name);
}

/** The namespace that was named, or a new one of the VM's own. */
function enterableNetns({ name, netns }: AttachRequest, undo: UndoStack): Netns {
  if (netns !== undefined) return openNetns(netns);
  let made = false;
  undo.push(`network namespace "${netnsName(name)}"`, () => {
    if (made) deleteNamedNetns(netnsName(name));
  });
  const created = createNamedNetns(netnsName(name));
  made = true;
  return created;
}

function bringLoopbackUp(vmNl: NetlinkConnection): void {
  setLink(vmNl, requireLink(vmNl, "lo").index, { up: true });
}

function addressesOf(link: VmInterface | undefined): string[] {
  return (link?.addresses ?? []).map(({ address }) => parseCidr(address).address);
}

/** The rules of a guest whose network asks nothing of the firewall. */
function plainRules(owner: string, link: VmInterface): GuestRules {
  return {
    owner,
    link: "",
    addresses: addressesOf(link),
    masquerade: false,
    forward: false,
    ports: [],
  };
}

/** What the networks say of name resolution, else what the host has, or had. */
function guestDns(host: Host, results: readonly Result[], old?: StoredRecord): VmDns {
  const now = hostResolvers();
  const known = now.nameservers.length === 0 && old !== undefined ? old.dns : now;
  const dns = resolversOf(results.map((result) => result.dns), known);
  if (dns.nameservers.length === 0) {
    host.note(
      "warning: no name server for the guest: neither its network nor the host names one that it can " +
        "reach; once /etc/resolv.conf does, DHCP tells it",
    );
  }
  return dns;
}
