/**
 * Makes the golden files anew: runs `ip`, `bridge` and `tc` under strace in throwaway namespaces
 * and writes what they and the kernel said to each other. Needs root, iproute2 and strace:
 * `deno run -A tests/golden/capture.ts`, then look at the difference before it is committed.
 *
 * @module
 */

import { RTM } from "../../lib/netlink/message.ts";
import { run, trace } from "./trace.ts";

interface Case {
  readonly name: string;
  /** Shell lines that come before. */
  readonly setup?: string;
  readonly command: string;
  /** Type of the messages wanted from the answers; else what is wanted is the request. */
  readonly answers?: number;
}

const PAIR = "ip link add name v0 address 02:00:00:00:00:0a type veth " +
  "peer name v1 address 02:00:00:00:00:0b";
const BRIDGE = "ip link add name br0 address 02:00:00:00:00:01 type bridge";
const PORT = `${BRIDGE}; ${PAIR}; ip link set v0 master br0`;
const ROUTED = `${BRIDGE}; ip link set br0 up; ip address add 10.0.0.1/24 dev br0; ` +
  "ip address add fd00::1/64 dev br0 nodad";
const FILTERED = `${PAIR}; tc qdisc add dev v0 ingress`;
const REDIRECT = "tc filter add dev v0 parent ffff: handle ::1 protocol all prio 10 " +
  "u32 match u32 0 0 action mirred egress redirect dev v1";
const PROGRAM = "tc filter replace dev v0 parent ffff: handle 1 protocol all prio 5 " +
  "bpf bytecode '4,40 0 0 12,21 0 1 2048,6 0 0 2,6 0 0 4294967295' direct-action";

const CASES: readonly Case[] = [
  {
    name: "link-add-bridge",
    command: "ip link add name br0 address 02:00:00:00:00:01 mtu 1400 up " +
      "type bridge mcast_snooping 0",
  },
  {
    name: "link-add-veth",
    setup: `${BRIDGE}; ip netns add peer`,
    command: "ip link add name v0 address 02:00:00:00:00:0a mtu 1400 master br0 up " +
      "type veth peer name eth0 address 02:00:00:00:00:0b mtu 1400 netns peer",
  },
  {
    name: "link-set",
    setup: `${BRIDGE}; ${PAIR}`,
    command: "ip link set dev v0 address 02:00:00:00:00:0c mtu 1300 master br0 " +
      "alias web up promisc on",
  },
  { name: "link-set-nomaster", setup: PORT, command: "ip link set dev v0 nomaster down" },
  {
    name: "link-set-bridge-port",
    setup: PORT,
    command: "bridge link set dev v0 hairpin on learning off isolated on",
  },
  { name: "link-delete", setup: PAIR, command: "ip link delete dev v0" },
  {
    name: "link-show",
    setup: `${PORT}; ip link set v0 alias web; ip link set v0 up promisc on; ` +
      "bridge link set dev v0 hairpin on isolated on learning off; " +
      "ip netns add peer; ip link set v1 netns peer name eth0",
    command: "ip -d link show",
    answers: RTM.NEWLINK,
  },
  {
    name: "address-add-ipv4",
    setup: BRIDGE,
    command: "ip address add 10.0.0.1/24 broadcast 10.0.0.255 dev br0",
  },
  { name: "address-add-ipv6", setup: BRIDGE, command: "ip address add fd00::1/64 dev br0 nodad" },
  { name: "address-delete", setup: ROUTED, command: "ip address delete 10.0.0.1/24 dev br0" },
  { name: "address-show", setup: ROUTED, command: "ip address show", answers: RTM.NEWADDR },
  {
    name: "route-add-default",
    setup: ROUTED,
    command: "ip route add default via 10.0.0.2 src 10.0.0.1 metric 5 mtu 1400 dev br0",
  },
  { name: "route-add-link", setup: ROUTED, command: "ip route add 10.9.0.0/16 dev br0" },
  {
    name: "route-add-via-ipv6",
    setup: ROUTED,
    command: "ip route add 10.9.0.0/16 via inet6 fe80::2 dev br0",
  },
  {
    name: "route-add-table-onlink",
    setup: ROUTED,
    command: "ip route add 10.9.0.0/16 via 192.0.2.1 table 1000 dev br0 onlink",
  },
  {
    name: "route-add-ipv6",
    setup: ROUTED,
    command: "ip -6 route add 2001:db8::/32 via fd00::2 dev br0",
  },
  {
    name: "route-add-unreachable",
    setup: ROUTED,
    command: "ip route add unreachable 10.9.0.0/16 metric 7",
  },
  {
    name: "route-show",
    setup: `${ROUTED}; ip route add default via 10.0.0.2 src 10.0.0.1 metric 5 mtu 1400 dev br0; ` +
      "ip route add 10.9.0.0/16 via inet6 fe80::2 dev br0; " +
      "ip route add unreachable 10.8.0.0/16; " +
      "ip route add 10.7.0.0/16 via 192.0.2.1 dev br0 onlink table 1000",
    command: "ip -4 route show table all",
    answers: RTM.NEWROUTE,
  },
  {
    name: "route-show-ipv6",
    setup: `${ROUTED}; ip -6 route add default via fd00::2 dev br0 mtu 1400`,
    command: "ip -6 route show table all",
    answers: RTM.NEWROUTE,
  },
  { name: "qdisc-add-ingress", setup: PAIR, command: "tc qdisc add dev v0 ingress" },
  { name: "qdisc-add-clsact", setup: PAIR, command: "tc qdisc add dev v0 clsact" },
  { name: "qdisc-delete-ingress", setup: FILTERED, command: "tc qdisc delete dev v0 ingress" },
  {
    name: "qdisc-show",
    setup: `${FILTERED}; ip link set v0 up`,
    command: "tc qdisc show",
    answers: RTM.NEWQDISC,
  },
  { name: "filter-add-redirect", setup: FILTERED, command: REDIRECT },
  { name: "filter-replace-bpf", setup: FILTERED, command: PROGRAM },
  {
    name: "filter-delete",
    setup: `${FILTERED}; ${REDIRECT}`,
    command: "tc filter delete dev v0 parent ffff: prio 10",
  },
  {
    name: "filter-show",
    setup: `${FILTERED}; ${REDIRECT}; ${PROGRAM}`,
    command: "tc filter show dev v0 parent ffff:",
    answers: RTM.NEWTFILTER,
  },
];

