/**
 * Attacks on guests, hosts and LANs: each is a row of a table, tried in several states of the host.
 * A row says who sends what, where it must not arrive, and what does arrive the same way.
 */

import { assertEquals } from "@std/assert";
import { ipToBytes } from "../../lib/inet/ip.ts";
import {
  type PartyName,
  Scene,
  type SceneOptions,
  type State,
  STATES,
} from "../support/attack-scene.ts";
import { type Attack, FORGED, HONEST, type Parties, reaches } from "../support/attacks.ts";
import { tryAttacks } from "../support/attacks.ts";
import { datagrams, everything4, everything6, type Way } from "../support/egress-frames.ts";
import { GATEWAY } from "../support/dual-network.ts";
import { honestFrame, loopbackFrames, unheard } from "../support/loopback.ts";
import { arp, bytes, ethernet, extension, icmpv6, ipv4, ipv6, udp } from "../support/frames.ts";

const [IP, IPV6, ARP] = [0x0800, 0x86dd, 0x0806];
const [VLAN, SERVICE_VLAN, RARP] = [0x8100, 0x88a8, 0x8035];
const [LLDP, EAPOL, LACP, MVRP] = [0x88cc, 0x888e, 0x8809, 0x88f5];
/** Lengths in the place of a type, and what 802.2 has behind it. */
const [LLC_STP, LLC_PVST, LLC] = [38, 50, [0x42, 0x42, 3]];
const [UDP, ICMPV6, HOP_BY_HOP, FRAGMENT, DESTINATION] = [17, 58, 0, 44, 60];
const [ROUTER_ADVERT, NEIGHBOUR_SOLICIT, NEIGHBOUR_ADVERT, REDIRECT] = [134, 135, 136, 137];
const MLD_REPORT = 143;
const ALL = "ff:ff:ff:ff:ff:ff";
const NOBODY_MAC = "02:00:00:00:00:99";
const [NOBODY, NOBODY6, ALL6] = ["10.5.0.77", "fd00:5::77", "ff02::1"];

const ATTACHED: readonly State[] = ["as attached"];

const DATAGRAM = udp({ source: 5000, destination: 5001 }, 40);
const frame4 = (from: string, source: string, to = ALL, destination = NOBODY) =>
  bytes(ethernet(IP, { from, to }), ipv4(DATAGRAM, { source, destination }));
const frame6 = (from: string, source: string, payload = DATAGRAM, next = UDP) =>
  bytes(ethernet(IPV6, { from, to: ALL }), ipv6(payload, next, source, ALL6));
const frameArp = (from: string, packet: Parameters<typeof arp>[0], to = ALL) =>
  bytes(ethernet(ARP, { from, to }), arp({ senderMac: from, ...packet }));
const message = (type: number, target = "::") => icmpv6(type, ipToBytes(target));

/** What a guest may say. */
const honest4 = {
  frames: (party: Parties) => [frame4(party("mal").mac, party("mal").ip)],
};
const honest6 = {
  frames: (party: Parties) => [frame6(party("mal").mac, party("mal").ip6)],
};

