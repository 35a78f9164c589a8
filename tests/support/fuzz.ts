/**
 * Inputs that nobody would write, for everything that reads what others wrote: each target takes
 * an input or refuses it with the error that is meant for that, and nothing else.
 *
 * Inputs come from a seed, so what was found once is found again.
 *
 * @module
 */

import { isIP } from "node:net";
import { parseConfig } from "../../lib/cni/conflist.ts";
import { parseUdpFrame } from "../../lib/dhcp/frame.ts";
import { DhcpFormatError } from "../../lib/dhcp/options.ts";
import { decodeDhcp, encodeDhcp } from "../../lib/dhcp/packet.ts";
import { InputError, TapkitError } from "../../lib/errors.ts";
import {
  bytesToIp,
  canonicalIp,
  cidrContains,
  ipToBytes,
  isIp,
  parseCidr,
} from "../../lib/inet/ip.ts";
import { expandPorts, formatPort, parsePorts } from "../../lib/inet/ports.ts";
import { decodeAddress } from "../../lib/netlink/address.ts";
import { DecodeError } from "../../lib/netlink/errors.ts";
import { decodeFilter } from "../../lib/netlink/filter.ts";
import { decodeLink } from "../../lib/netlink/link-message.ts";
import { decodeAcknowledgement, decodeMessages } from "../../lib/netlink/message.ts";
import { decodeQdisc } from "../../lib/netlink/qdisc.ts";
import { decodeRoute } from "../../lib/netlink/route.ts";
import { dhcpTaps } from "../../lib/vm/dhcp.ts";
import { formatRecord } from "../../lib/vm/output.ts";
import { hostPaths } from "../../lib/vm/record/paths.ts";
import { recordOf } from "../../lib/vm/record/derive.ts";
import { servedVm } from "../../lib/vm/record/served.ts";
import { readVm, sidesOf } from "../../lib/vm/record/store.ts";
import type { OutputFormat } from "../../lib/vm/types.ts";
import { readGolden } from "../golden/read.ts";
import { Random } from "./random.ts";

/** One reader of foreign input. */
export interface FuzzTarget extends Disposable {
  /**
   * Makes the next input and feeds it.
   *
   * @returns whether it was taken
   * @throws what the reader must not throw, or a broken promise about what it took
   */
  once(random: Random): boolean;
}

/** The error of an input that a target should have taken, or refused otherwise. */
export class FuzzFailure extends Error {}

/** Feeds `count` inputs from a seed; returns how many were taken. */
export function fuzz(target: FuzzTarget, count: number, seed: number): number {
  const random = new Random(seed);
  let taken = 0;
  for (let index = 0; index < count; index++) {
    try {
      if (target.once(random)) taken++;
    } catch (cause) {
      const what = `input ${index} of seed ${seed}`;
      throw new FuzzFailure(`${what}: ${cause instanceof Error ? cause.message : cause}`, {
        cause,
      });
    }
  }
  return taken;
}

/** How each target is made, by name. A target is disposed after use. */
export const FUZZ_TARGETS: Readonly<Record<string, () => FuzzTarget>> = {
  "netlink messages": netlinkTarget,
  "DHCP frames": dhcpTarget,
  "conflists": conflistTarget,
  "records": recordTarget,
  "ports": portTarget,
  "addresses and prefixes": cidrTarget,
};

/** A target whose reader returns on what it takes, and throws `refusal` on the rest. */
function target<T>(
  refusal: abstract new (...args: never[]) => Error,
  make: (random: Random) => T,
  read: (input: T) => void,
  dispose: () => void = () => {},
): FuzzTarget {
  return {
    once(random) {
      const input = make(random);
      try {
        read(input);
        return true;
      } catch (error) {
        if (error instanceof refusal) return false;
        throw new FuzzFailure(`${show(input)}: ${error}`, { cause: error });
      }
    },
    [Symbol.dispose]: dispose,
  };
}

function show(input: unknown): string {
  return input instanceof Uint8Array ? input.toHex() : JSON.stringify(input);
}

function claim(condition: boolean, promise: string): void {
  if (!condition) throw new FuzzFailure(`not kept: ${promise}`);
}

function pick<T>(random: Random, list: readonly T[]): T {
  return list[random.below(list.length)]!;
}

