/**
 * A disk that boots the tests' guest by itself, as the images do that distributions publish: syslinux and a
 * FAT file system, QEMU's format.
 *
 * @module
 */

import { guestImage } from "./guest-image.ts";
import { makeBy } from "./kept.ts";

const CONFIG = `DEFAULT linux
LABEL linux
KERNEL vmlinuz
INITRD initrd
APPEND console=ttyS0 quiet mitigations=off
`;

/** Arguments: the file to make, the kernel, the initramfs, syslinux's configuration. */
const MAKE = `
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
truncate -s 64M "$work/disk"
mformat -i "$work/disk" -F ::
mcopy -i "$work/disk" "$2" ::vmlinuz
mcopy -i "$work/disk" "$3" ::initrd
printf %s "$4" >"$work/syslinux.cfg"
mcopy -i "$work/disk" "$work/syslinux.cfg" ::
syslinux --install "$work/disk"
qemu-img convert -O qcow2 "$work/disk" "$1"
`;

/** Makes it. */
export async function makeBootDisk(path: string): Promise<void> {
  const { kernel, initramfs } = await guestImage();
  await makeBy(MAKE, path, kernel, initramfs, CONFIG);
}
