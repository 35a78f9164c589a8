import { assertEquals, assertMatch, assertStringIncludes, assertThrows } from "@std/assert";
import { InputError } from "../../lib/errors.ts";
import { type FlowChange, flowIsStale, flowMatches } from "../../lib/firewall/flows.ts";
import { type GuestRules, validateRules } from "../../lib/firewall/model.ts";
import { elementsOf, rulesOf } from "../../lib/firewall/guest-elements.ts";
import { byId } from "../../lib/firewall/place.ts";
import { MAIN_TABLE } from "../../lib/firewall/ruleset.ts";
import { marksOf, planAdd, planTable } from "../../lib/firewall/table.ts";
import { LAYOUT } from "../../lib/firewall/main-table.ts";
import { neededSysctls } from "../../lib/firewall/sysctls.ts";
import { bindPorts, parsePorts } from "../../lib/inet/ports.ts";
import type { FlowTuple } from "../../lib/netlink/conntrack.ts";
import { fingerprint } from "../support/main-table.ts";

const RULES: GuestRules = {
  owner: "web/eth0",
  link: "ignite0",
  addresses: ["172.18.0.2", "fd00:18::2"],
  masquerade: true,
  forward: true,
  ports: parsePorts(["8080:80", "127.0.0.1:53:53/udp", "[2001:db8::1]:90-91:80-81"]),
};

Deno.test("planAdd: one command a set, the owner on every element", () => {
  assertEquals(
    planAdd(elementsOf(RULES), MAIN_TABLE),
    `add element inet tapkit ports4 { tcp . 8080 comment "web/eth0" : 172.18.0.2 . 80 }
add element inet tapkit ports6 { tcp . 8080 comment "web/eth0" : fd00:18::2 . 80 }
add element inet tapkit ports_at4 { 127.0.0.1 . udp . 53 comment "web/eth0" : 172.18.0.2 . 53 }
add element inet tapkit ports_at6 { ${
      [90, 91].map((port) =>
        `2001:db8::1 . tcp . ${port} comment "web/eth0" : fd00:18::2 . ${port - 10}`
      ).join(", ")
    } }
add element inet tapkit guests4 { 172.18.0.2 . "ignite0" comment "web/eth0" }
add element inet tapkit guests6 { fd00:18::2 . "ignite0" comment "web/eth0" }
add element inet tapkit private4 { 172.18.0.2 comment "web/eth0" }
add element inet tapkit private6 { fd00:18::2 comment "web/eth0" }
`,
  );
});

Deno.test("elementsOf: a guest behind no known link has ports alone", () => {
  const elements = elementsOf({ ...RULES, link: "", masquerade: false });
  assertEquals(
    new Set(elements.map(({ set }) => set.replace(/[46]$/, ""))),
    new Set(["ports", "ports_at"]),
  );
  assertEquals(elementsOf({ ...RULES, link: "", masquerade: false, ports: [] }), []);
});

Deno.test("elementsOf: ports lead to the first address of each family", () => {
  const addresses = ["172.18.0.2", "172.18.0.3"];
  const elements = elementsOf({ ...RULES, addresses, ports: parsePorts(["8080:80"]) });
  assertEquals(
    elements.filter(({ value }) => value !== undefined).map(({ value }) => value!.join(":")),
    ["172.18.0.2:80"],
  );
});

Deno.test("rulesOf: reads back what elementsOf made", () => {
  const bound = {
    ...RULES,
    ports: bindPorts(parsePorts(["8080:80", "127.0.0.1:53:53/udp"]), [4, 6]),
  };
  const other = { ...bound, owner: "api/eth0", ports: [], addresses: ["172.18.0.3"] };
  const [web, api] = rulesOf([...elementsOf(bound), ...elementsOf(other)]);
  const sort = (rules: GuestRules | undefined) => ({
    ...rules,
    addresses: [...rules!.addresses].sort(),
    ports: rules!.ports.map((port) => JSON.stringify(Object.entries(port).sort())).sort(),
  });
  assertEquals(sort(web), sort(bound));
  assertEquals(sort(api), sort(other));
});

Deno.test("LAYOUT: is the fingerprint of the layout, so that a change of it replaces old tables", () => {
  assertEquals(LAYOUT, fingerprint(MAIN_TABLE), "run deno task table");
});

