import { assert, assertEquals, assertThrows } from "@std/assert";
import { parseUdpFrame } from "../../lib/dhcp/frame.ts";
import { type DhcpGuest, LINK_LOCAL_SERVER, prepareLease } from "../../lib/dhcp/lease.ts";
import {
  DhcpFormatError,
  DhcpOption,
  type DhcpOptions,
  DhcpType,
  optionIp,
  optionU16be,
  optionU8,
  u16be,
} from "../../lib/dhcp/options.ts";
import { BootpOp, decodeDhcp, type DhcpMessage, encodeDhcp } from "../../lib/dhcp/packet.ts";
import { type DhcpReply, respond } from "../../lib/dhcp/responder.ts";
import { InputError } from "../../lib/errors.ts";
import { bytesToIp, ipToBytes } from "../../lib/inet/ip.ts";
import { readGolden } from "../golden/read.ts";
import { decodeClasslessRoutes, decodeDomainSearch, optionU32be } from "../support/dhcp-options.ts";
import { Random } from "../support/random.ts";

const GUEST: DhcpGuest = {
  mac: "02:00:00:00:00:0A",
  address: "172.18.0.2/16",
  gateway: "172.18.0.1",
  routes: [],
  nameservers: ["127.0.0.53", "192.0.2.53", "::1", "2001:db8::53", "0.0.0.0", "192.0.2.54"],
  search: ["example.org", "lab.example.org"],
  hostname: "web",
  mtu: 1400,
};
const SERVER = "172.18.0.1";

interface Request extends Partial<Omit<DhcpMessage, "options">> {
  readonly server?: string;
  readonly wanted?: string;
  readonly asked?: readonly number[];
  readonly maximum?: number;
}

function request(type: number | undefined, request: Request = {}): DhcpMessage {
  const { server, wanted, asked, maximum, ...fields } = request;
  const options = new Map<number, Uint8Array>();
  if (type !== undefined) options.set(DhcpOption.MESSAGE_TYPE, Uint8Array.of(type));
  if (server !== undefined) options.set(DhcpOption.SERVER_IDENTIFIER, ipToBytes(server));
  if (wanted !== undefined) options.set(DhcpOption.REQUESTED_ADDRESS, ipToBytes(wanted));
  if (asked !== undefined) options.set(DhcpOption.PARAMETER_REQUEST_LIST, Uint8Array.from(asked));
  if (maximum !== undefined) options.set(DhcpOption.MAXIMUM_MESSAGE_SIZE, u16be(maximum));
  return {
    op: BootpOp.REQUEST,
    xid: 0x12345678,
    secs: 7,
    hops: 0,
    broadcast: false,
    ciaddr: "0.0.0.0",
    yiaddr: "0.0.0.0",
    siaddr: "0.0.0.0",
    giaddr: "0.0.0.0",
    chaddr: "02:00:00:00:00:0a",
    sname: "",
    file: "",
    ...fields,
    options,
  };
}

function replyTo(message: DhcpMessage, changes: Partial<DhcpGuest> = {}): DhcpReply {
  const answer = respond(message, prepareLease({ ...GUEST, ...changes }));
  assert("reply" in answer, answer.outcome);
  return answer;
}

/** The options of the offer, as they come off the wire. */
function offered(changes: Partial<DhcpGuest>, asked?: readonly number[]): DhcpOptions {
  const discover = request(DhcpType.DISCOVER, asked === undefined ? {} : { asked });
  const { reply, maximumSize } = replyTo(discover, changes);
  return decodeDhcp(encodeDhcp(reply, maximumSize)).options;
}

function ips(value: Uint8Array | undefined): string[] {
  const addresses: string[] = [];
  for (let index = 0; index < (value?.length ?? 0); index += 4) {
    addresses.push(bytesToIp(value!.subarray(index, index + 4)));
  }
  return addresses;
}

const text = (value: Uint8Array | undefined) => new TextDecoder().decode(value);

