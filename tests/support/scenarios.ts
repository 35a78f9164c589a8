/**
 * The commands that are cut off, and how often the ordinary run does it on which backend.
 *
 * @module
 */

import type { Row } from "./crash.ts";
import { END_DHCP } from "./reboot.ts";

const ATTACH = ["attach-vm", "web", "--ports", "8080:80", "@"] as const;
const REPORTED = ["attach-vm", "web", "--ports", "9090:80", "@"] as const;
const BY_BRIDGE = [...ATTACH, "--mode", "dhcp-bridge"] as const;
const POLICED = [...ATTACH, "--isolated", "--deny-egress", "169.254.169.254/32"] as const;
const SAME = ["attach-vm", "web"] as const;
const MAP = ["map-port", "web", "9090:80", "9000-9002:1-3/udp", "0:81"] as const;
const UNMAP = ["map-port", "web", "--remove", "9090:80", "9001:2/udp", "8080:80"] as const;
const CUT_ETH0 = "ip -n tapkit-web link delete eth0";
const CUT_TAP = "ip -n tapkit-web link delete vm_eth0";
// The server tidies up too, so that it is never certain who comes to an effect.
const NO_SERVER = END_DHCP;
const TARGET = "192.0.2.2";

/** What attaches. */
export const ATTACHING: readonly Row[] = [
  {
    scenario: { name: "attach", command: ATTACH },
    on: {
      nftables: 12,
      iptablesNft: 40,
      iptablesLegacy: 40,
      dropPolicy: 40,
      executed: 40,
      docker: 16,
      twoNetworks: 50,
    },
  },
  {
    scenario: { name: "attach at an address", command: [...ATTACH, "--ip", "10.32.0.77"] },
    on: { weave: 50 },
  },
  {
    scenario: { name: "run a VMM", command: [...ATTACH, "--", "true"], again: [ATTACH] },
    on: { nftables: 50 },
  },
  {
    scenario: { name: "attach by a bridge", command: BY_BRIDGE },
    on: { nftables: 40 },
  },
  {
    scenario: { name: "attach with a policy", command: POLICED },
    on: { nftables: 40, iptablesNft: 80 },
  },
  {
    scenario: {
      name: "restore",
      command: ["attach-vm", "--restore"],
      prepare: [ATTACH, "reboot"],
      keeps: true,
    },
    on: { nftables: 50, executed: 80, docker: 40 },
  },
];

/** What changes or mends what is attached. */
export const CHANGING: readonly Row[] = [
  {
    scenario: { name: "other ports", command: REPORTED, prepare: [ATTACH], keeps: true },
    on: { nftables: 8, iptablesNft: 12, iptablesLegacy: 12, dropPolicy: 12, executed: 12 },
  },
  {
    scenario: {
      name: "mend",
      command: SAME,
      prepare: [ATTACH, CUT_ETH0],
      keeps: true,
      broken: true,
    },
    on: { nftables: 32, iptablesNft: 80, executed: 80, docker: 40, weave: 60, twoNetworks: 80 },
  },
  {
    scenario: {
      name: "mend the TAP",
      command: SAME,
      prepare: [ATTACH, CUT_TAP],
      keeps: true,
      broken: true,
    },
    on: { nftables: 8, executed: 16 },
  },
  {
    scenario: {
      name: "mend with other ports",
      command: REPORTED,
      prepare: [ATTACH, CUT_ETH0],
      keeps: true,
      broken: true,
    },
    on: { nftables: 31 },
  },
  {
    scenario: {
      name: "another policy",
      command: ["attach-vm", "web", "--no-isolated", "--no-antispoof", "--deny-egress", "none"],
      prepare: [POLICED],
      keeps: true,
    },
    on: { nftables: 6 },
  },
  {
    scenario: {
      name: "map ports",
      command: MAP,
      prepare: [ATTACH],
      again: [SAME, MAP],
      keeps: true,
    },
    on: { nftables: 3, iptablesNft: 6, iptablesLegacy: 6, executed: 6, docker: 12 },
  },
  {
    scenario: {
      name: "map ports to an address",
      command: ["map-port", "--to", TARGET, "9090:80"],
      check: ["map-port", "--to", TARGET, "--check"],
      remove: ["map-port", "--to", TARGET, "--remove", "9090:80"],
    },
    on: { nftables: 4, iptablesNft: 6 },
  },
  {
    scenario: {
      name: "map more ports to an address, then fewer",
      command: ["map-port", "--to", TARGET, "9090:80"],
      prepare: [["map-port", "--to", TARGET, "8080:80", "8081:81"]],
      again: [
        ["map-port", "--to", TARGET, "--remove", "8080:80"],
        ["map-port", "--to", TARGET, "--remove", "9090:80"],
      ],
      check: ["map-port", "--to", TARGET, "--check"],
      remove: ["map-port", "--to", TARGET, "--remove", "8080:80", "8081:81", "9090:80"],
    },
    on: { nftables: 2, iptablesNft: 6 },
  },
];

/** What takes away. */
export const REMOVING: readonly Row[] = [
  {
    scenario: {
      name: "remove",
      command: ["attach-vm", "web", "--remove"],
      prepare: [ATTACH, NO_SERVER],
      again: [ATTACH],
    },
    on: {
      nftables: 12,
      iptablesNft: 20,
      iptablesLegacy: 20,
      dropPolicy: 20,
      executed: 20,
      docker: 12,
      weave: 20,
      twoNetworks: 30,
    },
  },
  {
    scenario: {
      name: "remove by a bridge",
      command: ["attach-vm", "web", "--remove"],
      prepare: [BY_BRIDGE, NO_SERVER],
      again: [BY_BRIDGE],
    },
    on: { nftables: 24 },
  },
  {
    scenario: {
      name: "remove with a policy",
      command: ["attach-vm", "web", "--remove"],
      prepare: [POLICED, NO_SERVER],
      again: [POLICED],
    },
    on: { nftables: 24, iptablesNft: 40 },
  },
  {
    scenario: {
      name: "remove several",
      several: true,
      command: ["attach-vm", "web", "api", "--remove"],
      prepare: [ATTACH, ["attach-vm", "api", "@"], NO_SERVER],
      again: [ATTACH],
      remove: ["attach-vm", "web", "api", "--remove"],
    },
    on: { nftables: 12, executed: 40 },
  },
  {
    scenario: {
      name: "remove several, then collect",
      several: true,
      command: ["attach-vm", "web", "api", "--remove"],
      prepare: [ATTACH, ["attach-vm", "api", "@"], NO_SERVER],
      again: [["attach-vm", "--gc"], ["attach-vm", "--all", "--remove"]],
      ends: "gone",
      remove: ["attach-vm", "web", "api", "--remove"],
    },
    on: { nftables: 20 },
  },
  {
    scenario: {
      name: "collect",
      command: ["attach-vm", "--gc"],
      prepare: [ATTACH, NO_SERVER, "ip netns delete tapkit-web"],
      ends: "gone",
    },
    on: { nftables: 10, executed: 20, docker: 12 },
  },
  {
    scenario: {
      name: "unmap ports",
      command: UNMAP,
      prepare: [ATTACH, ["map-port", "web", "9090:80", "9000-9002:1-3/udp"]],
      again: [SAME, UNMAP],
      keeps: true,
    },
    on: { nftables: 3, iptablesNft: 6, executed: 8 },
  },
];

/** All of them. */
export const SCENARIOS: readonly Row[] = [...ATTACHING, ...CHANGING, ...REMOVING];
