/**
 * A machine with another processor: arm64, by QEMU. Debian's kernel and libraries, the Deno of that
 * processor, and the scripts as a bundle, in an initramfs whose init runs commands and prints what came of
 * them.
 *
 * @module
 */

import { BUNDLE } from "../../lib/install/bundle.ts";
import { bundleScripts } from "./bundle.ts";
import { kept, makeBy } from "./kept.ts";
import type { Outcome } from "./machine.ts";

const QEMU = "qemu-system-aarch64";

/** Long enough for an emulated machine that shares two processors with other tests. */
const TIMEOUT_MS = 600_000;

/**
 * Makes `vmlinuz` and `root.cpio`. Nothing of the packages is run. Arguments: the directory, Deno's version.
 */
const MAKE = `
cd "$1"
mkdir root made
mmdebstrap --quiet --variant=extract --architectures=arm64 \\
  --include=busybox-static,libc6,libgcc-s1,libnftables1,linux-image-cloud-arm64 bookworm root.tar
tar -C root -xf root.tar --wildcards './bin/*' './boot/*' './lib/*' './usr/lib/aarch64-linux-gnu/*'
npm pack --silent "@deno/linux-arm64-glibc@$2" >&2
tar -xzf deno-linux-arm64-glibc-*.tgz package/deno
mv package/deno root/bin/deno
mv root/boot/vmlinuz-* made/vmlinuz
rm -rf root/boot root/lib/modules/*/kernel/{fs,sound} root/lib/modules/*/kernel/drivers/{gpu,media,scsi}
(cd root/lib/modules; for version in *; do busybox depmod -b ../.. "$version"; done)
for name in $(busybox --list); do [ -e "root/bin/$name" ] || ln -s busybox "root/bin/$name"; done
mkdir -p root/{dev,etc,proc,root,run,sbin,sys,tmp,var/lib}
(cd root; find . | busybox cpio -o -H newc >../made/root.cpio)
`;

/** Adds to it. Arguments: root.cpio, a directory with more, the result. */
const ADD = `
cp "$1" "$3"
cd "$2"
find . | busybox cpio -o -H newc >>"$3"
`;

/** A line of base64 each, so that nothing is lost on the console. */
function initOf(commands: readonly string[]): string {
  const run = (command: string, index: number) =>
    `${command} >/tmp/out 2>/tmp/err </dev/null
echo "ran ${index} $? =$(base64 -w0 /tmp/out) =$(base64 -w0 /tmp/err)"`;
  return `#!/bin/sh
export PATH=/bin HOME=/root NO_COLOR=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
echo /bin/modprobe >/proc/sys/kernel/modprobe
modprobe tun
ip link set lo up
echo nameserver 192.0.2.53 >/etc/resolv.conf
tapkit() { deno run -A --no-config /opt/tapkit/tapkit.js "$@"; }
${commands.map(run).join("\n")}
poweroff -f
`;
}

/**
 * Boots the machine, runs commands of its shell one after the other, and ends it. `tapkit NAME …` is a
 * command of tapkit's. It has no network but what they make.
 *
 * @returns what came of each
 */
export async function runOnArm64(commands: readonly string[]): Promise<readonly Outcome[]> {
  const image = await kept({
    name: "arm64",
    recipe: [MAKE, Deno.version.deno],
    async make(work) {
      console.error("mmdebstrap makes a Debian for arm64; it is kept");
      await makeBy(MAKE, work, Deno.version.deno);
      return `${work}/made`;
    },
  });
  const bundle = await bundleScripts();
  if (bundle === undefined) throw new Error("Deno cannot make a bundle here");
  const work = await Deno.makeTempDir({ prefix: "tapkit-arm64-" });
  try {
    await Deno.mkdir(`${work}/more/opt/tapkit`, { recursive: true });
    for (const name of Object.keys(BUNDLE)) {
      await Deno.copyFile(bundle.replace(/tapkit\.js$/, name), `${work}/more/opt/tapkit/${name}`);
    }
    await Deno.writeTextFile(`${work}/more/init`, initOf(commands), { mode: 0o755 });
    await makeBy(ADD, `${image}/root.cpio`, `${work}/more`, `${work}/initrd`);
    const { stdout, stderr } = await new Deno.Command(QEMU, {
      args: [
        ...["-M", "virt", "-cpu", "cortex-a72", "-smp", "2", "-m", "1536"],
        ...["-accel", "tcg,thread=multi", "-nodefaults", "-no-user-config", "-display", "none"],
        ...["-no-reboot", "-serial", "stdio", "-kernel", `${image}/vmlinuz`],
        ...["-initrd", `${work}/initrd`],
        ...["-append", "console=ttyAMA0 quiet panic=-1 rdinit=/init"],
      ],
      stdin: "null",
      signal: AbortSignal.timeout(TIMEOUT_MS),
    }).output();
    const decoder = new TextDecoder();
    const console = decoder.decode(stdout);
    const outcomes = [...console.matchAll(/^ran (\d+) (\d+) =(\S*) =(\S*)\r?$/gm)]
      .map(([, , code, out = "", err = ""]): Outcome => ({
        code: Number(code),
        stdout: decoder.decode(Uint8Array.fromBase64(out)),
        stderr: decoder.decode(Uint8Array.fromBase64(err)),
      }));
    if (outcomes.length === commands.length) return outcomes;
    throw new Error(
      `${outcomes.length} of ${commands.length}:\n${console.slice(-4000)}${decoder.decode(stderr)}`,
    );
  } finally {
    await Deno.remove(work, { recursive: true });
  }
}
