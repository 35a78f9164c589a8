import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { InputError } from "../../lib/errors.ts";
import {
  bindPorts,
  expandPorts,
  findPortConflict,
  formatHostPort,
  formatPort,
  intersectPorts,
  parsePorts,
  PortConflictError,
  type PortMapping,
  subtractPorts,
} from "../../lib/inet/ports.ts";
import { processorTime } from "../support/processor-time.ts";

const parse = (text: string) => parsePorts([text])[0]!;

Deno.test("parsePorts: reads what the contract names, formatPort writes it back", () => {
  const cases: [string, PortMapping, string?][] = [
    ["8080:80", { hostIP: "", hostPort: 8080, vmPort: 80, protocol: "tcp" }],
    ["8080:80/tcp", { hostIP: "", hostPort: 8080, vmPort: 80, protocol: "tcp" }, "8080:80"],
    ["8080:80/udp", { hostIP: "", hostPort: 8080, vmPort: 80, protocol: "udp" }],
    ["1:65535/sctp", { hostIP: "", hostPort: 1, vmPort: 65535, protocol: "sctp" }],
    ["0:80", { hostIP: "", hostPort: 0, vmPort: 80, protocol: "tcp" }],
    ["127.0.0.1:8080:80", { hostIP: "127.0.0.1", hostPort: 8080, vmPort: 80, protocol: "tcp" }],
    ["0.0.0.0:8080:80", { hostIP: "0.0.0.0", hostPort: 8080, vmPort: 80, protocol: "tcp" }],
    ["[::]:8080:80", { hostIP: "::", hostPort: 8080, vmPort: 80, protocol: "tcp" }],
    [
      "[2001:DB8:0::1]:8080:80/udp",
      { hostIP: "2001:db8::1", hostPort: 8080, vmPort: 80, protocol: "udp" },
      "[2001:db8::1]:8080:80/udp",
    ],
    [
      "9000-9009:7000-7009",
      { hostIP: "", hostPort: 9000, vmPort: 7000, protocol: "tcp", range: 10 },
    ],
    ["9000-9000:80", { hostIP: "", hostPort: 9000, vmPort: 80, protocol: "tcp" }, "9000:80"],
  ];
  for (const [text, mapping, written = text] of cases) {
    assertEquals(parse(text), mapping, text);
    assertEquals(formatPort(mapping), written);
  }
});

Deno.test("parsePorts: refuses everything else, saying why", () => {
  const cases: [string, RegExp][] = [
    ["", /does not read as a port mapping/],
    ["8080:", /the VM port "" is not a number/],
    ["0:0", /VM port 0 has no meaning/],
    ["8080:0", /VM port 0 has no meaning/],
    ["65536:80", /the host port "65536" is not a number from 1 to 65535/],
    ["8080:70000", /the VM port "70000"/],
    ["-1:80", /the host port "-1" is not/],
    ["080:80", /the host port "080"/],
    ["+80:80", /the host port "\+80"/],
    ["8e1:80", /the host port "8e1"/],
    ["0x50:80", /the host port "0x50"/],
    [" 80:80", /the host port " 80"/],
    ["8080:80/", /the protocol is empty/],
    ["8080:80/icmp", /"icmp" is not a protocol/],
    ["8080:80/tcp/udp", /"tcp\/udp" is not a protocol/],
    ["9009-9000:9000-9009", /the host range 9009-9000 is reversed/],
    ["9000-9009:9009-9000", /the VM range 9009-9000 is reversed/],
    ["9000-9009:9000-9008", /the ranges have 10 and 9 ports/],
    ["9000-9009:80", /the ranges have 10 and 1 ports/],
    ["0-9:80-89", /host port 0 cannot begin a range/],
    ["65530-65540:1-11", /the host port "65540"/],
    ["9000-:80", /the host port "" is not/],
    ["[::1]:8080:80", /IPv6 loopback cannot be translated/],
    ["[fe80::1%eth0]:8080:80", /the address "fe80::1%eth0" has a zone/],
    ["[fe80::1]:8080:80", /not an address a port can be bound to/],
    ["[ff02::1]:8080:80", /not an address a port can be bound to/],
    ["224.0.0.1:8080:80", /not an address a port can be bound to/],
    ["255.255.255.255:8080:80", /not an address a port can be bound to/],
    ["[::ffff:10.0.0.1]:8080:80", /an IPv4 address in IPv6 writing/],
    ["::1:8080:80", /an IPv6 address is written in brackets/],
    ["[10.0.0.1]:8080:80", /brackets are for IPv6/],
    ["10.0.0.256:8080:80", /"10.0.0.256" is not an IP address/],
    ["010.0.0.1:8080:80", /"010.0.0.1" is not an IP address/],
    ["[]:8080:80", /"" is not an IP address/],
    ["host:8080:80", /"host" is not an IP address/],
    ["8080:80; drop", /the VM port "80; drop"/],
  ];
  for (const [text, why] of cases) {
    const error = assertThrows(() => parse(text), InputError, `port "${text}"`);
    assertMatch(error.message, why);
    assertEquals(typeof error.mend, "string", text);
  }
});