Deno.test("respond: offers the guest's address and all its parameters", () => {
  const { outcome, reply, destination } = replyTo(request(DhcpType.DISCOVER));
  assertEquals(outcome, "offered");
  assertEquals(destination, { ip: "172.18.0.2", port: 68, broadcast: false });
  assertEquals([reply.op, reply.xid, reply.secs], [BootpOp.REPLY, 0x12345678, 0]);
  assertEquals([reply.yiaddr, reply.ciaddr, reply.siaddr], ["172.18.0.2", "0.0.0.0", "0.0.0.0"]);
  assertEquals(reply.chaddr, "02:00:00:00:00:0a");
  const options = offered({});
  assertEquals(optionU8(options, DhcpOption.MESSAGE_TYPE), DhcpType.OFFER);
  assertEquals(optionIp(options, DhcpOption.SERVER_IDENTIFIER), SERVER);
  assertEquals(optionU32be(options, DhcpOption.LEASE_TIME), 0xffffffff);
  assertEquals(optionIp(options, DhcpOption.SUBNET_MASK), "255.255.0.0");
  assertEquals(ips(options.get(DhcpOption.ROUTER)), ["172.18.0.1"]);
  assertEquals(ips(options.get(DhcpOption.DOMAIN_NAME_SERVER)), ["192.0.2.53", "192.0.2.54"]);
  assertEquals(optionIp(options, DhcpOption.BROADCAST_ADDRESS), "172.18.255.255");
  assertEquals(text(options.get(DhcpOption.HOST_NAME)), "web");
  assertEquals(text(options.get(DhcpOption.DOMAIN_NAME)), "example.org");
  assertEquals(decodeDomainSearch(options.get(DhcpOption.DOMAIN_SEARCH)!), GUEST.search);
  assertEquals(optionU16be(options, DhcpOption.INTERFACE_MTU), 1400);
  for (const code of [58, 59, 121, 249]) assertEquals(options.has(code), false, String(code));
});

Deno.test("respond: gives what is asked for, and what no client can do without", () => {
  const mandatory = [53, 54, 51, 1, 3];
  assertEquals([...offered({}, []).keys()], mandatory);
  assertEquals([...offered({}, [12, 6, 43]).keys()], [...mandatory, 6, 12]);
  const finite = { leaseSeconds: 3600 };
  assertEquals([...offered(finite, []).keys()], [53, 54, 51, 58, 59, 1, 3]);
});

Deno.test("respond: a finite lease has times of renewal and rebinding", () => {
  const options = offered({ leaseSeconds: 3600 });
  const times = [DhcpOption.LEASE_TIME, DhcpOption.RENEWAL_TIME, DhcpOption.REBINDING_TIME];
  assertEquals(times.map((code) => optionU32be(options, code)), [3600, 1800, 3150]);
});

Deno.test("respond: a guest told little is told little", () => {
  const bare = { nameservers: ["127.0.0.1"], search: ["."], hostname: "", mtu: 0 };
  const options = offered({ ...bare, gateway: undefined, address: "10.0.0.1/31" });
  assertEquals([...options.keys()], [53, 54, 51, 1]);
  assertEquals(optionIp(options, DhcpOption.SERVER_IDENTIFIER), LINK_LOCAL_SERVER);
  assertEquals(offered({ hostname: "a..b" }).has(DhcpOption.HOST_NAME), false);
});