/** Noise now and then, else one of the samples, damaged. */
function bytesFrom(samples: readonly Uint8Array[]): (random: Random) => Uint8Array<ArrayBuffer> {
  return (random) =>
    random.below(8) === 0 ? random.bytes(random.below(300)) : random.damage(pick(random, samples));
}

/** One of the samples, with pieces taken out, doubled, exchanged with others, or changed. */
function textFrom(
  samples: readonly string[],
  pieces: readonly string[],
): (random: Random) => string {
  return (random) => {
    let text = pick(random, samples);
    for (let count = random.below(4); count > 0; count--) {
      const at = random.below(text.length + 1);
      const end = at + random.below(4);
      const middle = [
        () => "",
        () => pick(random, pieces),
        () => text.slice(at, end) + text.slice(at, end),
        () => String.fromCharCode(random.below(random.below(8) === 0 ? 0x10000 : 128)),
      ][random.below(4)]!();
      text = text.slice(0, at) + middle + text.slice(end);
    }
    return text;
  };
}

const NETLINK_SAMPLES = ["link", "address", "route", "qdisc", "filter"];

function netlinkTarget(): FuzzTarget {
  const decoders = [
    ...[decodeLink, decodeAddress, decodeRoute, decodeQdisc, decodeFilter],
  ] as const;
  const samples = NETLINK_SAMPLES.flatMap((name) => readGolden(`${name}-show`));
  return target(DecodeError, bytesFrom(samples), (bytes) => {
    for (const message of decodeMessages(bytes)) {
      decodeAcknowledgement(message);
      for (const decode of decoders) {
        try {
          decode(message.payload);
        } catch (error) {
          if (!(error instanceof DecodeError)) throw error;
        }
      }
    }
  });
}

function dhcpTarget(): FuzzTarget {
  const samples = readGolden("udhcpc", "dhcp");
  return target(DhcpFormatError, bytesFrom(samples), (frame) => {
    const datagram = parseUdpFrame(frame);
    // Most damage breaks a checksum: what is behind it is read all the same.
    const message = decodeDhcp(datagram?.payload ?? frame.subarray(14 + 20 + 8));
    // No station sends from a group address, and none is written.
    if ((parseInt(message.chaddr, 16) & 1) === 1) return;
    claim(encodeDhcp(message).length > 0, "what was read can be written");
  });
}

const CONFLIST = JSON.stringify({
  cniVersion: "0.4.0",
  name: "net",
  plugins: [
    {
      type: "bridge",
      bridge: "br0",
      isGateway: true,
      ipam: { type: "host-local", ranges: [[{ subnet: "172.18.0.0/16" }]], routes: [] },
    },
    { type: "portmap", capabilities: { portMappings: true } },
  ],
});
const SINGLE = JSON.stringify({ cniVersion: "0.3.1", name: "one", type: "bridge", bridge: "br0" });
const JSON_PIECES = [
  ...["{}", "[]", "null", "true", "0", "-1", "1e999", '""', '"\\ud800"', '"__proto__":1,'],
  ...[",", ":", "{", "}", "[", "]", '"', "\\", '"type"', '"name"', '"plugins"', '"cniVersion"'],
];

function conflistTarget(): FuzzTarget {
  const path = "/etc/cni/net.d/fuzz.conflist";
  const make = textFrom([CONFLIST, SINGLE], JSON_PIECES);
  return target(TapkitError, make, (text) => {
    const list = parseConfig(text, path);
    claim(typeof list.name === "string" && list.name !== "", "a network has a name");
    claim(list.plugins.every(({ type }) => typeof type === "string"), "a plugin has a type");
  });
}

/** A record of version 1. */
export const RECORD = JSON.stringify({
  version: 1,
  vm: "web",
  id: "4b5e57f6eb2f42b9039b3d1e13929295f231749c510cbe341cd68036d9af97e2",
  networkPlugin: "cni",
  netns: "/run/netns/tapkit-web",
  interfaces: [{
    name: "eth0",
    network: "net",
    mode: "tc-redirect",
    tap: "vm_eth0",
    mac: "02:00:00:00:00:07",
    mtu: 1500,
    addresses: [{ address: "10.0.0.2/24", gateway: "10.0.0.1" }],
    routes: [{ dst: "0.0.0.0/0" }],
  }],
  dns: { nameservers: ["192.0.2.53"], search: [] },
  ports: [{ hostIP: "0.0.0.0", hostPort: 8080, vmPort: 80, protocol: "tcp" }],
  made: {
    phase: "attached",
    netnsGiven: false,
    request: { name: "web" },
    networks: [{ network: "net", containerId: "4b5e", ifName: "eth0", plugins: [] }],
    guests: [{ owner: "web/eth0", link: "ignite0", addresses: ["10.0.0.2"], ports: [] }],
  },
});

