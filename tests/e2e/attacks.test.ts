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
import {
  datagrams,
  everything4,
  everything6,
  opening4,
  opening6,
  type Way,
} from "../support/egress-frames.ts";
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
const [MLD_QUERY, MLD_REPORT, MRD_ADVERT] = [130, 143, 151];
const [IGMP, IGMP_QUERY, PIM, PIM_HELLO] = [2, 0x11, 103, 0x20];
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
      const multicast = [
        frame6(mac, local, extension(ICMPV6, message(MLD_QUERY)), HOP_BY_HOP),
        frame6(mac, local, extension(ICMPV6, message(MRD_ADVERT)), HOP_BY_HOP),
        ...[[IGMP, IGMP_QUERY], [PIM, PIM_HELLO]].map(([protocol, type]) =>
          bytes(
            ethernet(IP, { from: mac, to: ALL }),
            ipv4(bytes([type!, 0, 0, 0, 0, 0, 0, 0]), {
              ...{ protocol: protocol!, source: ip, destination: NOBODY },
            }),
          )
        ),
      ];
      return [...routers, ...switches, ...tagged, ...multicast];
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

/** Datagrams and questions of one party to another, to its MAC and by way of `by`. */
const approaches = (
  party: Parties,
  { from, to, by = to, mark }: { from: PartyName; to: PartyName; by?: PartyName; mark: Uint8Array },
): Uint8Array[] => {
  const [sender, receiver] = [party(from), party(to)];
  const payload = bytes(udp({ source: 5000, destination: 5001 }, 8 + mark.length));
  payload.set(mark, 8);
  const macs = { from: sender.mac, to: party(by).mac };
  const solicit = bytes(message(NEIGHBOUR_SOLICIT, receiver.ip6), mark);
  return [
    bytes(ethernet(IP, macs), ipv4(payload, { source: sender.ip, destination: receiver.ip })),
    bytes(ethernet(IPV6, macs), ipv6(payload, UDP, sender.ip6, receiver.ip6)),
    bytes(ethernet(IPV6, macs), ipv6(payload, UDP, sender.ip6, receiver.local)),
    bytes(ethernet(IPV6, macs), ipv6(payload, UDP, sender.local, receiver.local)),
    bytes(ethernet(IPV6, macs), ipv6(solicit, ICMPV6, sender.ip6, receiver.ip6)),
    // To addresses that are nobody's here: whoever listens hears them.
    bytes(ethernet(IP, macs), ipv4(payload, { source: sender.ip, destination: "203.0.113.9" })),
    bytes(ethernet(IPV6, macs), ipv6(payload, UDP, sender.ip6, "2001:db8:9::9")),
    ...[1, 2].map((operation) =>
      bytes(
        frameArp(sender.mac, { senderIp: sender.ip, targetIp: receiver.ip, operation }, macs.to),
        mark,
      )
    ),
  ];
};
/** The same to all, which a bridge floods. */
const calls = (party: Parties, from: PartyName, mark: Uint8Array): Uint8Array[] => {
  const { mac, ip, ip6, local } = party(from);
  const payload = bytes(udp({ source: 5353, destination: 5353 }, 8 + mark.length));
  payload.set(mark, 8);
  const group = { from: mac, to: "33:33:00:00:00:fb" };
  return [
    ...["10.5.0.255", "255.255.255.255", "224.0.0.251"].map((destination) =>
      bytes(ethernet(IP, { from: mac, to: ALL }), ipv4(payload, { source: ip, destination }))
    ),
    ...[ip6, local].map((source) =>
      bytes(ethernet(IPV6, group), ipv6(payload, UDP, source, "ff02::fb"))
    ),
    bytes(frameArp(mac, { senderIp: ip, targetIp: ip }), mark),
  ];
};

