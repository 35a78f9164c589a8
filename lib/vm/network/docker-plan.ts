/**
 * What is asked of Docker for a VM: checked before anything is made, and written as Docker's arguments.
 *
 * @module
 */

import type { Dns } from "../../cni/types.ts";
import {
  type Container,
  docker,
  type DockerRun,
  inspect,
  inspectContainer,
  requireEngine,
} from "../../docker/docker.ts";
import { findSandbox } from "../../docker/sandbox.ts";
import { ensureSandboxImage } from "../../docker/sandbox-image.ts";
import { describe, InputError, TapkitError } from "../../errors.ts";
import { readIfThere } from "../../files.ts";
import { bindPorts, formatPort } from "../../inet/ports.ts";
import { isSame } from "../../same.ts";
import type { Both, DockerSpec, Spec } from "../record/attachment.ts";
import { claimsBy } from "../record/derive.ts";
import { readVms, sidesOf } from "../record/store.ts";
import { hostResolvers, isReachable } from "../resolvers.ts";
import type { Host } from "../session.ts";

/** Docker's network of containers that name none. It takes no requests for addresses. */
export const DEFAULT_BRIDGE = "bridge";

/** What `docker network inspect` says, as far as it is read here. */
interface Network {
  readonly Name: string;
  readonly Driver: string;
  readonly EnableIPv6: boolean;
}

/** The session in which the notice was printed. */
class Noted implements Disposable {
  [Symbol.dispose](): void {}
}

/** Says once a session that docker-bridge is deprecated, and what replaces it. */
export function noteDeprecated({ session, note }: Host): void {
  session.keep("docker-bridge is deprecated", () => {
    note(
      "warning: docker-bridge is deprecated: it needs Docker's engine, and its networks end at this " +
        "machine: use --network-plugin cni, the default",
    );
    return new Noted();
  });
}

/**
 * Checks what is asked of Docker; the sandbox's image is there afterwards, unless the host is only looked
 * at.
 *
 * @returns the name of the network
 * @throws {InputError} for what Docker's networks cannot do
 * @throws {TapkitError} when there is no engine, image, container or network
 */
export async function planDocker(host: Host, { spec }: Both): Promise<string> {
  refuseUnsuited(spec);
  const run = { signal: host.signal };
  const engine = await requireEngine(run);
  const { image, container } = spec.docker!;
  if (container !== undefined) return await networkOfGiven(host, spec, container, run);
  const [name = DEFAULT_BRIDGE] = spec.networks;
  const network = await requireBridge(name, run);
  if (spec.ip !== undefined && network.Name === DEFAULT_BRIDGE) {
    throw new InputError(`Docker chooses the addresses of its network "${DEFAULT_BRIDGE}" itself`, {
      mend: "leave --ip out, or name a network made with docker network create --subnet",
    });
  }
  await findSandbox(spec.id.name, run);
  if (image !== undefined) await requireImage(host, image, run);
  else if (!host.onlyLooks) await ensureSandboxImage(engine, run);
  return network.Name;
}

/** Flags that Docker's networks have no use for. */
const UNSUITED: readonly (readonly [flag: string, isAsked: (spec: Spec) => boolean])[] = [
  ["--netns", ({ netns }) => netns !== undefined],
  ["--mtu", ({ mtu }) => mtu !== undefined],
  ["--bandwidth", ({ bandwidth }) => bandwidth !== undefined],
  ["--plugins", ({ plugins }) => plugins !== "auto"],
  ["--capability", ({ capabilities }) => Object.keys(capabilities).length > 0],
  ["--cni-arg", ({ cniArgs }) => Object.keys(cniArgs).length > 0],
];

function refuseUnsuited(spec: Spec): void {
  const [flag] = UNSUITED.find(([, isAsked]) => isAsked(spec)) ?? [];
  if (flag !== undefined) {
    throw new InputError(`${flag} does not go with the network plugin docker-bridge`, {
      mend: flag === "--mtu"
        ? "leave it out, or name a network made with docker network create " +
          "--opt com.docker.network.driver.mtu=N"
        : `leave it out, or attach the VM to a CNI network`,
    });
  }
  if (spec.networks.length > 1) {
    throw new InputError("a VM is on one network of Docker's", {
      mend: "name one --network, or use CNI networks",
    });
  }
  const { image, container }: DockerSpec = spec.docker!;
  if (container === undefined) return;
  if (image !== undefined) {
    throw new InputError("--image and --container do not go together", { mend: "leave one out" });
  }
  const given = spec.ip !== undefined ? "--ip" : spec.mac !== undefined ? "--mac" : undefined;
  if (given === undefined) return;
  throw new InputError(`${given} does not go with --container, which has its address already`, {
    mend: `leave ${given} out`,
  });
}