const OUTPUT_FORMATS: readonly OutputFormat[] = [
  ...["json", "env", "cmdline", "dracut", "qemu"] as const,
  ...["cloud-hypervisor", "libvirt", "firecracker", "mmds", "cloud-init"] as const,
];

function recordTarget(): FuzzTarget {
  const stateDir = Deno.makeTempDirSync({ prefix: "tapkit-fuzz-" });
  const host = hostPaths({ stateDir });
  const path = `${stateDir}/vms/web.json`;
  Deno.mkdirSync(`${stateDir}/vms`);
  Deno.writeTextFileSync(path, "");
  const pieces = [...JSON_PIECES, '"made"', '"vm"', '"version":2,', "\0"];
  return target(TapkitError, textFrom([RECORD], pieces), (text) => {
    // Some file systems write out at once what replaces the text of a file.
    Deno.removeSync(path);
    Deno.writeTextFileSync(path, text);
    for (const side of sidesOf(readVm(host, "web")!)) {
      const record = recordOf(side);
      claim(record.vm === "web" && record.version === 1, "a record is the one asked for");
      servedVm(side);
      dhcpTaps(side, { nameservers: [], search: [] });
      for (const format of OUTPUT_FORMATS) formatRecord(record, format);
    }
  }, () => Deno.removeSync(stateDir, { recursive: true }));
}

const PORTS = [
  ...["8080:80", "8080:80/udp", "127.0.0.1:8080:80", "[2001:db8::1]:8080:80/sctp"],
  ...["9000-9009:9000-9009", "0:80", "65535:1", "[::]:1-2:3-4"],
];
const PORT_PIECES = [
  ...[":", "::", "-", "/", "[", "]", ".", "0", "1", "65535", "65536", "-1", "00"],
  ...["tcp", "udp", "sctp", "TCP", "0.0.0.0", "[::1]", " ", "1e3", "0x50"],
];

function portTarget(): FuzzTarget {
  return target(InputError, textFrom(PORTS, PORT_PIECES), (text) => {
    const [mapping, ...more] = parsePorts([text]);
    claim(mapping !== undefined && more.length === 0, "one text is one mapping");
    const { range = 1, hostPort, vmPort } = mapping!;
    claim(Math.max(hostPort, vmPort) + range - 1 <= 65535 && vmPort > 0, "ports are ports");
    claim(expandPorts(mapping!).length === range, "a range has as many ports");
    const again = parsePorts([formatPort(mapping!)]);
    claim(JSON.stringify(again) === JSON.stringify([mapping]), "what is written is read again");
  });
}

const PREFIXES = [
  ...["172.18.0.0/16", "10.0.0.1/32", "0.0.0.0/0", "2001:db8::/64", "::/0", "::ffff:10.0.0.1/128"],
  ...["fe80::1/10", "1:2:3:4:5:6:7:8/127", "255.255.255.255/31"],
];
const PREFIX_PIECES = [
  ...["/", ".", ":", "::", "0", "1", "255", "256", "128", "129", "ffff", "00", "%eth0", "-", " "],
];

function cidrTarget(): FuzzTarget {
  return target(InputError, textFrom(PREFIXES, PREFIX_PIECES), (text) => {
    const address = text.split("/", 1)[0]!;
    // The other implementation takes zones.
    if (!address.includes("%")) {
      claim(isIp(address) === isIP(address), `${JSON.stringify(address)} is what node:net says`);
    }
    const cidr = parseCidr(text);
    for (const inside of [cidr.address, cidr.network, cidr.broadcast]) {
      claim(cidrContains(cidr, inside), `${inside} is in its own prefix`);
    }
    const canonical = canonicalIp(address);
    claim(bytesToIp(ipToBytes(canonical)) === canonical, "the canonical form is stable");
  });
}