Deno.test("parsePorts: says what was meant where it is written as other programs have it", () => {
  const cases: readonly (readonly [text: string, why: string, mend: string])[] = [
    ["8080", "it names one side only", "did you mean 8080:8080?"],
    ["8080/udp", "it names one side only", "did you mean 8080:8080/udp?"],
    ["9000-9009", "it names one side only", "did you mean 9000-9009:9000-9009?"],
    [":80", "it names no host port", "write 0:80 to have a free one chosen"],
    ["8080:80:tcp", "the protocol follows a slash", "write 8080:80/tcp"],
    ["127.0.0.1:53:53:UDP", "the protocol follows a slash", "write 127.0.0.1:53:53/udp"],
    ["8080:80/TCP", "the protocol is written in lower case", "write 8080:80/tcp"],
    [
      "8080:80,8081:81/udp",
      "it is 2 mappings",
      "give each by itself: --ports 8080:80 --ports 8081:81/udp, or map-port VM 8080:80 8081:81/udp",
    ],
    ["localhost:8080:80", '"localhost" is not an IP address', "write 127.0.0.1:8080:80"],
    ["*:8080:80/udp", '"*" is not an IP address', "write 8080:80/udp"],
    [
      "2001:db8::1:8080:80",
      "an IPv6 address is written in brackets",
      "write [2001:db8::1]:8080:80",
    ],
  ];
  for (const [text, why, mend] of cases) {
    const error = assertThrows(() => parse(text), InputError);
    assertEquals([error.message, error.mend], [`port "${text}": ${why}`, mend]);
  }
});

Deno.test("parsePorts: refuses two mappings of one call that overlap", () => {
  const cases: [string[], boolean][] = [
    [["8080:80", "8080:81"], true],
    [["8080:80", "8080:80"], true],
    [["8080:80", "8080:80/udp"], false],
    [["8080:80", "127.0.0.1:8080:81"], true],
    [["0.0.0.0:8080:80", "127.0.0.1:8080:81"], true],
    [["0.0.0.0:8080:80", "[2001:db8::1]:8080:81"], false],
    [["0.0.0.0:8080:80", "[::]:8080:80"], false],
    [["8080:80", "[2001:db8::1]:8080:81"], true],
    [["10.0.0.1:8080:80", "10.0.0.2:8080:80"], false],
    [["9000-9009:9000-9009", "9009-9018:1-10"], true],
    [["9000-9009:9000-9009", "9010-9019:1-10"], false],
    [["0:80", "0:80"], false],
  ];
  for (const [texts, overlap] of cases) {
    if (overlap) assertThrows(() => parsePorts(texts), InputError, "overlap on the host");
    else assertEquals(parsePorts(texts).length, texts.length, texts.join());
  }
});

Deno.test("parsePorts, findPortConflict: the cost grows with the number, not with its square", () => {
  const taken = [{ owner: "web", mappings: [parse("80:80")] }];
  // As many ports in all, by 200 at a time and by 20,000: squared, it would be a hundred times as much.
  const cost = (count: number) => {
    const texts = Array.from({ length: count }, (_, index) => `${20_000 + index}:80`);
    const before = processorTime();
    for (let done = 0; done < 200_000; done += count) {
      assertEquals(findPortConflict(parsePorts(texts), taken), undefined);
    }
    return processorTime().own - before.own;
  };
  cost(200);
  const [few, many] = [cost(200), cost(20_000)];
  assert(many < 10 * few, `${few} ms by 200 at a time, ${many} ms by 20,000`);
});