/** A guest in the name of another, by every protocol that has names. */
const FORGERIES: readonly Attack[] = [
  {
    name: "another's MAC",
    from: "mal",
    to: "web",
    frames: (party) => [frame4(NOBODY_MAC, party("mal").ip), frame6(NOBODY_MAC, party("mal").ip6)],
    control: honest4,
  },
  {
    name: "another's IPv4 address",
    from: "mal",
    to: "web",
    frames: (party) =>
      [GATEWAY, party("web").ip, party("box").ip, NOBODY, "0.0.0.0"]
        .map((source) => frame4(party("mal").mac, source)),
    control: honest4,
  },
  {
    name: "another's IPv6 address",
    from: "mal",
    to: "web",
    frames: (party) =>
      [party("host").ip6, party("web").ip6, NOBODY6]
        .map((source) => frame6(party("mal").mac, source)),
    control: honest6,
  },
  {
    name: "ARP in another's name",
    from: "mal",
    to: "web",
    frames: (party) => {
      const { mac, ip } = party("mal");
      return [1, 2].flatMap((operation) => [
        frameArp(mac, { senderIp: GATEWAY, operation }),
        frameArp(mac, { senderIp: party("web").ip, operation }),
        frameArp(mac, { senderMac: NOBODY_MAC, senderIp: ip, operation }),
        frameArp(mac, { senderIp: "0.0.0.0", targetIp: party("web").ip, operation }),
      ]);
    },
    control: {
      frames: (party) =>
        [party("mal").ip, "0.0.0.0"].map((senderIp) =>
          frameArp(party("mal").mac, { senderIp, targetIp: party("mal").ip })
        ),
    },
  },
  {
    name: "another's link-local address",
    from: "mal",
    to: "web",
    frames: (party) => {
      const { mac, ip6, local } = party("mal");
      return [party("host").local, party("web").local, party("box").local, "fe80::1"]
        .flatMap((other) => [
          frame6(mac, other),
          frame6(mac, local, message(NEIGHBOUR_ADVERT, other), ICMPV6),
          frame6(mac, other, message(NEIGHBOUR_ADVERT, ip6), ICMPV6),
          frame6(mac, "::", message(NEIGHBOUR_SOLICIT, other), ICMPV6),
          frame6(mac, other, extension(ICMPV6, message(MLD_REPORT)), HOP_BY_HOP),
        ]);
    },
    control: {
      frames: (party) => {
        const { mac, local } = party("mal");
        return [
          frame6(mac, local),
          frame6(mac, local, message(NEIGHBOUR_ADVERT, local), ICMPV6),
          frame6(mac, "::", message(NEIGHBOUR_SOLICIT, local), ICMPV6),
          frame6(mac, local, extension(ICMPV6, message(MLD_REPORT)), HOP_BY_HOP),
        ];
      },
    },
  },
  {
    name: "a datagram of nobody",
    from: "mal",
    to: "web",
    frames: (party) => [frame6(party("mal").mac, "::")],
    control: honest6,
  },
  ...(["mal", "loose", "bare"] as const).map((from): Attack => ({
    name: `${from} as a router or a switch`,
    from,
    to: "web",
    frames: (party) => {
      const { mac, local, ip } = party(from);
      const routers = [ROUTER_ADVERT, REDIRECT].flatMap((type) => [
        frame6(mac, local, message(type), ICMPV6),
        frame6(mac, local, extension(ICMPV6, message(type)), DESTINATION),
        frame6(mac, local, extension(ICMPV6, message(type)), HOP_BY_HOP),
        frame6(mac, local, bytes([ICMPV6, 0, 0, 0, 0, 0, 0, 1], message(type)), FRAGMENT),
      ]);
      // Not to the group addresses that a bridge keeps for itself.
      const switches = [LLDP, EAPOL, LACP, MVRP, RARP, LLC_STP, LLC_PVST].map((type) =>
        bytes(ethernet(type, { from: mac, to: ALL }), LLC, new Uint8Array(60))
      );
      const tagged = [[VLAN], [SERVICE_VLAN, VLAN]].map((tags) =>
        bytes(ethernet(IP, { from: mac, to: ALL }, tags), ipv4(DATAGRAM, { source: ip }))
      );
      return [...routers, ...switches, ...tagged];
    },
    control: {
      frames: (party) => {
        const { mac, ip, ip6, local } = party(from);
        return [frame4(mac, ip), frame6(mac, ip6), frame6(mac, local)];
      },
    },
  })),
  {
    name: "a bare guest as another",
    from: "bare",
    to: "web",
    frames: (party) => {
      const { mac, ip, local } = party("bare");
      return [
        frame4(NOBODY_MAC, ip),
        frameArp(mac, { senderMac: NOBODY_MAC, senderIp: ip, operation: 2 }),
        frame6(mac, party("host").local),
        frame6(mac, local, message(NEIGHBOUR_ADVERT, party("host").local), ICMPV6),
      ];
    },
    control: {
      frames: (party) => {
        const { mac, ip, local } = party("bare");
        return [
          frame4(mac, ip),
          frameArp(mac, { senderIp: ip, operation: 2 }),
          frame6(mac, local, message(NEIGHBOUR_ADVERT, local), ICMPV6),
        ];
      },
    },
  },
  {
    name: "a neighbour advertisement for another",
    from: "mal",
    to: "web",
    frames: (party) =>
      [party("host").ip6, party("web").ip6].map((target) =>
        frame6(party("mal").mac, party("mal").local, message(NEIGHBOUR_ADVERT, target), ICMPV6)
      ),
    control: {
      frames: (party) => {
        const { mac, ip6, local } = party("mal");
        return [frame6(mac, local, message(NEIGHBOUR_ADVERT, ip6), ICMPV6)];
      },
    },
  },
];