Deno.test("planTable: every set is used by a rule, every rule has its mark", () => {
  const plan = planTable(MAIN_TABLE);
  const marked = marksOf(MAIN_TABLE);
  for (const set of Object.keys(MAIN_TABLE.sets)) assertMatch(plan, new RegExp(`@${set}\\b`), set);
  assertEquals(plan.match(/ comment "/g)?.length, marked.length);
  assertStringIncludes(plan, "create table inet tapkit");
  for (const { comment } of marked) assertStringIncludes(plan, `comment "${comment}"`);
  const marks = marked.map(({ chain, comment }) => `${chain} ${comment}`);
  assertEquals(new Set(marks).size, marks.length);
});

Deno.test("validateRules: lets nothing into nft's language but what it must be", () => {
  const cases: [Partial<GuestRules>, RegExp][] = [
    [{ owner: 'web" }; flush ruleset; #' }, /cannot tag firewall rules/],
    [{ owner: "" }, /cannot tag/],
    [{ owner: "a".repeat(121) }, /cannot tag/],
    [{ owner: "web\neth0" }, /cannot tag/],
    [{ link: 'x"' }, /not the name of a link/],
    [{ link: "ignite*" }, /not the name of a link/],
    [{ link: "a-name-of-sixteen" }, /not the name of a link/],
    [{ addresses: ["172.18.0.2/16"] }, /not an IP address/],
    [{ addresses: ["172.18.0.2; drop"] }, /not an IP address|needs an address/],
    [{ addresses: [] }, /needs an address of its family/],
    [{ addresses: ["172.18.0.2"] }, /port "\[2001:db8::1\]:90-91:80-81" needs an address/],
    [{ ports: parsePorts(["0:80"]) }, /is not a port mapping/],
    [{ ports: [{ hostIP: "", hostPort: 65535, vmPort: 1, protocol: "tcp", range: 2 }] }, /is no/],
    [
      { ports: [{ hostIP: "", hostPort: 1.5, vmPort: 1, protocol: "tcp" }] },
      /is not a port mapping/,
    ],
    [
      { ports: [{ hostIP: "x", hostPort: 1, vmPort: 1, protocol: "tcp" }] },
      /is not a port mapping/,
    ],
    [
      { ports: [{ hostIP: "", hostPort: 1, vmPort: 1, protocol: "icmp" as "tcp" }] },
      /is not a port mapping/,
    ],
    [{ ports: [...parsePorts(["80:80"]), ...parsePorts(["0.0.0.0:80:81"])] }, /overlap/],
  ];
  for (const [change, why] of cases) {
    const error = assertThrows(() => validateRules({ ...RULES, ...change }), InputError);
    assertMatch(error.message, why);
  }
  assertEquals(
    validateRules({ ...RULES, addresses: ["172.18.0.2", "FD00:18:0::2"] }).addresses,
    ["172.18.0.2", "fd00:18::2"],
  );
});

Deno.test("neededSysctls: what the link needs is asked of the link; route_localnet for 127.0.0.1 alone", () => {
  const needed = (ports: string[], addresses: string[] = ["172.18.0.2"], link = "ignite0") =>
    neededSysctls({ ...RULES, addresses, link, ports: parsePorts(ports) }).map(({ path }) => path);
  const plain = ["net/ipv4/ip_forward", ...ofLink(4, "forwarding", "arp_ignore")];
  const localnet = ofLink(4, "route_localnet");
  assertEquals(needed([]), plain);
  assertEquals(needed(["8080:80"]), [...plain, ...localnet]);
  assertEquals(needed(["127.0.0.2:8080:80"]), [...plain, ...localnet]);
  assertEquals(needed(["192.0.2.1:8080:80"]), plain);
  assertEquals(needed(["8080:80"], ["fd00::2"]), [
    ...ofLink(6, "disable_ipv6"),
    "net/ipv6/conf/all/forwarding",
    ...ofLink(6, "forwarding"),
  ]);
  assertEquals(needed(["8080:80"], ["172.18.0.2"], ""), ["net/ipv4/ip_forward"]);
  // By the host's own link.
  const relayed = { ...RULES, addresses: ["192.0.2.7"], link: "eth0", relayed: true } as const;
  assertEquals(
    neededSysctls({ ...relayed, ports: parsePorts(["8080:80"]) }).map(({ path }) => path),
    ["net/ipv4/ip_forward", "net/ipv4/conf/eth0/route_localnet"],
  );
});

const ofLink = (family: 4 | 6, ...names: string[]) =>
  names.map((name) => `net/ipv${family}/conf/ignite0/${name}`);

const tuple = (
  source: string,
  sourcePort: number,
  destination: string,
  port: number,
): FlowTuple => ({
  source,
  sourcePort,
  destination,
  destinationPort: port,
  protocol: 6,
});

Deno.test("flowIsStale: what a port led to ends, what it leads to and others' stay", () => {
  const elements = elementsOf({ ...RULES, ports: parsePorts(["0.0.0.0:8080:80"]) });
  const wanted = byId(elements);
  const change: FlowChange = { changed: elements, wanted, leaving: [] };
  const isLocal = (address: string) => address === "192.0.2.1";
  const stale = (original: FlowTuple, reply: FlowTuple) =>
    flowIsStale({ original, reply }, change, isLocal);
  const client = ["192.0.2.50", 40000] as const;
  const toPort = tuple(...client, "192.0.2.1", 8080);
  assertEquals(stale(toPort, tuple("172.18.0.7", 80, ...client)), true, "led to another guest");
  assertEquals(stale(toPort, tuple("192.0.2.1", 8080, ...client)), true, "led to the host itself");
  assertEquals(stale(toPort, tuple("172.18.0.2", 80, ...client)), false, "leads where it should");
  assertEquals(stale(toPort, tuple("172.18.0.2", 81, ...client)), true, "led to another port");
  const elsewhere = tuple(...client, "203.0.113.1", 8080);
  assertEquals(stale(elsewhere, tuple("203.0.113.1", 8080, ...client)), false, "passes through");

  assertEquals(flowMatches(change), [
    { protocol: "tcp", originalDestinationPort: 8080, family: 4 },
  ]);
  // Who leaves takes all flows with it.
  const left = { changed: elements, wanted: new Map(), leaving: ["172.18.0.2"] };
  assertEquals(flowMatches(left), []);
});