Deno.test("expandPorts: gives each port of a range its own", () => {
  assertEquals(expandPorts(parse("[::]:9000-9002:80-82/udp")).map(formatPort), [
    "[::]:9000:80/udp",
    "[::]:9001:81/udp",
    "[::]:9002:82/udp",
  ]);
});

Deno.test("bindPorts: names the wildcards of the families the VM has", () => {
  const bound = (text: string, ...families: (4 | 6)[]) =>
    bindPorts([parse(text)], families).map(formatPort);
  assertEquals(bound("8080:80", 4), ["0.0.0.0:8080:80"]);
  assertEquals(bound("8080:80", 6), ["[::]:8080:80"]);
  assertEquals(bound("8080:80", 4, 6), ["0.0.0.0:8080:80", "[::]:8080:80"]);
  assertEquals(bound("127.0.0.1:8080:80", 4, 6), ["127.0.0.1:8080:80"]);
  assertThrows(() => bound("[::]:8080:80", 4), InputError, "the VM has no IPv6 address");
  assertThrows(() => bound("8080:80"), InputError, "the VM has no IP address");
});

Deno.test("subtractPorts, intersectPorts: ranges come apart where they have to", () => {
  const cases: [mappings: string[], others: string[], left: string[], common: string[]][] = [
    [["0.0.0.0:80:80"], [], ["0.0.0.0:80:80"], []],
    [["0.0.0.0:80:80"], ["0.0.0.0:80:80"], [], ["0.0.0.0:80:80"]],
    [
      ["0.0.0.0:80:80"],
      ["0.0.0.0:80:81", "[::]:80:80", "0.0.0.0:80:80/udp"],
      ["0.0.0.0:80:80"],
      [],
    ],
    [["[::]:90-99:1-10"], ["[::]:93:4"], ["[::]:90-92:1-3", "[::]:94-99:5-10"], ["[::]:93:4"]],
    [["[::]:90-99:1-10"], ["[::]:80-109:1-30"], ["[::]:90-99:1-10"], []],
    [["[::]:90-92:1-3", "[::]:93:4"], ["[::]:91-93:2-4"], ["[::]:90:1"], [
      "[::]:91-92:2-3",
      "[::]:93:4",
    ]],
  ];
  for (const [mappings, others, left, common] of cases) {
    const [a, b] = [mappings.map(parse), others.map(parse)];
    assertEquals(subtractPorts(a, b).map(formatPort), left);
    assertEquals(intersectPorts(a, b).map(formatPort), common);
  }
});

Deno.test("findPortConflict: finds the owner by port, protocol and address", () => {
  const taken = [
    { owner: "web", mappings: parsePorts(["10.0.0.1:80:80", "9000-9009:1-10/udp"]) },
    { owner: "api", mappings: parsePorts(["[::]:443:443"]) },
  ];
  const cases: [string, string?][] = [
    ["80:8000", "web 80"],
    ["0.0.0.0:80:8000", "web 80"],
    ["10.0.0.1:80:8000", "web 80"],
    ["10.0.0.2:80:8000"],
    ["[::]:80:8000"],
    ["80:8000/udp"],
    ["9005-9020:1-16/udp", "web 9005"],
    ["8995-9000:1-6/udp", "web 9000"],
    ["9000-9009:1-10"],
    ["443:443", "api 443"],
    ["[2001:db8::1]:443:443", "api 443"],
    ["127.0.0.1:443:443"],
    ["0:443"],
  ];
  for (const [text, expected] of cases) {
    const conflict = findPortConflict([parse(text)], taken);
    assertEquals(conflict && `${conflict.owner} ${conflict.hostPort}`, expected, text);
  }
});

Deno.test("PortConflictError: reads as the contract has it", () => {
  const conflict = { protocol: "tcp", hostIP: "", hostPort: 8080, owner: "api" } as const;
  const error = new PortConflictError(conflict, 'already mapped to VM "api"');
  assertEquals(error.message, 'host port 8080/tcp is already mapped to VM "api"');
  assertEquals(formatHostPort({ ...conflict, hostIP: "2001:db8::1" }), "[2001:db8::1]:8080/tcp");
  assertEquals(formatHostPort({ ...conflict, hostIP: "127.0.0.1" }), "127.0.0.1:8080/tcp");
});
