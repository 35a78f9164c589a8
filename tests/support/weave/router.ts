/**
 * A router on a throwaway host: the image that stands in for Weave Net's, run as the documentation says,
 * with what makes it usable there.
 */

import { DockerEngine } from "../docker.ts";
import type { Host } from "../host.ts";
import { eventually } from "../machine.ts";
import { importWeave, WEAVE_IMAGE } from "./stand-in.ts";

const ALONE = "192.0.2.1";
const CONTROL = "http://127.0.0.1:6784";

/** How to run it. */
export interface RouterOptions {
  /** All hosts of the network; the host itself unless given. */
  readonly peers?: readonly string[];
  /** More of its environment, or other values of what it has. */
  readonly env?: Readonly<Record<string, string>>;
  /** The variant that Docker takes for iptables. */
  readonly variant?: "nft" | "legacy";
}

/** The router, and the engine that runs it. Both end with the host. */
export class WeaveRouter {
  readonly #host: Host;
  readonly engine: DockerEngine;

  private constructor(host: Host, engine: DockerEngine) {
    this.#host = host;
    this.engine = engine;
  }

  /** Starts engine and router on a host; returns when it gives out addresses. */
  static async start(host: Host, options: RouterOptions = {}): Promise<WeaveRouter> {
    const { peers = [ALONE], variant = "nft" } = options;
    const engine = host.own(await DockerEngine.start(host, variant));
    await importWeave(host);
    await host.sh("touch /run/xtables.lock; mkdir -p /var/lib/weave /var/lib/dbus /lib/modules");
    const router = new WeaveRouter(host, engine);
    await router.run(options);
    if (peers.length === 1) await router.ready();
    return router;
  }

  /** The same by setup-weave. */
  static async setUp(host: Host): Promise<WeaveRouter> {
    const engine = host.own(await DockerEngine.start(host, "nft"));
    await importWeave(host);
    await host.mustTapkit("setup-weave");
    return new WeaveRouter(host, engine);
  }

  /** Runs its container, where there is none. */
  async run({ peers = [ALONE], env = {} }: RouterOptions): Promise<void> {
    const all = {
      HOSTNAME: this.#host.name,
      KUBE_PEERS: peers.join(" "),
      EXPECT_NPC: "0",
      WEAVE_NO_FASTDP: "1",
      WEAVE_MTU: "1376",
      WEAVE_METRICS_ADDR: "127.0.0.1:6782",
      ...env,
    };
    await this.#host.must("docker", [
      ...["run", "-d", "--name", "weave", "--privileged", "--net", "host", "--pid", "host"],
      ...["--restart", "always"],
      ...Object.entries(all).flatMap(([name, value]) => ["-e", `${name}=${value}`]),
      ...["/var/lib/weave:/weavedb", "/opt:/host/opt", "/home:/host/home", "/etc:/host/etc"]
        .flatMap((volume) => ["-v", volume]),
      ...["/var/lib/dbus:/host/var/lib/dbus", "/lib/modules:/lib/modules"]
        .flatMap((volume) => ["-v", volume]),
      ...["-v", "/run/xtables.lock:/run/xtables.lock"],
      ...["--entrypoint", "/home/weave/launch.sh", WEAVE_IMAGE],
    ]);
  }

  /** Waits until it gives out addresses. */
  async ready(): Promise<void> {
    await eventually(20_000, "Weave Net's router is ready", async () => {
      const { stdout } = await this.#host.run("ip", [
        "-4",
        "-o",
        "address",
        "show",
        "dev",
        "weave",
      ]);
      return stdout.includes(" inet ") &&
        (await this.#host.fetch(`${CONTROL}/ip`)).body.includes("weave:expose");
    });
  }

  async stop(): Promise<void> {
    await this.#host.sh("docker stop -t 0 weave");
  }

  /** Starts it again. */
  async restart(): Promise<void> {
    await this.#host.sh("docker start weave");
    await this.ready();
  }

  /** Starts it again without its memory. */
  async forget(): Promise<void> {
    await this.stop();
    await this.#host.sh("rm -f /var/lib/weave/*");
    await this.restart();
  }

  /** The owners of addresses, without the bridge: container ids and their addresses. */
  async owners(): Promise<Record<string, string>> {
    const { body } = await this.#host.fetch(`${CONTROL}/ip`);
    const { owned } = JSON.parse(body) as { owned: { containerid: string; addrs: string[] }[] };
    return Object.fromEntries(
      owned.filter(({ containerid }) => containerid !== "weave:expose")
        .map(({ containerid, addrs }) => [containerid, addrs.join()]),
    );
  }

  /** Claims an address for an owner, as the router itself does for what it finds in use. */
  async claim(id: string, address: string): Promise<void> {
    const request = `PUT /ip/${id}/${address}/12 HTTP/1.0\r\n\r\n`;
    const answer = await this.#host.sh(`printf '${request}' | busybox nc 127.0.0.1 6784`);
    if (!answer.includes(" 204 ")) throw new Error(answer);
  }

  /** Gives an address to a container that is no VM. */
  async allocate(id: string): Promise<string> {
    return await this.#host.sh(`busybox wget -q -O - --post-data= ${CONTROL}/ip/${id}`);
  }
}
