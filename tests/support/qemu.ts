/**
 * A real guest, booted by QEMU behind a TAP. It needs about three seconds and 150 MB.
 *
 * ```ts
 * await using guest = await QemuGuest.boot(host, record);            // as a VMM of its own
 * await using guest = await QemuGuest.attach(host, ["web", "--ports", "8080:80"]); // attach-vm … -- VMM
 * guest.lease.ip; (await guest.sh("ip route")); (await peer.fetch("http://192.0.2.1:8080/"));
 * ```
 */

import { type GuestImage, guestImage } from "./guest-image.ts";
import type { GuestRecord } from "./guest-netns.ts";
import { type Lease, parseLease } from "./lease.ts";
import { type HttpReply, type Machine, type Outcome, ROOT } from "./machine.ts";
import type { Running } from "./running.ts";

/** The program that boots a guest. */
export const QEMU = "qemu-system-x86_64";

/** Long enough for a guest that shares two processors with others. */
const BOOT_TIMEOUT_MS = 60_000;

/** How a guest is booted. */
export interface BootOptions {
  /** MiB. */
  readonly memory?: number;
  /** Further arguments of the kernel: `ip=…` configures the guest without DHCP. */
  readonly append?: string;
  /** Arguments for the network cards, in place of one card on the TAP: those of `--output qemu`. */
  readonly devices?: readonly string[];
}

/**
 * QEMU's arguments for a guest on a TAP of the namespace it runs in; `{tap}` and `{mac}` are
 * what attach-vm replaces.
 */
function qemuArgs(
  image: GuestImage,
  { tap, mac }: { tap: string; mac: string },
  { memory = 96, append = "", devices }: BootOptions = {},
): string[] {
  const kernelArgs = "console=ttyS0 quiet panic=-1 reboot=t nokaslr mitigations=off " +
    `random.trust_cpu=on ${append}`;
  return [
    ...["-M", "q35,usb=off,hpet=off,vmport=off,smm=off"],
    ...["-accel", "tcg,thread=single,tb-size=32", "-m", String(memory)],
    ...["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"],
    ...["-kernel", image.kernel, "-initrd", image.initramfs, "-append", kernelArgs.trim()],
    ...["-global", "virtio-net-pci.romfile="],
    ...devices ?? [
      ...["-netdev", `tap,id=n0,ifname=${tap},script=no,downscript=no,vhost=off`],
      ...["-device", `virtio-net-pci,netdev=n0,mac=${mac}`],
    ],
  ];
}

/** A running guest; killed when it is disposed. */
export class QemuGuest implements AsyncDisposable {
  /** Seconds from the start of QEMU to a guest that has its lease and serves HTTP. */
  readonly bootSeconds: number;
  /** The lease, as the guest saw it. */
  readonly lease: Lease;
  /** The VMM's process, or attach-vm's around it. Its output is the guest's serial console. */
  readonly process: Running;
  #next = 1;

  private constructor(process: Running, lease: Lease, bootSeconds: number) {
    this.process = process;
    this.lease = lease;
    this.bootSeconds = bootSeconds;
  }

  /** Boots a guest on the first interface of a record. */
  static async boot(
    host: Machine,
    record: GuestRecord,
    options: BootOptions = {},
  ): Promise<QemuGuest> {
    const card = record.interfaces[0];
    if (card === undefined) throw new TypeError(`the record of "${record.vm}" has no interface`);
    const args = qemuArgs(await guestImage(), card, options);
    return await QemuGuest.over(() => host.spawn(QEMU, args, { netns: record.netns }));
  }

  /** Has attach-vm boot a guest: `attach-vm ARGUMENTS -- qemu-system-x86_64 …`. */
  static async attach(
    host: Machine,
    args: readonly string[],
    options: BootOptions = {},
  ): Promise<QemuGuest> {
    const qemu = [QEMU, ...qemuArgs(await guestImage(), { tap: "{tap}", mac: "{mac}" }, options)];
    const command = ["run", "-A", `${ROOT}/scripts/attach-vm.ts`, ...args, "--", ...qemu];
    return await QemuGuest.over(() => host.spawn(Deno.execPath(), command));
  }

  /** Starts a VMM whose standard input and output are the guest's console, and waits for it. */
  static async over(start: () => Running): Promise<QemuGuest> {
    const begin = performance.now();
    const process = start();
    try {
      await process.line((line) => /^ready /.test(line), { timeoutMs: BOOT_TIMEOUT_MS });
      const seconds = Math.round(performance.now() - begin) / 1000;
      const lease = parseLease(process.lines);
      if (lease === undefined) {
        throw new Error(`the guest got no lease:\n${process.lines.join("\n")}`);
      }
      return new QemuGuest(process, lease, seconds);
    } catch (error) {
      await process[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Runs a shell script in the guest; an exit code other than 0 is no exception. */
  async run(script: string, { timeoutMs = 15_000 } = {}): Promise<Outcome> {
    const id = this.#next++;
    const from = this.process.lines.length;
    await this.process.write(`run ${id} ${new TextEncoder().encode(script).toBase64()}\n`);
    const start = `ran ${id} `;
    const line = await this.process.line((text) => text.startsWith(start), { from, timeoutMs });
    const [, , code, stdout = "=", stderr = "="] = line.split(" ");
    const decode = (text: string) => new TextDecoder().decode(Uint8Array.fromBase64(text.slice(1)));
    return { code: Number(code), stdout: decode(stdout), stderr: decode(stderr) };
  }

  /** Runs a shell script in the guest that must succeed; returns its standard output. */
  async sh(script: string): Promise<string> {
    const { code, stdout, stderr } = await this.run(script);
    if (code === 0) return stdout;
    throw new Error(`in the guest: ${script}: exit ${code}: ${stderr}${stdout}`);
  }

  /** Fetches a page from within the guest. */
  async fetch(url: string, { timeoutSeconds = 5 } = {}): Promise<HttpReply> {
    const command = `timeout ${timeoutSeconds} wget -S -O - '${url}'`;
    const { code, stdout, stderr } = await this.run(command);
    return { code, status: Number(/HTTP\/1\.\d (\d{3})/.exec(stderr)?.[1] ?? 0), body: stdout };
  }

  /** Serves `text` on another port than 80, where the guest serves from the start. */
  async serveHttp(port: number, text: string): Promise<void> {
    const body = new TextEncoder().encode(text).toBase64();
    await this.sh(
      `mkdir -p /www${port} && echo ${body} | base64 -d >/www${port}/index.html && ` +
        `httpd -p ${port} -h /www${port}`,
    );
  }

  /** Has the guest end by itself, as a person's `poweroff` would; returns the VMM's exit code. */
  async shutdown(): Promise<number> {
    const ask = () => this.process.write(`run 0 ${btoa("reboot -f")}\n`);
    await ask();
    // The console loses a line at times, when the guest has just answered HTTP requests.
    const again = setInterval(() => ask().catch(() => {}), 2_000);
    try {
      return (await this.process.status).code;
    } finally {
      clearInterval(again);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.process[Symbol.asyncDispose]();
  }
}
