/**
 * Docker's engine in a throwaway host.
 *
 * Root lacks CAP_SYS_RESOURCE on some test machines, which containers are given by default: a
 * wrapper of runc takes it out of what it is asked for.
 */

import type { Host } from "./host.ts";

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

/** The engine, with an image `busybox`. It ends with the host. */
export class DockerEngine implements AsyncDisposable {
  readonly #host: Host;
  readonly #daemon: AsyncDisposable;

  private constructor(host: Host, daemon: AsyncDisposable) {
    this.#host = host;
    this.#daemon = daemon;
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
    const daemon = host.spawn("dockerd", [
      ...["--data-root", "/run/docker-data", "--exec-root", "/run/docker-exec"],
      ...["--storage-driver", "vfs", "--pidfile", "/run/docker.pid"],
      ...["-H", "unix:///run/docker.sock"],
      ...["--add-runtime", `nocap=${RUNTIME}`, "--default-runtime", "nocap"],
      ...flags,
    ], { env: { PATH: `/run/docker-bin:${Deno.env.get("PATH")}` } });
    const engine = new DockerEngine(host, daemon);
    try {
      await host.sh(
        `for i in $(seq 150); do docker info >/dev/null 2>&1 && break; sleep 0.1; done
         mkdir -p /run/image/bin
         cp "$(command -v busybox)" /run/image/bin/busybox
         tar -C /run/image -c . | docker import - busybox >/dev/null`,
      );
      return engine;
    } catch (error) {
      await engine[Symbol.asyncDispose]();
      throw error;
    }
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
    await this.#daemon[Symbol.asyncDispose]();
  }
}
