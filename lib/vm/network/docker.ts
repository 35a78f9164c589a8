/**
 * The network driver of Docker: a sandbox container on one of its bridge networks, behind whose eth0 the
 * VM is. Docker gives the address and publishes the ports.
 *
 * @module
 */

import type { Result } from "../../cni/types.ts";
import { type Container, type DockerRun, inspectContainer } from "../../docker/docker.ts";
import { findSandbox, removeSandbox, sandboxName, startSandbox } from "../../docker/sandbox.ts";
import { SANDBOX_IMAGE, SANDBOX_PROGRAM } from "../../docker/sandbox-image.ts";
import { TapkitError } from "../../errors.ts";
import { isThere } from "../../files.ts";
import { addressOf } from "../../inet/ip.ts";
import { formatMac, parseMac } from "../../inet/mac.ts";
import { expandPorts, type PortMapping } from "../../inet/ports.ts";
import { getLink, requireLink, setLink } from "../../netlink/link.ts";
import { listRoutes, RT_TABLE } from "../../netlink/route.ts";
import { isSameNetns, type NetnsIdentity, netnsIdentity } from "../../netlink/identity.ts";
import { NetlinkConnection } from "../../netlink/connection.ts";
import { type Netns, openNetns, withNetns } from "../../sys/netns.ts";
import type { Context } from "../layers/layer.ts";
import type { Both, NetworkFact, Spec } from "../record/attachment.ts";
import { claimsBy } from "../record/derive.ts";
import { bindClaims, isPoliced } from "../record/served.ts";
import type { Difference } from "../types.ts";
import { movesIdentity } from "../wire/wires.ts";
import {
  containerDns,
  DEFAULT_BRIDGE,
  noteDeprecated,
  planDocker,
  publishArguments,
} from "./docker-plan.ts";
import type { NetworkDriver } from "./driver.ts";
import { checkSeen, lookAtLink, mendSeen } from "./executed-link.ts";
import { reachOf } from "./host-end.ts";
import { assertAsAsked, describeLink } from "./plan.ts";

