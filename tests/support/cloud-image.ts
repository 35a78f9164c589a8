/**
 * A disk with a whole Debian: systemd, cloud-init, a kernel. Made once with mmdebstrap, then kept in the
 * cache directory of the user; a guest has a copy.
 *
 * @module
 */

import { kept, makeBy } from "./kept.ts";

/** The files of such a guest. */
export interface CloudImage {
  readonly kernel: string;
  readonly initramfs: string;
  /** A raw image of an ext4 file system, without partitions. */
  readonly disk: string;
}

const PACKAGES = [
  ...["systemd-sysv", "udev", "dbus", "systemd-resolved", "netplan.io", "cloud-init"],
  ...["linux-image-cloud-amd64", "iproute2", "procps", "curl", "libnftables1"],
];

const SIZE = "2G";

/**
 * Runs what comes by the second serial port: `run ID BASE64`, a script. It is answered by
 * `ran ID CODE BASE64`, its exit code and what it printed.
 */
const AGENT = `#!/bin/bash
stty raw -echo
echo "ready $(cat /proc/sys/kernel/random/boot_id)"
while read -r _ id script; do
  said=$(base64 -d <<<"$script" | bash -eu 2>&1) && code=0 || code=$?
  echo "ran $id $code $(base64 -w 0 <<<"$said")"
done
`;

const AGENT_UNIT = `[Unit]
Description=The tests' way into this guest

[Service]
ExecStart=/opt/agent
StandardInput=tty-force
StandardOutput=tty
TTYPath=/dev/ttyS1
Restart=always

[Install]
WantedBy=multi-user.target
`;

/** Arguments: the directory to make, the packages, the agent, its unit, the disk's size. */
const BUILD = `
mkdir "$1"
cd "$1"
mmdebstrap --quiet --variant=minbase --include="$2" bookworm root
cp -L root/boot/vmlinuz-* vmlinuz
cp -L root/boot/initrd.img-* initramfs
printf %s "$3" >root/opt/agent
chmod 755 root/opt/agent
printf %s "$4" >root/etc/systemd/system/agent.service
# Otherwise cloud-init makes en_US.UTF-8, and fails.
echo 'locale: false' >root/etc/cloud/cloud.cfg.d/90-locale.cfg
ln -s ../agent.service root/etc/systemd/system/multi-user.target.wants/agent.service
printf '/dev/vda / ext4 defaults 0 1\\n' >root/etc/fstab
: >root/etc/machine-id
mke2fs -q -t ext4 -d root disk "$5"
rm -rf root
`;

/** The image, made when it is not there. */
export async function cloudImage(): Promise<CloudImage> {
  const args = [PACKAGES.join(","), AGENT, AGENT_UNIT, SIZE];
  const made = await kept({
    name: "cloud",
    recipe: [BUILD, ...args],
    async make(work) {
      console.error("mmdebstrap makes an image of Debian; it is kept");
      await makeBy(BUILD, `${work}/made`, ...args);
      return `${work}/made`;
    },
  });
  return { kernel: `${made}/vmlinuz`, initramfs: `${made}/initramfs`, disk: `${made}/disk` };
}
