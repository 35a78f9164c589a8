/**
 * A throwaway machine: network, mount, process and UTS namespaces of its own.
 *
 * A holder process (bash, PID 1 of the machine) keeps them. It ends when its standard input does,
 * so the machine goes with the test process however that ends, and the kernel then kills every
 * process of the machine. /etc, /var, /opt and /tmp are overlays and /run is empty, so nothing
 * that is written there reaches the real machine.
 */

import { fromFileUrl } from "@std/path";
import { childrenOf, killFamily, Running, tryKill } from "./running.ts";

/** The checkout's root directory, without a trailing slash. */
export const ROOT = fromFileUrl(new URL("../..", import.meta.url)).replace(/\/$/, "");

/** The directories that are overlays; what is written there is found in their upper halves. */
export const OVERLAYS = ["etc", "opt", "tmp", "var"] as const;

/** The holder's descriptor of the overlays' upper directories. */
const UPPER_FD = 9;

/**
 * Arguments: the machine's name, then its overlays. The upper halves live on a tmpfs that is
 * covered by the machine's own /run; a descriptor keeps the way to them. A fresh sysfs shows the
 * machine's own links; the cgroup tree is carried over.
 */
const HOLDER = `
set -e
machine=$1
shift
# Static, it starts in a third of the time of the others.
for name in mount umount mkdir chmod rm ip; do eval "$name() { busybox $name \\"\\$@\\"; }"; done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/{upper,work,cgroup} "\${@/#//run/upper/}" "\${@/#//run/work/}"
[ ! -d /run/upper/tmp ] || chmod 1777 /run/upper/tmp
for name; do
  mount -t overlay overlay /$name \
    -o lowerdir=/$name,upperdir=/run/upper/$name,workdir=/run/work/$name
done
exec ${UPPER_FD}</run/upper
mount -o rbind /sys/fs/cgroup /run/cgroup
mount -t sysfs sysfs /sys
mount -o rbind /run/cgroup /sys/fs/cgroup
umount -l /run/cgroup
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -m 755 /run/netns
mkdir -m 1777 /run/lock
rm -rf /etc/cni /var/lib/cni /var/lib/tapkit /etc/resolv.conf
printf 'nameserver 192.0.2.53\nsearch example.test\n' >/etc/resolv.conf
printf '%s\n' "$machine" >/etc/hostname
printf '127.0.0.1 localhost\n::1 localhost\n127.0.1.1 %s\n' "$machine" >/etc/hosts
echo "$machine" >/proc/sys/kernel/hostname
cd /proc/sys/net/ipv4
echo 0 >ip_forward
for name in all default; do echo 0 >conf/$name/rp_filter; done
ip link set lo up
cd /
echo ready
while read -r _; do :; done
`;

/** The holder of a machine of which only the network is used: its files are the real machine's. */
const BARE_HOLDER = `
ip link set lo up
echo ready
while read -r _; do :; done
`;

/** Variables that would lead a script to the real machine's configuration, or are the tests' own. */
const FOREIGN_ENV = /^(NETCONFPATH|CNI_PATH|TAPKIT_.*|DOCKER_.*)$/;

const decoder = new TextDecoder();

/** What a command did. */
export interface Outcome {
  /** Its exit code, 128 + n after signal n. */
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** How to run a command in a machine. */
export interface RunOptions {
  /** Its standard input; none when absent. */
  readonly stdin?: string | Uint8Array;
  readonly env?: Readonly<Record<string, string>>;
  /** Kills the command after that long; 60 seconds when absent. */
  readonly timeoutMs?: number;
  /** Another network namespace of the machine: its path, or its name under /run/netns. */
  readonly netns?: string;
}

/** What an HTTP request got. */
export interface HttpReply {
  /** The client's exit code: 0 for a page. */
  readonly code: number;
  /** The HTTP status, 0 when there was no answer. */
  readonly status: number;
  readonly body: string;
}

/** A throwaway machine; everything in it ends when it is disposed. */
export class Machine implements AsyncDisposable {
  /** The holder's process id, as the real machine sees it. */
  readonly pid: number;
  /** Its host name. */
  readonly name: string;
  readonly #holder: Deno.ChildProcess;
  readonly #stdin: WritableStreamDefaultWriter<Uint8Array<ArrayBuffer>>;
  readonly #owned = new AsyncDisposableStack();

  protected constructor(holder: Holder) {
    this.pid = holder.pid;
    this.name = holder.name;
    this.#holder = holder.child;
    this.#stdin = holder.stdin;
  }

  /** Starts a machine that has nothing but its loopback interface. */
  static async create({ name = "machine" }: { name?: string } = {}): Promise<Machine> {
    return new Machine(await Machine.hold(name));
  }

  /** Starts a machine in which no file may be written: it starts with less work. */
  static async createBare({ name }: { name: string }): Promise<Machine> {
    return new Machine(await Machine.hold(name, BARE_HOLDER));
  }

