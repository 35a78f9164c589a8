/**
 * Mode dhcp-bridge: the TAP and the interface of a VM are ports of a bridge in its namespace.
 *
 * ```
 *   network ── eth0 ── br_eth0 ── vm_eth0 ── guest
 * ```
 *
 * The guest has the address and the MAC that CNI gave eth0. A bridge does not forward frames to the
 * MAC of one of its ports, so eth0 gets another MAC. Neither eth0 nor the bridge has an address.
 *
 * The bridge does not learn: with two ports, each frame leaves by the other one. From frames that a
 * hairpin port reflects, it would learn the guest's MAC at eth0, and then not forward frames to the
 * guest.
 *
 * @module
 */

import { randomMac } from "../../inet/mac.ts";
import { deleteAddress, listAddresses } from "../../netlink/address.ts";
import { createBridge, deleteLink, getLink, setBridgePort, setLink } from "../../netlink/link.ts";
import { withNetns } from "../../sys/netns.ts";
import { writeSysctl } from "../../sys/sysctl.ts";
import type { Finding } from "../../finding.ts";
import { deleteIngress } from "./redirect.ts";
import type { Wire } from "./wire.ts";

/**
 * The wire of mode dhcp-bridge.
 *
 * Equivalent to: `ip link add br_eth0 type bridge mcast_snooping 0`, `ip addr flush dev eth0`,
 * `ip link set eth0 address MAC master br_eth0`, `ip link set vm_eth0 master br_eth0`,
 * `bridge link set dev … learning off`
 */
export const innerBridge: Wire = {
  movesIdentity: true,
  hasIngress: false,

  join({ nl, netns, names, link, tap, mac }) {
    const bridge = createBridge(nl, {
      name: names.bridge,
      mac: randomMac(),
      mtu: link.mtu,
      mcastSnooping: false,
    });
    withNetns(netns, () => {
      // This deletes the IPv6 addresses and routes too. The guest's IPv6 still passes.
      for (const name of [names.bridge, names.link]) {
        writeSysctl(`net/ipv6/conf/${name}/disable_ipv6`, "1");
      }
    });
    // The kernel deletes the routes with the last address.
    for (const { address } of listAddresses(nl, { index: link.index })) {
      deleteAddress(nl, { index: link.index, address });
    }
    setLink(nl, link.index, { ...link.mac === mac ? { mac: randomMac() } : {}, master: bridge });
    setLink(nl, tap.index, { master: bridge });
    for (const { index } of [link, tap]) setBridgePort(nl, index, { learning: false });
    setLink(nl, bridge, { up: true });
  },

  part(nl, { link, tap, bridge }) {
    deleteLink(nl, bridge);
    for (const name of [tap, link]) deleteIngress(nl, name);
  },

  check({ nl, names, link, tap, mac }) {
    const bridge = getLink(nl, names.bridge);
    const object = `inner bridge "${names.bridge}"`;
    if (bridge?.kind !== "bridge") return [{ object, problem: "is missing" }];
    const found: Finding[] = [];
    if (!bridge.up) found.push({ object, problem: "is down" });
    if (bridge.bridge?.mcastSnooping !== false) found.push({ object, problem: "snoops multicast" });
    for (const port of [link, tap]) {
      if (port.master !== bridge.index) {
        found.push({ object: `"${port.name}"`, problem: `is not a port of ${object}` });
      } else if (port.bridgePort?.learning !== false) {
        found.push({ object, problem: `learns addresses behind "${port.name}"` });
      }
    }
    const inner = `interface "${link.name}"`;
    if (link.mac === mac) found.push({ object: inner, problem: `has the guest's MAC ${mac}` });
    for (const { address } of listAddresses(nl, { index: link.index })) {
      found.push({ object: inner, problem: `has the address ${address}` });
    }
    return found;
  },
};