/** Docker's bridge networks. */
export const docker: NetworkDriver = {
  async plan(context, to) {
    noteDeprecated(context.host);
    const network = await context.outside(() => planDocker(context.host, to));
    return [plannedFact(to.spec, network)];
  },

  async makeNetns(context, to, before) {
    const { undo, outside } = context;
    const { spec } = to;
    const run = runOf(context);
    const [fact] = to.facts.networks;
    const { network } = fact!.attachment;
    const had = before?.facts.networks[0]?.link;
    const wanted = had?.addresses.map(({ address }) => address) ?? [spec.ip ?? []].flat();
    const given = spec.docker?.container;
    const container = given === undefined
      ? await outside(async () => {
        const publish = await publishArguments(to, network, run);
        return await startSandbox(
          {
            vm: spec.id.name,
            image: spec.docker?.image ?? SANDBOX_IMAGE,
            program: spec.docker?.image === undefined ? SANDBOX_PROGRAM : undefined,
            network,
            addresses: network === DEFAULT_BRIDGE ? [] : wanted.map(addressOf),
            publish,
          },
          run,
          () =>
            undo.push(`container "${sandboxName(spec.id.name)}"`, async () => {
              // The signal that ended the rest does not end its undo.
              await outside(() => removeSandbox(spec.id.name, {}, { cutOff: imageOf(to) }));
            }),
        );
      })
      : await outside(() => requireContainer(given, run));
    const networks = [{ ...fact!, docker: { container: container.Id, ports: [] } }];
    return { netns: openSandbox(container), at: { ...to, facts: { ...to.facts, networks } } };
  },

  async add(context, to, { before }) {
    const { host: { session: { nl: hostNl }, note }, vm, outside } = context;
    const { spec, facts: { netns, networks: [fact] } } = to;
    const { nl: vmNl } = vm.require(netns);
    const run = runOf(context);
    const container = await outside(() => requireContainer(fact!.docker!.container!, run));
    const { network, ifName } = fact!.attachment;
    const mac = before?.link?.mac ?? spec.mac;
    // Engines and clients of different versions do not agree on how they are asked for a MAC.
    if (mac !== undefined && spec.docker?.container === undefined) {
      setLink(vmNl, requireLink(vmNl, ifName).index, { mac: formatMac(parseMac(mac)) });
    }
    const result = resultOf(container, network, netns.path, vmNl);
    const made = { ...fact!.attachment, result };
    const attachment = { ...made, seen: lookAtLink(made, { hostNl, vmNl }) };
    const link = describeLink(vmNl, attachment, result, []);
    assertAsAsked(
      link,
      { network, ifName, ip: spec.ip, mac: spec.mac, before: before?.link },
      note,
    );
    const reach = reachOf(undefined, {
      ...{ hostNl, vmNl, ifName, link },
      policed: isPoliced(spec.policy),
    });
    const ports = spec.docker?.container === undefined
      ? claimsBy(bindClaims(spec.claims, { attachment, link }), "attach")
      : [];
    const docker = { container: container.Id, ports };
    return { fact: { attachment, docker, link, reach }, dns: result.dns };
  },

  async check(context, at) {
    const run = runOf(context);
    const { spec, facts: { networks: [fact] } } = at;
    const name = containerOf(at);
    const container = await context.outside(() =>
      spec.docker?.container === undefined
        ? findSandbox(spec.id.name, run)
        : inspectContainer(name, run)
    );
    const lost = (problem: string): Difference[] => [
      { layer: "netns", object: `container "${name}"`, problem, repair: "recreate" },
    ];
    if (container === undefined) return lost("is missing");
    if (!container.State.Running) return lost("is not running");
    const { netns, nl } = context.vm.require(at.facts.netns);
    if (!isOfContainer(netnsIdentity(netns, nl), container)) {
      return lost("was started again, with another network namespace");
    }
    if (fact!.docker!.container !== container.Id) return lost("is another one than the VM's");
    const { ifName } = fact!.attachment;
    if (getLink(nl, ifName) === undefined) return lost(`has lost its interface "${ifName}"`);
    return [...checkLink(context, at), ...checkPublished(fact, container)];
  },

  change(context, from, to) {
    const { host: { session: { nl: hostNl } }, vm, found } = context;
    if (!found.some(({ layer }) => layer === "network")) return Promise.resolve(to);
    const { nl: vmNl } = vm.require(from.facts.netns);
    const [fact] = from.facts.networks;
    const ends = { hostNl, vmNl, identityMoved: isMoved(fact) };
    const mended = mendSeen(fact!.attachment, fact!.link!, ends);
    return Promise.resolve(mended ? to : "recreate");
  },

  settle: (_context, at) => Promise.resolve(at),

  async del(context, at) {
    const { spec } = at;
    if (spec.docker?.container !== undefined) return [];
    try {
      const cutOff = context.cutOff === undefined ? undefined : imageOf(at);
      await context.outside(() => removeSandbox(spec.id.name, {}, { cutOff }));
      return [];
    } catch (error) {
      return [error];
    }
  },
};

/** The interface of a VM in Docker's network, before it is made. */
export function plannedFact({ id }: Pick<Spec, "id">, network = DEFAULT_BRIDGE): NetworkFact {
  const { containerId } = id;
  const attachment = { network, containerId, ifName: "eth0", cniArgs: {}, plugins: [] };
  return { attachment, docker: { ports: [] } };
}

function runOf({ host }: Context<Both>): DockerRun {
  return { signal: host.signal };
}

function imageOf({ spec }: Both): string {
  return spec.docker?.image ?? SANDBOX_IMAGE;
}

/** The container's name, as people know it. */
function containerOf({ spec }: Both): string {
  return spec.docker?.container ?? sandboxName(spec.id.name);
}

async function requireContainer(name: string, run: DockerRun): Promise<Container> {
  const container = await inspectContainer(name, run);
  if (container?.State.Running) return container;
  throw new TapkitError(
    `container "${name}" ${container === undefined ? "does not exist" : "is not running"}`,
    { mend: container === undefined ? "see docker ps" : `run docker start ${name}` },
  );
}