  protected static async hold(name: string, holder = HOLDER): Promise<Holder> {
    const child = new Deno.Command("unshare", {
      args: [
        ...["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc"],
        ...["--kill-child", "--propagation", "private", "bash", "-c", holder, "holder", name],
        ...OVERLAYS,
      ],
      stdin: "piped",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    const stdin = child.stdin.getWriter();
    const reader = child.stdout.getReader();
    const { value } = await reader.read();
    await reader.cancel();
    const pid = childrenOf(child.pid)[0];
    if (value === undefined || !decoder.decode(value).startsWith("ready") || pid === undefined) {
      await stdin.close().catch(() => {});
      const said = await new Response(child.stderr).text();
      await child.status;
      throw new Error(`a throwaway machine cannot be made (root is needed): ${said.trim()}`);
    }
    await child.stderr.cancel();
    return { child, stdin, pid, name };
  }

  /** Makes this machine dispose of something before itself; returns it. */
  own<T extends AsyncDisposable | Disposable>(thing: T): T {
    return this.#owned.use(thing);
  }

  /** The path by which the real machine reaches a file of this one. */
  path(inside: string): string {
    return `/proc/${this.pid}/root${inside}`;
  }

  /** The path by which the real machine reaches what was written below an overlay. */
  upperPath(overlay: typeof OVERLAYS[number]): string {
    return `/proc/${this.pid}/fd/${UPPER_FD}/${overlay}`;
  }

  /** The path of its own network namespace, for the real machine. */
  get netnsPath(): string {
    return `/proc/${this.pid}/ns/net`;
  }

  async writeFile(inside: string, text: string, mode = 0o644): Promise<void> {
    const path = this.path(inside);
    await Deno.mkdir(path.slice(0, path.lastIndexOf("/")), { recursive: true });
    await Deno.writeTextFile(path, text);
    await Deno.chmod(path, mode);
  }

  async readFile(inside: string): Promise<string> {
    return await Deno.readTextFile(this.path(inside));
  }

  /** Runs a command to its end; an exit code other than 0 is no exception. */
  async run(
    command: string,
    args: readonly string[] = [],
    options: RunOptions = {},
  ): Promise<Outcome> {
    const child = this.#command(command, args, options, options.stdin === undefined).spawn();
    const timeoutMs = options.timeoutMs ?? 60_000;
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      killFamily(child.pid);
    }, timeoutMs);
    try {
      const [output] = await Promise.all([child.output(), feed(child, options.stdin)]);
      const { code, stdout, stderr } = output;
      const note = late ? `\nkilled after ${timeoutMs} ms: ${command} ${args.join(" ")}` : "";
      return { code, stdout: decoder.decode(stdout), stderr: decoder.decode(stderr) + note };
    } finally {
      clearTimeout(timer);
    }
  }

  /** Runs a command that must succeed; returns its standard output. */
  async must(
    command: string,
    args: readonly string[] = [],
    options: RunOptions = {},
  ): Promise<string> {
    const { code, stdout, stderr } = await this.run(command, args, options);
    if (code === 0) return stdout;
    throw new Error(`${command} ${args.join(" ")}: exit ${code}: ${stderr}${stdout}`);
  }

  /** Runs a shell script that must succeed; returns its standard output. */
  async sh(script: string, options: RunOptions = {}): Promise<string> {
    return await this.must("bash", ["-euc", script], options);
  }