async function requireBridge(name: string, run: DockerRun): Promise<Network> {
  const network = await inspect<Network>("network", name, run);
  if (network?.Driver === "bridge") return network;
  throw new TapkitError(
    network === undefined
      ? `Docker has no network "${name}"`
      : `Docker's network "${name}" is not a bridge, but ${network.Driver}`,
    { mend: "see docker network ls, and name one of the driver bridge" },
  );
}

async function requireImage(
  { note, onlyLooks }: Host,
  image: string,
  run: DockerRun,
): Promise<void> {
  if (await inspect("image", image, run) !== undefined) return;
  if (onlyLooks) return note(`would pull image ${image}`);
  note(`pulling image ${image}`);
  try {
    await docker(["pull", image], { ...run, onLine: (line) => note(`${image}: ${line}`) });
  } catch (cause) {
    throw new TapkitError(`image "${image}" is not here, and ${describe(cause)}`, {
      mend: "pull or load it, or leave --image out: tapkit makes an image that needs no registry",
      cause,
    });
  }
}

/** The network of a container that was given, which no other VM may have. */
async function networkOfGiven(
  host: Host,
  { id, networks: [wanted] }: Spec,
  name: string,
  run: DockerRun,
): Promise<string> {
  const container = await inspectContainer(name, run);
  if (container === undefined) {
    throw new TapkitError(`Docker has no container "${name}"`, { mend: "see docker ps" });
  }
  if (!container.State.Running) {
    throw new TapkitError(`container "${name}" is not running`, {
      mend: `run docker start ${name} first`,
    });
  }
  const user = readVms(host).flatMap(sidesOf).find(({ spec, facts }) =>
    spec.id.name !== id.name &&
    facts.networks.some((fact) => fact.docker?.container === container.Id)
  );
  if (user !== undefined) {
    throw new TapkitError(`container "${name}" is the sandbox of VM "${user.spec.id.name}"`, {
      mend: `name another container, or run attach-vm ${user.spec.id.name} --remove`,
    });
  }
  const names = Object.keys(container.NetworkSettings.Networks);
  const { NetworkMode: mode } = container.HostConfig;
  if (/^(host|none|container:.*)$/.test(mode) || names.length !== 1) {
    const has = names.length > 1
      ? `is on ${names.length} networks`
      : `has the network mode ${mode.split(":")[0]}`;
    throw new TapkitError(`container "${name}" ${has}, and not one network of its own`, {
      mend: "name a container on one bridge network",
    });
  }
  if (wanted !== undefined && wanted !== names[0]) {
    throw new TapkitError(`container "${name}" is on network "${names[0]}", not "${wanted}"`, {
      mend: "leave --network out",
    });
  }
  return (await requireBridge(names[0]!, run)).Name;
}

/** What Docker is to publish, as `docker create --publish` has it: `"0.0.0.0:8080:80/tcp"`. */
export async function publishArguments(
  { spec }: Both,
  network: string,
  run: DockerRun,
): Promise<string[]> {
  const ports = claimsBy(spec.claims, "attach");
  if (ports.length === 0) return [];
  const { EnableIPv6 } = await requireBridge(network, run);
  return bindPorts(ports, EnableIPv6 ? [4, 6] : [4]).map(formatPort);
}

/** The resolvers that Docker gives a container; none where they are the host's, which may change. */
export function containerDns(
  { HostConfig, ResolvConfPath }: Pick<Container, "HostConfig" | "ResolvConfPath">,
): Dns {
  const { Dns: named, DnsSearch } = HostConfig;
  if (named?.length) return { nameservers: named, search: DnsSearch ?? [] };
  const { nameservers, search } = hostResolvers([ResolvConfPath]);
  const dns = {
    nameservers: nameservers.length > 0 ? nameservers : behindDockers(ResolvConfPath),
    search,
  };
  return dns.nameservers.length === 0 || isSame(dns, hostResolvers()) ? {} : dns;
}

/**
 * On networks that users made a container has Docker's own resolver, on a loopback address. Engines since
 * 25.0 note in its resolv.conf which servers are behind that: `# ExtServers: [192.0.2.53 host(127.0.0.53)]`.
 */
function behindDockers(path: string): string[] {
  const [, list = ""] = /^# ExtServers: \[([^\]]*)\]/m.exec(readIfThere(path) ?? "") ?? [];
  return list.split(" ").map((word) => word.replace(/^host\((.*)\)$/, "$1")).filter(isReachable);
}