Deno.test("respond: REQUEST in each of the client's states", () => {
  const own = "172.18.0.2";
  const cases: readonly [name: string, request: Request, outcome: string][] = [
    ["SELECTING", { server: SERVER, wanted: own }, "acked"],
    ["SELECTING another server", { server: "172.18.0.9", wanted: own }, "ignored"],
    ["SELECTING another server's address", { server: "172.18.0.9", wanted: "10.0.0.1" }, "ignored"],
    ["SELECTING another address", { server: SERVER, wanted: "172.18.0.3" }, "naked"],
    ["INIT-REBOOT", { wanted: own }, "acked"],
    ["INIT-REBOOT elsewhere", { wanted: "10.1.2.3" }, "naked"],
    ["RENEWING", { ciaddr: own }, "acked"],
    ["RENEWING another address", { ciaddr: "172.18.0.3" }, "naked"],
    ["none", {}, "ignored"],
    ["of another client", { wanted: own, chaddr: "02:00:00:00:00:0b" }, "ignored"],
  ];
  for (const [name, fields, outcome] of cases) {
    const answer = respond(request(DhcpType.REQUEST, fields), prepareLease(GUEST));
    assertEquals(answer.outcome, outcome, name);
  }
});

Deno.test("respond: an acknowledgement is the offer again", () => {
  const [offer, ack] = [
    replyTo(request(DhcpType.DISCOVER)).reply,
    replyTo(request(DhcpType.REQUEST, { server: SERVER, wanted: "172.18.0.2" })).reply,
  ];
  const rest = (options: DhcpOptions) => [...options].filter(([code]) => code !== 53);
  assertEquals(rest(ack.options), rest(offer.options));
  assertEquals(ack.yiaddr, offer.yiaddr);
  assertEquals(optionU8(ack.options, DhcpOption.MESSAGE_TYPE), DhcpType.ACK);
});

Deno.test("respond: a refusal carries no address and goes to everybody", () => {
  const wrong = request(DhcpType.REQUEST, { ciaddr: "172.18.0.3" });
  const { reply, destination } = replyTo(wrong);
  assertEquals(destination, { ip: "255.255.255.255", port: 68, broadcast: true });
  assertEquals([reply.yiaddr, reply.ciaddr], ["0.0.0.0", "0.0.0.0"]);
  assertEquals([...reply.options.keys()], [53, 54, 56]);
  assertEquals(optionU8(reply.options, DhcpOption.MESSAGE_TYPE), DhcpType.NAK);
  const relayed = replyTo({ ...wrong, giaddr: "172.18.0.9" });
  assertEquals(relayed.destination, { ip: "172.18.0.9", port: 67, broadcast: false });
  assertEquals(relayed.reply.broadcast, true);
});

Deno.test("respond: INFORM is answered without an address and without a lease", () => {
  const inform = request(DhcpType.INFORM, { ciaddr: "172.18.0.2" });
  const { outcome, reply, destination } = replyTo(inform, { leaseSeconds: 60 });
  assertEquals(outcome, "acked");
  assertEquals([reply.yiaddr, reply.ciaddr], ["0.0.0.0", "172.18.0.2"]);
  assertEquals(destination, { ip: "172.18.0.2", port: 68, broadcast: false });
  for (const code of [51, 58, 59]) assertEquals(reply.options.has(code), false, String(code));
  assert(reply.options.has(DhcpOption.DOMAIN_NAME_SERVER));
  const nameless = replyTo(request(DhcpType.INFORM));
  assertEquals(nameless.destination, { ip: "255.255.255.255", port: 68, broadcast: true });
});

Deno.test("respond: DECLINE, RELEASE and what is no request get no reply", () => {
  const cases: readonly [message: DhcpMessage, outcome: string][] = [
    [request(DhcpType.DECLINE, { server: SERVER, wanted: "172.18.0.2" }), "declined"],
    [request(DhcpType.RELEASE, { server: SERVER, ciaddr: "172.18.0.2" }), "released"],
    [request(DhcpType.OFFER), "ignored"],
    [request(13), "ignored"],
    [request(undefined), "ignored"],
    [request(DhcpType.DISCOVER, { op: BootpOp.REPLY }), "ignored"],
    [request(DhcpType.DISCOVER, { chaddr: "02:00:00:00:00:0b" }), "ignored"],
    [request(DhcpType.RELEASE, { chaddr: "02:00:00:00:00:0b" }), "ignored"],
  ];
  for (const [message, outcome] of cases) {
    assertEquals(respond(message, prepareLease(GUEST)), { outcome } as never);
  }
});

