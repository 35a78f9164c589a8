/**
 * Docker's engine in a throwaway host.
 *
 * Root lacks CAP_SYS_RESOURCE on some test machines, which containers are given by default: a
 * wrapper of runc takes it out of what it is asked for.
 */

import type { Host } from "./host.ts";
import { eventually } from "./machine.ts";
import type { Running } from "./running.ts";

const RUNTIME = "/run/nocap-runc";
const WRAPPER = `#!/bin/bash
previous=
for word; do
  if [ "$previous" = --bundle ]; then
    sed -i -E 's/"CAP_SYS_RESOURCE",?//g; s/,]/]/g' "$word/config.json"
  fi
  previous=$word
done
exec runc "$@"
`;

/** Lines of a snapshot that are the engine's own: its files, and what docker0 gets with its first port. */
export const DOCKERS = [
  /\/run\/(docker|containerd)/,
  / docker0 .*fe80|fe80.* docker0|ff00::.* docker0/,
] as const;

/** The engine, with an image `busybox`. It ends with the host. */
export class DockerEngine implements AsyncDisposable {
  readonly #host: Host;
  readonly #flags: readonly string[];
  #daemon: Running | undefined;

  private constructor(host: Host, flags: readonly string[]) {
    this.#host = host;
    this.#flags = flags;
  }

  /**
   * @param variant the one that Docker takes for iptables
   * @param flags of dockerd
   */
  static async start(
    host: Host,
    variant: "nft" | "legacy",
    flags: readonly string[] = [],
  ): Promise<DockerEngine> {
    await host.writeFile(RUNTIME, WRAPPER, 0o755);
    await host.sh(
      `mkdir -p /run/docker-bin
       for name in iptables ip6tables; do
         ln -s "$(command -v $name-${variant})" /run/docker-bin/$name
       done`,
    );
    const engine = new DockerEngine(host, flags);
    try {
      await engine.resume();
      await host.sh(
        `mkdir -p /run/image/bin
         cp "$(command -v busybox)" /run/image/bin/busybox
         tar -C /run/image -c . | docker import - busybox >/dev/null`,
      );
      return engine;
    } catch (error) {
      await engine[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Starts the engine again, on the data that it had. */
  async resume(): Promise<void> {
    this.#daemon = this.#host.spawn("dockerd", [
      ...["--data-root", "/run/docker-data", "--exec-root", "/run/docker-exec"],
      ...["--storage-driver", "vfs", "--pidfile", "/run/docker.pid"],
      ...["-H", "unix:///run/docker.sock"],
      ...["--add-runtime", `nocap=${RUNTIME}`, "--default-runtime", "nocap"],
      ...this.#flags,
    ], { env: { PATH: `/run/docker-bin:${Deno.env.get("PATH")}` } });
    await eventually(
      20_000,
      "Docker's engine answers",
      async () => (await this.#host.run("docker", ["info"])).code === 0,
    );
  }

  /** Ends the engine, as its unit does: containers end with it. */
  async stop(): Promise<void> {
    await this.#daemon?.[Symbol.asyncDispose]();
    this.#daemon = undefined;
  }

  /** Runs a container that serves its name on port 80, which is published. */
  async serve(name: string, hostPort: number): Promise<void> {
    await this.#host.must("docker", [
      ...["run", "-d", "--name", name, "-p", `${hostPort}:80`, "busybox", "/bin/busybox", "sh"],
      ...[
        "-c",
        `/bin/busybox mkdir /www; echo ${name} >/www/index.html; ` +
        "exec /bin/busybox httpd -f -p 80 -h /www",
      ],
    ]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#host.run("bash", ["-c", "docker rm -f $(docker ps -aq)"]);
    await this.stop();
  }
}