/**
 * Opens the namespace of a running container.
 *
 * @throws {TapkitError} where the engine keeps it out of this process's sight
 */
function openSandbox({ Name, NetworkSettings: { SandboxKey } }: Container): Netns {
  if (SandboxKey !== "" && isThere(SandboxKey)) return openNetns(SandboxKey);
  throw new TapkitError(
    `the network namespace of container "${Name.slice(1)}" cannot be seen` +
      (SandboxKey === "" ? "" : ` at ${SandboxKey}`),
    { mend: "use an engine that runs as root on this machine itself" },
  );
}

/** What Docker says of a container's interface, as CNI's plugins say it. */
function resultOf(
  { Name, NetworkSettings, ...container }: Container,
  network: string,
  sandbox: string,
  vmNl: NetlinkConnection,
): Result {
  const endpoint = NetworkSettings.Networks[network];
  if (endpoint === undefined || endpoint.IPAddress === "" && endpoint.GlobalIPv6Address === "") {
    throw new TapkitError(`container "${Name.slice(1)}" has no address on network "${network}"`, {
      mend: `see docker network inspect ${network}`,
    });
  }
  const routes = listRoutes(vmNl, { table: RT_TABLE.MAIN });
  const families = [
    [endpoint.IPAddress, endpoint.IPPrefixLen, endpoint.Gateway, "0.0.0.0/0"],
    [endpoint.GlobalIPv6Address, endpoint.GlobalIPv6PrefixLen, endpoint.IPv6Gateway, "::/0"],
  ] as const;
  // An internal network has a gateway, and no route by it.
  const isRouted = (dst: string) => routes.some((route) => route.dst === dst);
  const given = families.filter(([address]) => address !== "")
    .map(([address, length, gateway, dst]) => ({
      address: `${address}/${length}`,
      via: gateway !== "" && isRouted(dst) ? { gateway, dst } : undefined,
    }));
  return {
    cniVersion: "1.0.0",
    interfaces: [{ name: "eth0", sandbox }],
    ips: given.map(({ address, via }) => ({
      address,
      interface: 0,
      ...via === undefined ? {} : { gateway: via.gateway },
    })),
    routes: given.flatMap(({ via }) => via === undefined ? [] : { dst: via.dst, gw: via.gateway }),
    dns: containerDns(container),
  };
}

/** Whether a VM's namespace is that of a running container. */
function isOfContainer(is: NetnsIdentity, container: Container): boolean {
  using netns = openSandbox(container);
  using nl = withNetns(netns, () => NetlinkConnection.open());
  return isSameNetns(is, netnsIdentity(netns, nl));
}

function isMoved(fact: NetworkFact | undefined): boolean {
  return fact?.wire !== undefined && movesIdentity(fact.wire.mode);
}

/** What is seen of the interface without Docker. */
function checkLink({ host, vm }: Context<Both>, { facts }: Both): Difference[] {
  const [fact] = facts.networks;
  const vmNl = vm.find(facts.netns)?.nl;
  if (vmNl === undefined || fact?.link === undefined) return [];
  const ends = { hostNl: host.session.nl, vmNl, identityMoved: isMoved(fact) };
  return checkSeen(fact.attachment, fact.link, ends)
    .map((finding): Difference => ({ layer: "network", ...finding, repair: "live" }));
}

/** Which ports Docker does not publish any more. */
function checkPublished(
  fact: NetworkFact | undefined,
  { NetworkSettings: { Ports } }: Container,
): Difference[] {
  const isPublished = ({ protocol, hostIP, hostPort, vmPort }: PortMapping) =>
    Ports?.[`${vmPort}/${protocol}`]?.some(({ HostIp, HostPort }) =>
      HostIp === hostIP && HostPort === String(hostPort)
    ) ?? false;
  const ports = (fact?.docker?.ports ?? []).flatMap(expandPorts);
  return ports.filter((port) => !isPublished(port)).map((port) => ({
    layer: "netns",
    object: `host port ${port.hostPort}/${port.protocol}`,
    problem: "is not published by Docker any more",
    repair: "recreate",
  }));
}