Deno.test("respond: where replies go", () => {
  const own = "172.18.0.2";
  const cases: readonly [type: number, request: Request, destination: DhcpReply["destination"]][] =
    [
      [DhcpType.DISCOVER, {}, { ip: own, port: 68, broadcast: false }],
      [DhcpType.DISCOVER, { broadcast: true }, {
        ip: "255.255.255.255",
        port: 68,
        broadcast: true,
      }],
      [DhcpType.REQUEST, { ciaddr: own, broadcast: true }, { ip: own, port: 68, broadcast: false }],
      [DhcpType.DISCOVER, { giaddr: "10.0.0.9" }, { ip: "10.0.0.9", port: 67, broadcast: false }],
    ];
  for (const [type, fields, destination] of cases) {
    const answer = replyTo(request(type, fields));
    assertEquals(answer.destination, destination);
    assertEquals(answer.reply.broadcast, fields.broadcast ?? false);
    assertEquals(answer.reply.giaddr, fields.giaddr ?? "0.0.0.0");
  }
});

Deno.test("respond: gives the client's identifier back", () => {
  const message = request(DhcpType.DISCOVER);
  const identifier = Uint8Array.of(255, 1, 2, 3, 4, 0, 1);
  const options = new Map([
    ...message.options,
    [DhcpOption.CLIENT_IDENTIFIER, identifier] as const,
  ]);
  const { reply } = replyTo({ ...message, options });
  assertEquals(reply.options.get(DhcpOption.CLIENT_IDENTIFIER), identifier);
});

Deno.test("prepareLease: classless routes hold the default, and lead to a gateway outside", () => {
  const link = "0.0.0.0";
  const cases: readonly [name: string, guest: Partial<DhcpGuest>, routes: [string, string][]][] = [
    ["a further route", { routes: [{ dst: "10.0.0.0/8", gw: "172.18.0.9" }] }, [
      ["10.0.0.0/8", "172.18.0.9"],
      ["0.0.0.0/0", SERVER],
    ]],
    ["a route by the gateway", { routes: [{ dst: "10.9.8.7/8" }] }, [
      ["10.0.0.0/8", SERVER],
      ["0.0.0.0/0", SERVER],
    ]],
    ["without a gateway", { gateway: undefined, routes: [{ dst: "10.0.0.0/8" }] }, [
      ["10.0.0.0/8", link],
    ]],
    ["a gateway outside", { address: "10.1.2.3/32", gateway: "169.254.1.1" }, [
      ["169.254.1.1/32", link],
      ["0.0.0.0/0", "169.254.1.1"],
    ]],
    [
      "a gateway outside that the routes name",
      {
        address: "10.1.2.3/32",
        gateway: "169.254.1.1",
        routes: [{ dst: "169.254.1.1/32" }, { dst: "0.0.0.0/0", gw: "169.254.1.1" }],
      },
      [["169.254.1.1/32", link], ["0.0.0.0/0", "169.254.1.1"]],
    ],
    [
      "a gateway in the routes alone",
      {
        address: "10.1.2.3/32",
        gateway: undefined,
        routes: [{ dst: "0.0.0.0/0", gw: "10.9.9.9" }],
      },
      [["10.9.9.9/32", link], ["0.0.0.0/0", "10.9.9.9"]],
    ],
    ["a next hop outside", { routes: [{ dst: "10.0.0.0/8", gw: "192.0.2.1" }] }, [
      ["192.0.2.1/32", link],
      ["10.0.0.0/8", "192.0.2.1"],
      ["0.0.0.0/0", SERVER],
    ]],
    ["its own network, IPv6", { routes: [{ dst: "172.18.0.0/16" }, { dst: "::/0" }] }, []],
    ["the default alone", { routes: [{ dst: "0.0.0.0/0", gw: SERVER }] }, []],
  ];
  for (const [name, guest, routes] of cases) {
    const value = offered(guest).get(DhcpOption.CLASSLESS_ROUTES) ?? new Uint8Array(0);
    const decoded = decodeClasslessRoutes(value).map(({ dst, gateway }) => [dst, gateway]);
    assertEquals(decoded, routes, name);
  }
});

