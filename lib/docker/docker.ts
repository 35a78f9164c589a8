/**
 * The `docker` command. zx runs it, and is loaded when the first command runs.
 *
 * @module
 */

import { DockerError, TapkitError } from "../errors.ts";
import { keepDescriptors } from "../sys/spawn.ts";

/** How to run a docker command. */
export interface DockerRun {
  /** Its standard input. */
  readonly input?: Uint8Array;
  /** Ends the command when aborted. */
  readonly signal?: AbortSignal | undefined;
  /** Called with each line that the command writes, on either output: progress for people. */
  readonly onLine?: (line: string) => void;
}

/** A Docker engine that answers. */
export interface Engine {
  /** `"20.10.24"`. */
  readonly version: string;
  /** The oldest API version that it speaks: `"1.12"`. */
  readonly minApiVersion: string;
  /** The architecture, as Go names it: `"amd64"`, `"arm64"`. */
  readonly arch: string;
}

/**
 * Runs a docker command to its end and returns its standard output.
 *
 * The command ends with this process: it does not go on when this process is killed.
 *
 * Equivalent to: `docker ARG…`
 *
 * @throws {DockerError} when it fails
 * @throws {TapkitError} when there is no docker, the engine does not run, or its socket is closed to us
 */
export async function docker(args: readonly string[], run: DockerRun = {}): Promise<string> {
  const { exitCode, stdout, stderr } = await runDocker(args, run);
  run.signal?.throwIfAborted();
  if (exitCode === 0) return stdout;
  throw explain(args, stderr, exitCode);
}

/**
 * Asks the engine for its version.
 *
 * Equivalent to: `docker version`
 *
 * @throws {TapkitError} when there is no docker, no engine, or `docker` is another program
 */
export async function requireEngine(run: DockerRun = {}): Promise<Engine> {
  refuseRemote();
  const { exitCode, stdout, stderr } = await runDocker(
    ["version", "--format", "{{json .Server}}"],
    run,
  );
  run.signal?.throwIfAborted();
  const server = exitCode === 0 ? parseJson(stdout) : undefined;
  if (server?.MinAPIVersion && !isPodman(server)) {
    return {
      version: String(server.Version),
      minApiVersion: String(server.MinAPIVersion),
      arch: String(server.Arch),
    };
  }
  const named = await runDocker(["--version"], run);
  if (isPodman(server) || /podman/i.test(`${named.stdout}${named.stderr}`)) {
    throw new TapkitError("docker is podman on this host, which has none of Docker's networks", {
      mend: "install Docker's engine (package docker.io), or attach the VM to a CNI network",
    });
  }
  throw explain(["version"], stderr, exitCode);
}

/** What `docker inspect` says of a container, as far as tapkit reads it. */
export interface Container {
  readonly Id: string;
  /** With a slash before it: `"/web"`. */
  readonly Name: string;
  readonly State: {
    readonly Running: boolean;
    readonly Restarting: boolean;
    readonly Status: string;
    readonly ExitCode: number;
  };
  readonly Config: {
    readonly Image: string;
    readonly Env: readonly string[] | null;
    readonly Entrypoint: readonly string[] | null;
    readonly Cmd: readonly string[] | null;
    readonly Labels: Readonly<Record<string, string>> | null;
  };
  readonly HostConfig: {
    readonly NetworkMode: string;
    readonly Binds: readonly string[] | null;
    readonly Privileged: boolean;
    readonly PidMode: string;
    readonly RestartPolicy: { readonly Name: string };
    readonly Dns: readonly string[] | null;
    readonly DnsSearch: readonly string[] | null;
  };
  readonly RestartCount: number;
  /** The path of its resolv.conf on the host. */
  readonly ResolvConfPath: string;
  readonly NetworkSettings: {
    /** The path of its network namespace: `"/var/run/docker/netns/0123456789ab"`. */
    readonly SandboxKey: string;
    readonly Ports: Readonly<Record<string, readonly PortBinding[] | null>> | null;
    readonly Networks: Readonly<Record<string, Endpoint>>;
  };
}

/** A host port that Docker publishes. */
export interface PortBinding {
  readonly HostIp: string;
  readonly HostPort: string;
}

/** A container's interface on a network. Addresses are `""` where there are none. */
export interface Endpoint {
  readonly NetworkID: string;
  readonly MacAddress: string;
  readonly IPAddress: string;
  readonly IPPrefixLen: number;
  readonly Gateway: string;
  readonly GlobalIPv6Address: string;
  readonly GlobalIPv6PrefixLen: number;
  readonly IPv6Gateway: string;
}

/**
 * Asks for a container; undefined if there is none of this name or id.
 *
 * Equivalent to: `docker container inspect NAME`
 */
export async function inspectContainer(
  name: string,
  run: DockerRun = {},
): Promise<Container | undefined> {
  return await inspect<Container>("container", name, run);
}

