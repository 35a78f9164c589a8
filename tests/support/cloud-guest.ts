/**
 * A whole Debian in QEMU, which cloud-init makes a host for VMs: its disk outlives its boots.
 *
 * ```ts
 * const disk = await CloudDisk.create(host, userData);
 * {
 *   await using guest = await disk.boot();
 *   await guest.must("cloud-init status --wait");
 * }
 * await using guest = await disk.boot();   // the next boot
 * ```
 *
 * @module
 */

import { cloudImage } from "./cloud-image.ts";
import type { Machine, Outcome } from "./machine.ts";
import { QEMU } from "./qemu.ts";
import type { Running } from "./running.ts";

/** Emulated, with the processors shared with others. */
const BOOT_TIMEOUT_MS = 180_000;
const RUN_TIMEOUT_MS = 240_000;

const HERE = "/tmp/cloud";

/** The disk of such a guest, on a machine; servers of that machine are 10.0.2.2 to the guest. */
export class CloudDisk {
  readonly #machine: Machine;
  readonly #files: { readonly kernel: string; readonly initramfs: string };

  private constructor(machine: Machine, files: { kernel: string; initramfs: string }) {
    this.#machine = machine;
    this.#files = files;
  }

  /** Makes the disk, with the user data beside it. */
  static async create(machine: Machine, userData: string): Promise<CloudDisk> {
    const { kernel, initramfs, disk } = await cloudImage();
    await machine.writeFile(`${HERE}/user-data`, userData);
    await machine.writeFile(`${HERE}/meta-data`, "instance-id: i-1\nlocal-hostname: vmhost\n");
    await machine.sh(`cd ${HERE}
      genisoimage -quiet -output seed.iso -volid cidata -joliet -rock user-data meta-data
      cp --sparse=always ${disk} disk`);
    return new CloudDisk(machine, { kernel, initramfs });
  }

  /** Boots a guest from the disk, and waits until it takes commands. */
  async boot(): Promise<CloudGuest> {
    const { kernel, initramfs } = this.#files;
    const drive = (file: string) => `file=${HERE}/${file},if=virtio,format=raw`;
    const process = this.#machine.spawn(QEMU, [
      ...["-M", "q35", "-accel", "tcg,thread=multi", "-smp", "2", "-m", "1024"],
      ...["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"],
      ...["-kernel", kernel, "-initrd", initramfs],
      ...["-append", "root=/dev/vda rw console=ttyS0 panic=-1 mitigations=off random.trust_cpu=on"],
      ...["-drive", drive("disk"), "-drive", drive("seed.iso")],
      ...["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile="],
      ...["-serial", `file:${HERE}/console`, "-serial", "stdio"],
    ]);
    try {
      await process.line((line) => line.startsWith("ready "), { timeoutMs: BOOT_TIMEOUT_MS });
    } catch (error) {
      const console = await this.#machine.readFile(`${HERE}/console`).catch(() => "");
      await process[Symbol.asyncDispose]();
      throw new Error(`the guest did not boot: ${error}\n${console.slice(-4000)}`);
    }
    return new CloudGuest(process);
  }
}

/** A running guest. Disposed of, it is shut down, so that its disk is whole. */
export class CloudGuest implements AsyncDisposable {
  readonly #process: Running;
  #next = 1;

  constructor(process: Running) {
    this.#process = process;
  }

  /** Runs a shell script in the guest; an exit code other than 0 is no exception. */
  async run(script: string): Promise<Outcome> {
    const id = this.#next++;
    const from = this.#process.lines.length;
    await this.#process.write(`run ${id} ${new TextEncoder().encode(script).toBase64()}\n`);
    const line = await this.#process.line((text) => text.startsWith(`ran ${id} `), {
      from,
      timeoutMs: RUN_TIMEOUT_MS,
    });
    const [, , code, said = ""] = line.trim().split(" ");
    const stdout = new TextDecoder().decode(Uint8Array.fromBase64(said));
    return { code: Number(code), stdout, stderr: "" };
  }

  /** Runs a shell script that must succeed; returns what it printed. */
  async must(script: string): Promise<string> {
    const { code, stdout } = await this.run(script);
    if (code !== 0) throw new Error(`in the guest: ${script}: exit ${code}: ${stdout}`);
    return stdout.trimEnd();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process.write(`run 0 ${btoa("systemctl poweroff")}\n`).catch(() => {});
    const late = setTimeout(() => this.#process.kill("SIGKILL"), BOOT_TIMEOUT_MS);
    await this.#process.status;
    clearTimeout(late);
    await this.#process[Symbol.asyncDispose]();
  }
}
