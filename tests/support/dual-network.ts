/**
 * A network of the bridge plugin with IPv4 and IPv6.
 *
 * @module
 */

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
