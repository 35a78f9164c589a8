/**
 * A reboot of a throwaway host, which keeps its disk.
 *
 * @module
 */

import type { Host } from "./host.ts";

/**
 * Shell commands that end the host's DHCP server: while it has its lock, nobody starts another. One
 * that had just begun leaves the lock's file. The brackets keep pgrep from finding the shell itself.
 */
export const END_DHCP = `
  for pid in $(pgrep -f "[s]erve-dhcp"); do
    [ "$(readlink /proc/$pid/ns/net)" = "$(readlink /proc/self/ns/net)" ] && kill $pid || continue
    while [ -e /proc/$pid/exe ]; do sleep 0.02; done
    rm -f /var/lib/tapkit/[s]erve-dhcp.lock
  done`;

/** What a reboot takes: namespaces, links, rules, settings, processes, what is below /run, the
 * number of the boot. */
export async function reboot(host: Host): Promise<void> {
  await host.sh(`
    ${END_DHCP}
    for name in $(ip netns list | cut -d' ' -f1); do ip netns delete $name; done
    for link in ignite0 br-second; do ip link delete $link 2>/dev/null || true; done
    for link in $(ip -o link show type veth | sed -n 's/^[0-9]*: \\(veth[^@:]*\\).*/\\1/p'); do
      ip link delete $link 2>/dev/null || true # it goes by itself with its namespace
    done
    nft flush ruleset
    sysctl -qw net.ipv4.ip_forward=0
    rm -rf /run/tapkit
    boot=/proc/sys/kernel/random/boot_id
    umount $boot 2>/dev/null || true # of an earlier one
    cat /proc/sys/kernel/random/uuid >/run/boot
    mount --bind /run/boot $boot
    rm /run/boot
  `);
}
