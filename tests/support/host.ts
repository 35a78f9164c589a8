/**
 * A throwaway host: the machine that tapkit's scripts run on in a test.
 *
 * ```ts
 * await using host = await Host.create();
 * const peer = await host.addLan();
 * const before = await host.snapshot();
 * const { code, json } = await host.tapkit("attach-vm", "web", "--ports", "8080:80");
 * …
 * await host.tapkit("attach-vm", "web", "--remove");
 * await host.assertRestored(before);
 * ```
 */

import { scriptWords } from "./bundle.ts";
import { Lan } from "./lan.ts";
import { eventually, Machine, type Outcome, type RunOptions } from "./machine.ts";
import { assertSameSnapshot, type SnapshotOptions, takeSnapshot } from "./snapshot.ts";

/** What a script of tapkit did. */
export interface ScriptOutcome extends Outcome {
  /** The records, and other objects, of its standard output, one a line; other lines are left out. */
  // deno-lint-ignore no-explicit-any
  readonly json: any[];
  /** Of what attached something: what it changed, which is not among {@linkcode json}. */
  readonly done: readonly {
    readonly changes: readonly { layer: string; object: string; change: string }[];
    readonly tapReplaced: boolean;
  }[];
}

/** The addresses of {@linkcode Host.addLan}. */
export interface LanOptions {
  /** The host's interface on the LAN. */
  readonly link?: string;
  /** The host's own addresses. */
  readonly addresses?: readonly string[];
  /** The other machine's addresses; the host's default routes go there, and its own come back. */
  readonly peer?: readonly string[];
  readonly mtu?: number;
}

/** A throwaway host. Its interface on a LAN is `eth-lan`, if it has one. */
export class Host extends Machine {
  /** Starts a host that has nothing but its loopback interface. */
  static override async create({ name = "host" }: { name?: string } = {}): Promise<Host> {
    return new Host(await Machine.hold(name));
  }

  /**
   * Puts the host on a LAN with one other machine, which is returned: host 192.0.2.1 and
   * 2001:db8::1 on `eth-lan`, the other 192.0.2.2 and 2001:db8::2. Each is the other's default
   * gateway; the other does not forward.
   */
  async addLan(options: LanOptions = {}): Promise<Machine> {
    const {
      link = "eth-lan",
      addresses = ["192.0.2.1/24", "2001:db8::1/64"],
      peer: peerAddresses = ["192.0.2.2/24", "2001:db8::2/64"],
      mtu = 1500,
    } = options;
    const making = [Lan.create({ mtu }), Machine.create({ name: "peer" })] as const;
    const [lan, peer] = await Promise.all(making);
    this.own(lan);
    this.own(peer);
    const bare = (list: readonly string[]) => list.map((address) => address.replace(/\/.*/, ""));
    await lan.connect(this, { link, addresses, gateways: bare(peerAddresses) });
    await lan.connect(peer, { addresses: peerAddresses, gateways: bare(addresses) });
    return peer;
  }

  /** Runs a script of tapkit, `attach-vm` say, on this host. */
  async tapkit(script: string, ...args: (string | RunOptions)[]): Promise<ScriptOutcome> {
    const last = args.at(-1);
    const options = typeof last === "object" ? last : {};
    const words = args.filter((arg): arg is string => typeof arg === "string");
    const outcome = await this.run(
      Deno.execPath(),
      [...scriptWords(script), ...words],
      options,
    );
    const lines = outcome.stdout.split("\n").filter((line) => line.startsWith("{"))
      .map((line) => JSON.parse(line));
    const json = lines.map(({ changes: _, tapReplaced: __, ...record }) => record);
    const done = lines.map(({ changes = [], tapReplaced = false }) => ({ changes, tapReplaced }));
    return { ...outcome, json, done };
  }

  /** Like {@linkcode tapkit}, for what must succeed: throws with its standard error. */
  async mustTapkit(script: string, ...args: (string | RunOptions)[]): Promise<ScriptOutcome> {
    const outcome = await this.tapkit(script, ...args);
    if (outcome.code === 0) return outcome;
    const words = args.filter((arg) => typeof arg === "string").join(" ");
    throw new Error(`${script} ${words}: exit ${outcome.code}: ${outcome.stderr}`);
  }

  /** Everything on the host that tapkit could have changed, as sorted lines of text. */
  async snapshot(): Promise<string> {
    return await takeSnapshot(this);
  }

  /** Waits for the DHCP server: whether it is there decides whether a command starts one. */
  async awaitDhcp(stateDir = "/var/lib/tapkit"): Promise<void> {
    const [lock, locks] = [this.path(`${stateDir}/serve-dhcp.lock`), this.path("/proc/locks")];
    await eventually(10_000, "a DHCP server runs", async () => {
      const { ino, size } = await Deno.stat(lock).catch(() => ({ ino: undefined, size: 0 }));
      // It signs its lock.
      return size > 0 && (await Deno.readTextFile(locks)).includes(`:${ino} `);
    });
  }

  /** Waits until a file is gone: the DHCP server's lock and directory go when it has seen that nobody is left. */
  async awaitGone(path: string, timeoutMs = 10_000): Promise<void> {
    await eventually(
      timeoutMs,
      `${path} is gone`,
      async () => (await this.run("test", ["-e", path])).code !== 0,
    );
  }

  /**
   * Asserts that the host is as it was, waiting a little for what ends by itself.
   *
   * @param before an earlier {@linkcode snapshot}
   */
  async assertRestored(
    before: string,
    { withinMs = 10_000, ...options }: SnapshotOptions & { withinMs?: number } = {},
  ): Promise<void> {
    const deadline = Date.now() + withinMs;
    while (true) {
      const now = await this.snapshot();
      try {
        return assertSameSnapshot(before, now, options);
      } catch (error) {
        if (Date.now() >= deadline) throw error;
      }
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}
