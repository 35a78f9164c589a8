/**
 * What a guest can be tried on without tapkit: a namespace with a TAP, and servers of busybox on
 * the TAP's own address.
 */

import type { GuestRecord } from "./guest-netns.ts";
import type { Machine } from "./machine.ts";

/**
 * Makes the namespace `vm` with the TAP `vm_eth0`, whose host side is 10.99.0.1/24 and serves
 * DHCP (10.99.0.2) and, on port 8080, `from the host`.
 */
export async function serveTap(
  host: Machine,
  { vm, mac }: { vm: string; mac: string },
): Promise<GuestRecord> {
  await host.sh(`
    ip netns add ${vm}
    ip -n ${vm} link set lo up
    ip -n ${vm} tuntap add vm_eth0 mode tap
    ip -n ${vm} address add 10.99.0.1/24 dev vm_eth0
    ip -n ${vm} link set vm_eth0 up
    mkdir -p /run/page
    echo "from the host" >/run/page/index.html
    : >/run/leases
  `);
  await host.writeFile(
    "/run/udhcpd.conf",
    `interface vm_eth0
start 10.99.0.2
end 10.99.0.2
lease_file /run/leases
static_lease ${mac} 10.99.0.2
option subnet 255.255.255.0
option router 10.99.0.1
option dns 10.99.0.53
option search example.test
option hostname ${vm}
option mtu 1400
option lease 3600
option staticroutes 10.98.0.0/16 10.99.0.7, 0.0.0.0/0 10.99.0.1
`,
  );
  const options = { netns: vm };
  host.spawn("busybox", ["udhcpd", "-f", "-I", "10.99.0.1", "/run/udhcpd.conf"], options);
  host.spawn("busybox", ["httpd", "-f", "-p", "8080", "-h", "/run/page"], options);
  return { vm, netns: `/run/netns/${vm}`, interfaces: [{ tap: "vm_eth0", mac }] };
}
