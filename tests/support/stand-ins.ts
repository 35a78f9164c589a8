/**
 * Programs in place of VMMs that Debian has no package of. They read what these would read, refuse what
 * these would refuse as far as it concerns tapkit, and boot a small guest with QEMU on the TAP.
 *
 * @module
 */

import { guestImage } from "./guest-image.ts";
import type { Host } from "./host.ts";

/** Where {@linkcode giveGuest} puts a guest's kernel and initramfs. */
const GUEST = "/run/guest";

/** Gives a host the small guest's files, which any user can read there. */
export async function giveGuest(host: Host): Promise<void> {
  const { kernel, initramfs } = await guestImage();
  await host.sh(
    `mkdir -p ${GUEST}; cp ${kernel} ${GUEST}/vmlinuz; cp ${initramfs} ${GUEST}/initramfs
    chmod 755 ${GUEST}; chmod 644 ${GUEST}/*`,
  );
}

/** Boots the guest. The shell has `tap`, `mac`, `cmdline` and `queues`. */
const BOOT = `
backend= card=
if [ "$queues" != 1 ]; then backend=",queues=$queues" card=",mq=on,vectors=$((2 * queues + 2))"; fi
exec qemu-system-x86_64 -M q35,usb=off,hpet=off,vmport=off,smm=off -accel tcg,thread=single,tb-size=32 \\
  -smp "$queues" -m 96 -nodefaults -no-user-config -display none -no-reboot -serial stdio \\
  -kernel ${GUEST}/vmlinuz -initrd ${GUEST}/initramfs \\
  -append "quiet nokaslr mitigations=off random.trust_cpu=on $cmdline" \\
  -netdev "tap,id=n0,ifname=$tap,script=no,downscript=no,vhost=off$backend" \\
  -device "virtio-net-pci,netdev=n0,mac=$mac,romfile=$card"
`;

/**
 * `firecracker --no-api --config-file FILE --metadata FILE`. The files that the configuration names must be
 * there, and readable; a drive that is not read-only must be writable.
 */
export const FIRECRACKER = `#!/bin/bash
set -eu
config= metadata=
while [ $# -gt 0 ]; do
  case $1 in
    --no-api) shift ;;
    --id) shift 2 ;;
    --config-file) config=$2; shift 2 ;;
    --metadata) metadata=$2; shift 2 ;;
    *) echo "firecracker: unknown argument $1" >&2; exit 1 ;;
  esac
done
of() { jq --exit-status --raw-output "$@"; }
for file in "$metadata" "$(of '."boot-source".kernel_image_path' "$config")"; do [ -r "$file" ]; done
of '.drives[] | select(.is_read_only | not).path_on_host' "$config" | while read -r file; do
  [ -w "$file" ]
done
id=$(of '."mmds-config".network_interfaces[0]' "$config")
of --arg id "$id" '."network-interfaces"[] | select(.iface_id == $id)' "$config" >/dev/null
tap=$(of '."network-interfaces"[0].host_dev_name' "$config")
mac=$(of '."network-interfaces"[0].guest_mac' "$config")
cmdline=$(of '."boot-source".boot_args' "$config")
queues=1
echo "firecracker runs as $(id -un) in $PWD"
${BOOT}`;

/**
 * `jailer --id ID --exec-file FILE --uid UID --gid GID --netns PATH --chroot-base-dir DIR … -- ARG…`. The
 * program runs as that user, in the namespace, in the jail's directory, which is not its root here: QEMU
 * needs files outside.
 */
export const JAILER = `#!/bin/bash
set -eu
while [ "$1" != -- ]; do
  case $1 in
    --id) id=$2 ;;
    --exec-file) exec_file=$2 ;;
    --uid) uid=$2 ;;
    --gid) gid=$2 ;;
    --netns) netns=$2 ;;
    --chroot-base-dir) base=$2 ;;
    --cgroup-version) [ "$2" = 2 ] ;;
    *) echo "jailer: unknown argument $1" >&2; exit 1 ;;
  esac
  shift 2
done
shift
name=\${exec_file##*/}
case $name in *firecracker*) ;; *) exit 1 ;; esac
# It refuses a jail that was used before.
[ ! -e "$base/$name/$id/root/$name" ]
cd "$base/$name/$id/root"
touch "$name"
exec nsenter --net="$netns" setpriv --reuid "$uid" --regid "$gid" --clear-groups \\
  --inh-caps -all --bounding-set -all env -i PATH="$PATH" "$name" --id "$id" "$@"
`;

/** `cloud-hypervisor --kernel FILE --initramfs FILE --disk … --cmdline TEXT --net VALUE…`. */
export const CLOUD_HYPERVISOR = `#!/bin/bash
set -eu
key= cmdline= tap= mac= queues=1
for word; do
  case $word in
    --*) [ "$key" != --net ] || [ -n "$tap" ]; key=$word ;;
    *)
      case $key in
        --kernel | --initramfs) [ -r "$word" ] ;;
        --disk) path=\${word#path=}; [ -r "\${path%%,*}" ] ;;
        --cmdline) cmdline=$word ;;
        --net)
          # The first interface is the guest's only one here.
          [ -z "$tap" ] || continue
          for pair in \${word//,/ }; do
            case $pair in
              tap=*) tap=\${pair#tap=} ;;
              mac=*) mac=\${pair#mac=} ;;
              num_queues=*) queues=$((\${pair#num_queues=} / 2)) ;;
              id=*) ;;
              *) echo "cloud-hypervisor: unknown $pair" >&2; exit 1 ;;
            esac
          done ;;
        --cpus | --memory | --serial | --console) ;;
        *) echo "cloud-hypervisor: unknown argument $key" >&2; exit 1 ;;
      esac ;;
  esac
done
# It refuses one that does not match.
flags=$(($(cat "/sys/class/net/$tap/tun_flags" 2>/dev/null || echo 0)))
[ "$flags" = 0 ] || [ $(((flags & 0x100) / 0x100)) = $((queues > 1)) ]
${BOOT}`;
