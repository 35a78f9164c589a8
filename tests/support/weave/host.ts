/** Hosts with Docker's engine and Weave Net's image, and asking Docker there. */

import { DockerEngine } from "../docker.ts";
import { Host } from "../host.ts";
import { Lan } from "../lan.ts";
import { importWeave, type StandIn } from "./stand-in.ts";

/** A host on a LAN, 192.0.2.1, that has Docker's engine and the image. */
export async function weaveHost(image?: StandIn): Promise<Host> {
  const host = await Host.create();
  await host.addLan();
  return await withWeave(host, image);
}

/** Two such hosts on one LAN, 192.0.2.10 and 192.0.2.11; the first one disposes of the LAN. */
export async function weaveHosts(): Promise<[Host, Host]> {
  const hosts = await Promise.all([Host.create({ name: "one" }), Host.create({ name: "two" })]);
  const lan = hosts[0].own(await Lan.create());
  for (const [index, host] of hosts.entries()) {
    await lan.connect(host, { addresses: [`192.0.2.1${index}/24`], gateways: ["192.0.2.1"] });
    await host.writeFile("/etc/machine-id", `${`${index}`.repeat(32)}\n`);
  }
  await Promise.all(hosts.map((host) => withWeave(host)));
  return hosts;
}

async function withWeave(host: Host, image?: StandIn): Promise<Host> {
  host.own(await DockerEngine.start(host, "nft"));
  await importWeave(host, image);
  return host;
}

/** What `docker container inspect` says. */
// deno-lint-ignore no-explicit-any
export async function inspectContainer(host: Host, name = "weave"): Promise<any> {
  return JSON.parse(await host.must("docker", ["container", "inspect", name]))[0];
}