/** Past the isolation of a guest. */
const ISOLATION: readonly Attack[] = [
  ...(["web", "box"] as const).flatMap((neighbour): Attack[] => [
    {
      name: `alone to ${neighbour}, over the bridge, by the gateway's MAC, and to all`,
      from: "alone",
      to: neighbour,
      routed: true,
      frames: (party) => [
        ...approaches(party, { from: "alone", to: neighbour, mark: FORGED }),
        ...approaches(party, { from: "alone", to: neighbour, by: "host", mark: FORGED }),
        ...calls(party, "alone", FORGED),
      ],
      control: {
        from: "mal",
        frames: (party) => [
          ...approaches(party, { from: "mal", to: neighbour, mark: HONEST }),
          ...calls(party, "mal", HONEST),
        ],
      },
    },
    {
      name: `${neighbour} to alone, over the bridge, by the gateway's MAC, and to all`,
      from: neighbour,
      to: "alone",
      routed: true,
      frames: (party) => [
        ...approaches(party, { from: neighbour, to: "alone", mark: FORGED }),
        ...approaches(party, { from: neighbour, to: "alone", by: "host", mark: FORGED }),
        ...calls(party, neighbour, FORGED),
      ],
      control: {
        from: "host",
        frames: (party) => approaches(party, { from: "host", to: "alone", mark: HONEST }),
      },
    },
    {
      name: `${neighbour} to alone, connecting`,
      from: neighbour,
      attempt: (scene) => reaches(scene, neighbour, `http://${scene.party("alone").ip}/`),
      control: (scene) => reaches(scene, "host", `http://${scene.party("alone").ip}/`),
    },
  ]),
  {
    name: "box to alone, with the gateway's and other addresses",
    from: "box",
    to: "alone",
    routed: true,
    frames: (party) => {
      const { mac } = party("box");
      const to = party("alone");
      const payload = bytes(udp({ source: 5000, destination: 5001 }, 16));
      payload.set(FORGED, 8);
      const macs = { from: mac, to: to.mac };
      return [
        ...[GATEWAY, "203.0.113.9", to.ip].map((source) =>
          bytes(ethernet(IP, macs), ipv4(payload, { source, destination: to.ip }))
        ),
        ...[party("host").ip6, party("host").local, "2001:db8:9::9"].map((source) =>
          bytes(ethernet(IPV6, macs), ipv6(payload, UDP, source, to.ip6))
        ),
        bytes(frameArp(mac, { senderIp: GATEWAY, targetIp: to.ip, operation: 2 }, to.mac), FORGED),
      ];
    },
    control: {
      from: "host",
      frames: (party) => approaches(party, { from: "host", to: "alone", mark: HONEST }),
    },
  },
];

const way = (party: Parties, from: PartyName, mark: Uint8Array): Way => {
  return { from: party(from), by: party("host"), to: party("lan"), mark };
};

/** Past the egress rules of a guest. */
const EGRESS: readonly Attack[] = [
  {
    name: "all that opens something",
    from: "held",
    to: "lan",
    routed: true,
    frames: (party) =>
      [opening4, opening6].flatMap((opening) => opening(way(party, "held", FORGED))),
    control: { from: "mal", frames: (party) => datagrams(way(party, "mal", HONEST)) },
  },
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

/** From the LAN in the name of a guest, to the published port of another. */
const ELSEWHERE: readonly Attack[] = ([4, 6] as const).map((family) => ({
  name: `a guest's IPv${family} address from the LAN, to a published port`,
  from: "lan",
  states: ATTACHED,
  attempt: (scene) => arrivesAs(scene, "mal", family),
  control: (scene) => arrivesAs(scene, "lan", family),
}));

/** Whether a connection of the LAN's reaches the guest under an address. */
async function arrivesAs(scene: Scene, name: PartyName, family: 4 | 6): Promise<boolean> {
  const [lan, web, as] = [scene.party("lan"), scene.party("web"), scene.party(name)];
  const [source, target, port] = family === 4
    ? [as.ip, web.ip, "192.0.2.1"]
    : [as.ip6, web.ip6, "2001:db8::1"];
  const forged = name !== "lan";
  const header = bytes(ipToBytes(source), ipToBytes(target)).toHex();
  const arrived = () => web.tap.heard.filter((frame) => frame.includes(header)).length;
  const before = arrived();
  if (forged) {
    await lan.machine.sh(`
      ip -${family} addr add ${source} dev lo ${family === 6 ? "nodad" : ""}
      ip -${family} route add ${port} dev eth0 src ${source}`);
  }
  const host = family === 4 ? port : `[${port}]`;
  await lan.machine.fetch(`http://${host}:8080/`, { timeoutSeconds: 1 });
  if (forged) {
    await lan.machine.sh(`
      ip -${family} route del ${port} dev eth0 src ${source}
      ip -${family} addr del ${source} dev lo`);
  }
  return arrived() > before;
}

const ATTACKS = [...FORGERIES, ...ISOLATION, ...EGRESS, ...LOOPBACK, ...ELSEWHERE];

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
