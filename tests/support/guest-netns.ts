/**
 * A namespace as a guest: a throwaway machine whose `eth0` is carried to a VM's TAP, so that the
 * network cannot tell it from a VM. It starts in a tenth of a second.
 *
 * ```ts
 * const { json: [record] } = await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
 * await using guest = await NetnsGuest.start(host, record);
 * const lease = await guest.dhcp();
 * await guest.serveHttp(80, "hello");
 * await peer.fetch("http://192.0.2.1:8080/");
 * ```
 */

import { type Lease, parseLease, UDHCPC_OPTIONS, UDHCPC_SCRIPT } from "./lease.ts";
import { eventually, Machine, ROOT } from "./machine.ts";
import { Running } from "./running.ts";

/** What a guest needs to know of its VM: the part of `attach-vm`'s record. */
export interface GuestRecord {
  readonly vm: string;
  /** The namespace's path, on the host. */
  readonly netns: string;
  readonly interfaces: readonly { readonly tap: string; readonly mac: string }[];
}

/** A frame that passed between the VM's TAP and the guest. */
export interface CarriedFrame {
  readonly direction: "from-guest" | "to-guest";
  readonly bytes: Uint8Array;
}

const LINK = "eth0";
const SCRIPT = "/run/udhcpc";

/** A namespace behind the TAP of a VM. */
export class NetnsGuest extends Machine {
  #carrier!: Running;

  /**
   * Starts a guest on the first interface of a record. It has no address until
   * {@linkcode dhcp}, or until a test gives it one.
   *
   * @param host the machine that the record's paths are of
   */
  static async start(host: Machine, record: GuestRecord): Promise<NetnsGuest> {
    const card = record.interfaces[0];
    if (card === undefined) throw new TypeError(`the record of "${record.vm}" has no interface`);
    const guest = new NetnsGuest(await Machine.hold(record.vm));
    try {
      guest.#carrier = guest.own(carry(host, record.netns, card.tap, guest));
      await guest.#carrier.line((line) => line === "ready");
      await guest.must("ip", ["link", "set", LINK, "address", card.mac, "up"]);
      return guest;
    } catch (error) {
      await guest[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Waits until the guest may use its IPv6 addresses, link-local ones too. */
  async settle(): Promise<void> {
    await eventually(10_000, `no address of "${this.name}" is tentative`, async () => {
      return (await this.must("ip", ["-6", "addr", "show", "tentative"])).trim() === "";
    });
  }

  /**
   * Asks for a lease and configures the guest by it: address, routes, resolvers, host name, MTU.
   *
   * It asks as long as a guest that boots would: until the kernel has noticed that the TAP has a
   * carrier, which a busy machine does late, it drops what is sent on it.
   *
   * @throws when no lease is offered within ten seconds
   */
  async dhcp(): Promise<Lease> {
    await this.writeFile(SCRIPT, UDHCPC_SCRIPT, 0o755);
    const { stdout, stderr } = await this.run("busybox", [
      ...["udhcpc", "-i", LINK, "-s", SCRIPT, "-f", "-q", "-n", "-t", "10", "-T", "1"],
      ...UDHCPC_OPTIONS,
    ]);
    const lease = parseLease(stdout.split("\n"));
    if (lease === undefined) throw new Error(`the guest "${this.name}" got no lease: ${stderr}`);
    return lease;
  }

  /** Puts a frame on the wire as if the guest had sent it. */
  async sendFrame(frame: Uint8Array): Promise<void> {
    await this.#tell(`send ${frame.toHex()}`);
  }

  /** Runs `during` and returns the frames that passed meanwhile, both ways, in their order. */
  async sniff(during: () => Promise<unknown>): Promise<CarriedFrame[]> {
    const from = this.#carrier.lines.length;
    await this.#tell("sniff on");
    await during();
    await this.#tell("sniff off");
    return this.#carrier.lines.slice(from).flatMap((line) => {
      const [direction, hex = ""] = line.split(" ");
      if (direction !== "from-guest" && direction !== "to-guest") return [];
      return [{ direction, bytes: Uint8Array.fromHex(hex) }];
    });
  }

  async #tell(command: string): Promise<void> {
    const from = this.#carrier.lines.length;
    await this.#carrier.write(`${command}\n`);
    await this.#carrier.line((line) => line.startsWith("done "), { from });
  }
}

/** The carrier runs on the real machine, where the paths of both machines can be named. */
function carry(host: Machine, netns: string, tap: string, guest: Machine): Running {
  const child = new Deno.Command(Deno.execPath(), {
    args: [
      ...["run", "-A", `${ROOT}/tests/support/carrier.ts`],
      ...[host.path(netns), tap, guest.netnsPath, LINK],
    ],
    env: { NO_COLOR: "1" },
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  return new Running(child);
}