/** A request about no link: with it, ip asks whether the kernel knows RTM_NEWLINK. */
const PROBE = /^.{32}0*$/;

/** Types of the requests that only look something up (linux/rtnetlink.h: GET is 2 modulo 4). */
function isLookup(type: number): boolean {
  return type % 4 === 2;
}

function capture(test: Case): string {
  const type = (hex: string) => parseInt(hex.slice(10, 12) + hex.slice(8, 10), 16);
  const all = trace(`ip link set lo up; ${test.setup ?? ":"}`, test.command);
  const wanted = test.answers !== undefined
    ? all.filter(({ sent, hex }) => !sent && type(hex) === test.answers)
    : all.filter(({ sent, hex }) => {
      return sent && !isLookup(type(hex)) && !PROBE.test(hex);
    });
  if (wanted.length === 0) throw new Error(`${test.name}: nothing was captured`);
  return wanted.map(({ hex }) => hex.replaceAll(/.{64}(?=.)/g, "$&\n")).join("\n\n");
}

const iproute = run("ip", ["-V"]).replace("ip utility, ", "");
const kernel = Deno.osRelease().replace(/-.*/, "");
const folder = new URL("./netlink/", import.meta.url);
Deno.mkdirSync(folder, { recursive: true });
for (const test of CASES) {
  const head = [
    `# ${test.command}`,
    `# ${
      test.answers === undefined ? "request" : "answers"
    }; ${iproute}; Linux ${kernel} ${Deno.build.arch}`,
    ...(test.setup === undefined ? [] : test.setup.split("; ").map((line) => `# after: ${line}`)),
  ];
  const text = `${head.join("\n")}\n\n${capture(test)}\n`;
  Deno.writeTextFileSync(new URL(`${test.name}.hex`, folder), text);
  console.error(test.name);
}