/**
 * Asks for an object of the engine; undefined if there is none of this name or id.
 *
 * Equivalent to: `docker KIND inspect NAME`
 *
 * @param kind `"container"`, `"image"`, `"network"`
 */
export async function inspect<T>(
  kind: "container" | "image" | "network",
  name: string,
  run: DockerRun = {},
): Promise<T | undefined> {
  try {
    return JSON.parse(await docker([kind, "inspect", name], run))[0];
  } catch (error) {
    if (error instanceof DockerError && /no such|not found/i.test(error.stderr)) return undefined;
    throw error;
  }
}

interface Ended {
  readonly exitCode: number;
  readonly stdout: string;
  readonly stderr: string;
}

async function runDocker(args: readonly string[], run: DockerRun): Promise<Ended> {
  run.signal?.throwIfAborted();
  const { $, which } = await import("zx/core");
  if (await which("docker", { nothrow: true }) === null) throw absent();
  keepDescriptors();
  const start = $({
    quiet: true,
    nothrow: true,
    env: { ...Deno.env.toObject(), LC_ALL: "C", DOCKER_CLI_HINTS: "false" },
    // There is one process, and no ps needed to find others.
    kill: (pid, signal) => Promise.resolve(Deno.kill(Number(pid), signal as Deno.Signal)),
    ...run.input === undefined ? {} : { input: run.input as unknown as string },
    ...run.signal === undefined ? {} : { signal: run.signal },
  });
  // What is killed with us can have no effect after us, when somebody else mends what we left.
  const process = await which("setpriv", { nothrow: true }) === null
    ? start`exec docker ${args}`
    : start`exec setpriv --pdeathsig KILL -- docker ${args}`;
  if (run.onLine !== undefined) {
    for (const stream of [process.stdout, process.stderr]) readLines(stream, run.onLine);
  }
  const { exitCode, stdout, stderr } = await process;
  return { exitCode: exitCode ?? 1, stdout, stderr };
}

function readLines(
  stream: { on(event: "data", heard: (chunk: unknown) => void): unknown },
  onLine: (line: string) => void,
): void {
  let rest = "";
  stream.on("data", (chunk) => {
    const lines = `${rest}${chunk}`.split(/[\r\n]+/);
    rest = lines.pop() ?? "";
    lines.filter((line) => line !== "").forEach(onLine);
  });
}

function parseJson(text: string): Record<string, unknown> | undefined {
  try {
    return JSON.parse(text) ?? undefined;
  } catch {
    return undefined;
  }
}

function isPodman(server: Record<string, unknown> | undefined): boolean {
  return /podman/i.test(JSON.stringify(server?.Components ?? ""));
}

/** Namespaces and firewalls are of the machine that the engine runs on. */
function refuseRemote(): void {
  const host = Deno.env.get("DOCKER_HOST");
  if (!host || host.startsWith("unix://")) return;
  throw new TapkitError(`DOCKER_HOST=${host} is an engine of another machine`, {
    mend: "unset DOCKER_HOST, or run this on that machine",
  });
}

function absent(): TapkitError {
  return new TapkitError("docker is not installed", {
    mend: "install Docker's engine (package docker.io)",
  });
}

/** What docker says of a failure, shortened, with a mend where the cause is known. */
function explain(args: readonly string[], stderr: string, exitCode: number): DockerError {
  const said = stderr.trim();
  const socket = /(?:unix|npipe|tcp):\/\/[^\s"':?]*[^\s"':?.]/.exec(said)?.[0];
  if (/permission denied/i.test(said) && /socket|daemon/i.test(said)) {
    const message = `Docker's socket${socket ? ` ${socket}` : ""} is closed to this user`;
    return new DockerError(message, said, "run as root, or as a member of the group docker");
  }
  if (/cannot connect to the docker daemon|is the docker daemon running/i.test(said)) {
    const message = `Docker's engine does not answer${socket ? ` at ${socket}` : ""}`;
    return new DockerError(message, said, "start it: systemctl start docker");
  }
  const lines = said.split("\n")
    .filter((text) => text.trim() !== "" && !/^See |^Run '|--help/.test(text));
  // What the engine says comes before what the command makes of it.
  const line = lines.find((text) => text.includes("Error response from daemon: ")) ??
    lines.at(-1) ?? `exit code ${exitCode}`;
  const reason = line.replace(/^.*Error response from daemon: /, "")
    .replace(/^(docker|Error): /i, "").replace(/\.$/, "");
  const mend = /No chain\/target\/match/.test(reason)
    ? "somebody flushed Docker's rules: start its engine again (systemctl restart docker)"
    : undefined;
  return new DockerError(`docker ${args.slice(0, 2).join(" ")}: ${reason}`, said, mend);
}