Deno.test("respond: Microsoft's number for classless routes is used when asked for", () => {
  const guest = { routes: [{ dst: "10.0.0.0/8", gw: "172.18.0.9" }] };
  assertEquals(offered(guest).has(249), false);
  const both = offered(guest, [121, 249]);
  assertEquals(both.get(249), both.get(121));
  assertEquals(offered(guest, [249]).has(121), false);
});

Deno.test("prepareLease: a gateway outside the network is no server identifier", () => {
  for (const gateway of ["169.254.1.1", "172.18.0.2", undefined]) {
    assertEquals(prepareLease({ ...GUEST, gateway }).serverIdentifier, LINK_LOCAL_SERVER);
  }
});

Deno.test("respond: the client's size and the guest's MTU are kept to; what matters stays", () => {
  const many = {
    search: Array.from({ length: 30 }, (_, index) => `domain-${index}.example.org`),
    routes: Array.from({ length: 60 }, (_, index) => ({ dst: `10.${index}.0.0/16` })),
    leaseSeconds: 600,
  };
  const codes = (maximum: number | undefined, mtu: number) => {
    const message = request(DhcpType.DISCOVER, maximum === undefined ? {} : { maximum });
    const { reply, maximumSize } = replyTo(message, { ...many, mtu });
    const bytes = encodeDhcp(reply, maximumSize);
    assert(bytes.length + 28 <= Math.max(328, Math.min(mtu, Math.max(maximum ?? 0, 576))));
    const { options } = decodeDhcp(bytes);
    for (const code of [53, 54, 51, 58, 59, 1, 3]) assert(options.has(code), String(code));
    return options;
  };
  assertEquals([codes(undefined, 1500).has(121), codes(undefined, 1500).has(6)], [false, true]);
  assertEquals([codes(1500, 1500).has(121), codes(1500, 1500).has(119)], [true, true]);
  assertEquals(codes(9000, 1000).has(119), false);
  assertEquals(codes(100, 1500).has(12), true);
  codes(undefined, 68);
});

Deno.test("prepareLease: refuses what cannot be told", () => {
  const cases: readonly Partial<DhcpGuest>[] = [
    { mac: "02:00" },
    { address: "172.18.0.2" },
    { address: "2001:db8::2/64" },
    { gateway: "2001:db8::1" },
    { gateway: "nobody" },
    { routes: [{ dst: "10.0.0.0" }] },
    { routes: [{ dst: "10.0.0.0/8", gw: "2001:db8::1" }] },
    { leaseSeconds: 0 },
    { leaseSeconds: 1.5 },
    { leaseSeconds: 2 ** 32 },
  ];
  for (const change of cases) {
    assertThrows(() => prepareLease({ ...GUEST, ...change }), InputError);
  }
});

Deno.test("respond: has an answer to whatever can be decoded", () => {
  const random = new Random(4388);
  const lease = prepareLease(GUEST);
  const seeds = ["udhcpc", "dhclient", "dhcpcd"].flatMap((client) =>
    readGolden(client, "dhcp").map((frame) => parseUdpFrame(frame)!.payload)
  );
  for (let round = 0; round < 5000; round++) {
    try {
      const answer = respond(decodeDhcp(random.damage(seeds[random.below(seeds.length)]!)), lease);
      if ("reply" in answer) decodeDhcp(encodeDhcp(answer.reply, answer.maximumSize));
    } catch (error) {
      if (!(error instanceof DhcpFormatError)) throw error;
    }
  }
});
