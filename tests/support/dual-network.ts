/**
 * A network of the bridge plugin with IPv4 and IPv6.
 *
 * @module
 */

import { NetnsGuest } from "./guest-netns.ts";
import type { Host } from "./host.ts";

/** The plugin. */
export const DUAL_BRIDGE = {
  type: "bridge",
  bridge: "cni0",
  isGateway: true,
  isDefaultGateway: true,
  ipMasq: true,
  ipam: {
    type: "host-local",
    ranges: [[{ subnet: "10.5.0.0/24" }], [{ subnet: "fd00:5::/64" }]],
  },
};

/** The list, of that plugin alone. */
export const DUAL_NETWORK = { cniVersion: "1.0.0", name: "dual", plugins: [DUAL_BRIDGE] };

/** The list, with ports that can be published. */
export const PUBLISHING_NETWORK = {
  ...DUAL_NETWORK,
  plugins: [DUAL_BRIDGE, { type: "portmap", capabilities: { portMappings: true } }],
};

/** The host's addresses on it. */
export const [GATEWAY, GATEWAY6] = ["10.5.0.1", "fd00:5::1"] as const;

/**
 * Starts a guest of that network which is configured by hand, as its record says, and may use its
 * addresses.
 *
 * @param record attach-vm's
 */
// deno-lint-ignore no-explicit-any
export async function startDualGuest(host: Host, record: any): Promise<NetnsGuest> {
  const guest = host.own(await NetnsGuest.start(host, record));
  const [ip, ip6] = record.interfaces[0].addresses.map(({ address }: { address: string }) =>
    address
  );
  await guest.sh(`
    ip addr add ${ip} dev eth0
    ip -6 addr add ${ip6} dev eth0 nodad
    ip route add default via ${GATEWAY}
    ip -6 route add default via ${GATEWAY6}`);
  await guest.settle();
  return guest;
}