  /** Starts a command and leaves it running until it, or the machine, is disposed. */
  spawn(
    command: string,
    args: readonly string[] = [],
    options: Omit<RunOptions, "stdin" | "timeoutMs"> = {},
  ): Running {
    return this.own(new Running(this.#command(command, args, options, false).spawn()));
  }

  /**
   * Fetches a page. With so little time that a lost packet, which is sent again after a second, would
   * be taken for a closed door, it is tried twice.
   */
  async fetch(
    url: string,
    { timeoutSeconds = 5, netns }: { timeoutSeconds?: number; netns?: string } = {},
  ): Promise<HttpReply> {
    const tries = timeoutSeconds < 2 ? 2 : 1;
    for (let left = tries - 1;; left--) {
      const reply = await this.#fetchOnce(url, timeoutSeconds, netns);
      if (reply.status > 0 || left === 0) return reply;
    }
  }

  async #fetchOnce(url: string, timeoutSeconds: number, netns?: string): Promise<HttpReply> {
    const { code, stdout, stderr } = await this.run(
      "busybox",
      // Not -T: Debian 12's busybox crashes on it.
      ["wget", "-S", "-O", "-", url],
      { timeoutMs: timeoutSeconds * 1000, ...(netns === undefined ? {} : { netns }) },
    );
    const status = Number(/HTTP\/1\.\d (\d{3})/.exec(stderr)?.[1] ?? 0);
    return { code, status, body: stdout };
  }

  /**
   * Serves `text` as `/`, and the client's address as `/cgi-bin/client`, on every address.
   * Returns once the port listens.
   */
  async serveHttp(port: number, text: string): Promise<Running> {
    const root = `/run/http-${port}`;
    await this.writeFile(`${root}/index.html`, text);
    await this.writeFile(
      `${root}/cgi-bin/client`,
      `#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n%s' "$REMOTE_ADDR"\n`,
      0o755,
    );
    const server = this.spawn("busybox", ["httpd", "-f", "-p", String(port), "-h", root]);
    await this.listening(port, "tcp");
    return server;
  }

  /** Answers each datagram with `text`, a space and the sender's address and port. */
  async serveUdp(port: number, text: string): Promise<Running> {
    const server = this.spawn(Deno.execPath(), [...DATAGRAM, "serve", String(port), text]);
    await server.line((line) => line === "ready");
    return server;
  }

  /** A UDP client that keeps its socket, and so its port, from one datagram to the next. */
  async udpClient(address: string, port: number): Promise<UdpClient> {
    const client = this.spawn(Deno.execPath(), [...DATAGRAM, "ask", address, String(port)]);
    await client.line((line) => line === "ready");
    return new UdpClient(client);
  }

  /** Waits until something in the machine's own network namespace listens on a port. */
  async listening(port: number, protocol: "tcp" | "udp", timeoutMs = 5000): Promise<void> {
    const wanted = new RegExp(
      `:${port.toString(16).toUpperCase().padStart(4, "0")} [0-9A-F:]+ ${
        protocol === "tcp" ? "0A" : "07"
      } `,
    );
    await eventually(timeoutMs, `${protocol} port ${port} of ${this.name} listens`, async () => {
      const tables = [protocol, `${protocol}6`].map((name) => `/proc/${this.pid}/net/${name}`);
      const texts = await Promise.all(
        tables.map((path) => Deno.readTextFile(path).catch(() => "")),
      );
      return texts.some((text) => wanted.test(text));
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#owned.disposeAsync();
    await this.#stdin.close().catch(() => {});
    const timer = setTimeout(() => tryKill(this.#holder.pid), 5000);
    await this.#holder.status;
    clearTimeout(timer);
  }

  #command(
    command: string,
    args: readonly string[],
    options: RunOptions,
    noStdin: boolean,
  ): Deno.Command {
    const env = Deno.env.toObject();
    for (const name of Object.keys(env)) if (FOREIGN_ENV.test(name)) delete env[name];
    const path = `${env.PATH ?? "/usr/bin:/bin"}:/usr/sbin:/sbin`;
    const where = options.netns === undefined
      ? ["--net"]
      : [`--net=${this.path(options.netns.replace(/^(?!\/)/, "/run/netns/"))}`];
    return new Deno.Command("nsenter", {
      args: [
        ...["-t", String(this.pid), "--mount", "--uts", "--ipc", "--pid", ...where],
        ...["--", command, ...args],
      ],
      clearEnv: true,
      // A resident that a command started would do the work of later ones, sooner or later.
      env: { ...env, PATH: path, NO_COLOR: "1", TAPKIT_SOCKET: "none", ...options.env },
      stdin: noStdin ? "null" : "piped",
      stdout: "piped",
      stderr: "piped",
    });
  }
}

/** The other end of a conversation by datagrams. */
export class UdpClient implements AsyncDisposable {
  readonly #process: Running;

  constructor(process: Running) {
    this.#process = process;
  }

  /** Sends a datagram until it is answered: one may be lost on the way, as datagrams are. */
  async answer(text: string): Promise<string> {
    for (let round = 0; round < 5; round++) {
      const answer = await this.ask(text, 2000);
      if (answer !== undefined) return answer;
    }
    throw new Error(`no answer to "${text}"`);
  }

  /** Sends one datagram; returns the answer, `undefined` when none comes in time. */
  async ask(text: string, timeoutMs = 1000): Promise<string | undefined> {
    const from = this.#process.lines.length;
    await this.#process.write(`${text}\n`);
    return await this.#process.line(() => true, { from, timeoutMs }).catch(() => undefined);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process[Symbol.asyncDispose]();
  }
}

interface Holder {
  readonly child: Deno.ChildProcess;
  readonly stdin: WritableStreamDefaultWriter<Uint8Array<ArrayBuffer>>;
  readonly pid: number;
  readonly name: string;
}

const DATAGRAM = ["run", "-A", `${ROOT}/tests/support/datagram.ts`];

/** Asks again and again until the answer is yes; throws when it does not come in time. */
export async function eventually(
  timeoutMs: number,
  what: string,
  ask: () => boolean | Promise<boolean>,
): Promise<void> {
  const deadline = Date.now() + timeoutMs;
  while (!await ask()) {
    if (Date.now() >= deadline) throw new Error(`not within ${timeoutMs} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

async function feed(child: Deno.ChildProcess, input?: string | Uint8Array): Promise<void> {
  if (input === undefined) return;
  const writer = child.stdin.getWriter();
  const bytes = typeof input === "string" ? new TextEncoder().encode(input) : input.slice();
  try {
    await writer.write(bytes);
    await writer.close();
  } catch {
    // The command does not read its input.
  }
}