/** Past the isolation of a guest. */
const ISOLATION: readonly Attack[] = [
  ...(["web", "box"] as const).flatMap((neighbour): Attack[] => [
    {
      name: `alone to ${neighbour}, over the bridge`,
      from: "alone",
      to: neighbour,
      states: ATTACHED,
      frames: (party) => {
        const { mac, ip } = party("alone");
        return [frame4(mac, ip, party(neighbour).mac, party(neighbour).ip), frame4(mac, ip)];
      },
      control: {
        from: "mal",
        frames: (party) => {
          const { mac, ip } = party("mal");
          return [frame4(mac, ip, party(neighbour).mac, party(neighbour).ip)];
        },
      },
    },
    {
      name: `${neighbour} to alone, connecting`,
      from: neighbour,
      states: ATTACHED,
      attempt: (scene) => reaches(scene, neighbour, `http://${scene.party("alone").ip}/`),
      control: (scene) => reaches(scene, "host", `http://${scene.party("alone").ip}/`),
    },
  ]),
];

const way = (party: Parties, from: PartyName, mark: Uint8Array): Way => {
  return { from: party(from), by: party("host"), to: party("lan"), mark };
};

/** Past the egress rules of a guest. */
const EGRESS: readonly Attack[] = [
  {
    name: "all IPv4 protocols, ICMP types and TCP flags",
    from: "held",
    to: "lan",
    routed: true,
    states: ATTACHED,
    frames: (party) => everything4(way(party, "held", FORGED)),
    control: { from: "mal", frames: (party) => datagrams(way(party, "mal", HONEST)) },
  },
  {
    name: "all ICMPv6 types and IPv6 headers",
    from: "held",
    to: "lan",
    routed: true,
    states: ATTACHED,
    frames: (party) => everything6(way(party, "held", FORGED)),
    control: { from: "mal", frames: (party) => datagrams(way(party, "mal", HONEST)) },
  },
];

/** To servers of the host's 127.0.0.1, which a published port opens the bridge to. */
const LOOPBACK: readonly Attack[] = (["mal", "box"] as const).map((from) => ({
  name: `${from} to the host's 127.0.0.0/8, plain and behind VLAN tags`,
  from,
  attempt: (scene) => {
    const { mac, ip } = scene.party(from);
    return comesIn(scene, from, loopbackFrames(mac, scene.party("host").mac, ip));
  },
  control: (scene) => {
    const { mac, ip } = scene.party(from);
    return comesIn(scene, from, [honestFrame(mac, scene.party("host").mac, ip, GATEWAY)]);
  },
}));

/** Whether the host hears a datagram, on whichever of its addresses. */
async function comesIn(scene: Scene, from: PartyName, frames: readonly Uint8Array[]) {
  const before = await unheard(scene.host);
  for (const frame of frames) scene.party(from).tap.send(frame);
  await scene.fence(from);
  return await unheard(scene.host) > before;
}

const ATTACKS = [...FORGERIES, ...ISOLATION, ...EGRESS, ...LOOPBACK];

const SCENES: readonly SceneOptions[] = [
  { mode: "tc-redirect", firewall: "nftables", bridgeNetfilter: false },
  { mode: "dhcp-bridge", firewall: "iptables", bridgeNetfilter: true },
];

for (const options of SCENES) {
  const { mode, firewall } = options;
  Deno.test(`attach-vm: attacks (${mode}, ${firewall})`, async (t) => {
    await using scene = await Scene.create(options);
    for (const state of Object.keys(STATES) as State[]) {
      await t.step(state, async () => {
        assertEquals(await tryAttacks(scene, ATTACKS, state), []);
        await scene.mend();
      });
    }
  });
}
