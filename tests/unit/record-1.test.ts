/**
 * Records that the version before wrote, read by this one: see tests/fixtures/record-1/README.md.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { subtractPorts } from "../../lib/inet/ports.ts";
import { servedAddress } from "../../lib/vm/record/address.ts";
import type { Both, Claim } from "../../lib/vm/record/attachment.ts";
import { portsOf, recordOf } from "../../lib/vm/record/derive.ts";
import { servedVm } from "../../lib/vm/record/served.ts";
import {
  isAddress1,
  isAddressAttachment,
  isAttachment,
  isRecord1,
} from "../../lib/vm/record/shape.ts";
import {
  type Address1,
  fromAddress1,
  fromRecord1,
  type Record1,
} from "../../lib/vm/record/version-1.ts";

const FIXTURES = new URL("../fixtures/record-1/", import.meta.url);

/** What was left in the middle of a change. */
const CUT_OFF = ["attaching", "attaching-again", "removing", "republishing"];

const ATTACHED = [...Deno.readDirSync(FIXTURES)].map(({ name }) => name)
  .filter((name) => name.endsWith(".json")).map((name) => name.slice(0, -".json".length))
  .filter((name) => name !== "address" && !CUT_OFF.includes(name)).sort();

// deno-lint-ignore no-explicit-any -- what stands on disk.
function fixture(name: string): any {
  return JSON.parse(Deno.readTextFileSync(new URL(`${name}.json`, FIXTURES))).record;
}

function printed({ made: _, ...record }: Record1) {
  return record;
}

/** Its ports without what only concerns records. */
function plainRules<G extends { readonly ports: readonly unknown[] }>(rules: G): G {
  const ports = (rules.ports as Claim[]).map(({ chosen: _, ...port }) => port);
  return { ...rules, ports };
}

function attached(record: Record1): Both {
  const attachment = fromRecord1(record);
  assert(attachment.is === "attached", JSON.stringify(attachment));
  return attachment.at;
}

function changing(record: Record1) {
  const attachment = fromRecord1(record);
  assert(attachment.is === "changing", JSON.stringify(attachment));
  assert(isAttachment({ version: 2, ...attachment }));
  return attachment;
}

for (const name of ATTACHED) {
  Deno.test(`fromRecord1: ${name} is printed as before, and has the same rules`, () => {
    const record: Record1 = fixture(name);
    assert(isRecord1(record));
    const at = attached(record);
    assert(isAttachment({ version: 2, is: "attached", at }));
    assertEquals<unknown>(recordOf(at), printed(record));
    const { guests, firewall } = servedVm(at);
    assertEquals(guests, record.made.guests.map(plainRules));
    assertEquals(firewall, record.made.firewall);
    assertEquals(at.facts.netns.is, record.made.netnsIs);
    assertEquals(at.facts.networks.map(({ attachment }) => attachment), record.made.networks);
    assertEquals(at.spec.run, record.made.run);
  });
}

Deno.test("fromRecord1: what was asked for is wanted", () => {
  const specOf = (name: string) => attached(fixture(name)).spec;
  const { mac, mtu, mode, tapOwner } = specOf("dhcp-bridge");
  assertEquals([mac, mtu, mode, tapOwner], ["02:00:00:00:00:77", 1400, "dhcp-bridge", "1000:1000"]);
  const { ip, networks } = specOf("two-networks");
  assertEquals([ip, networks], ["10.5.0.9", ["dual", "second"]]);
  const { bandwidth, plugins, cniArgs, capabilities } = specOf("bandwidth");
  assertEquals([bandwidth, plugins], [100_000_000, "exec"]);
  assertEquals([cniArgs, capabilities], [{ K8S_POD_NAME: "web" }, { aliases: ["web"] }]);
  assertEquals(specOf("netns").netns, "/run/netns/own");
  assertEquals(attached(fixture("netns")).facts.netns.given, true);
  assertEquals(specOf("vmm").run !== undefined, true);
  const { policy, openPorts } = specOf("policy");
  assertEquals([policy.maxConnections, policy.newConnections, openPorts], [500, "unlimited", true]);
});

Deno.test("fromRecord1: who has a port, and whether it was chosen, is known still", () => {
  const claimed = attached(fixture("ports")).spec.claims
    .map(({ by, vmPort, chosen }) => `${by} ${vmPort}${chosen ? " chosen" : ""}`);
  assertEquals(
    new Set(claimed),
    new Set([
      ...["attach 80", "attach 81 chosen", "attach 53"],
      ...["map 90", "map 93 chosen", "map 81", "map 80"],
    ]),
  );
  const record: Record1 = fixture("executed");
  const { made } = record;
  // Two ports of the host lead to one of the VM's, one of them by its number.
  const request = { ...made.request, ports: ["8080:80", "0:80"] };
  const [first, second] = record.ports;
  const attach = [first!, { ...second!, vmPort: 80 }];
  const both = { ...record, made: { ...made, request, portOwners: { attach, mapPort: [] } } };
  assertEquals(attached(both).spec.claims.map(({ chosen }) => chosen), [false, true]);
});

Deno.test("fromRecord1: the host's end of an interface is known, where there is one", () => {
  const ends = (name: string) =>
    attached(fixture(name)).facts.networks.map(({ reach }) => [reach?.hostEnd, reach?.bridge]);
  const { result } = fixture("plain").made.networks[0];
  assertEquals(ends("plain"), [[result.interfaces[1].name, undefined]]);
  const policed = fixture("policy").made.networks[0].result;
  assertEquals(ends("policy"), [[policed.interfaces[1].name, "ignite0"]]);
  const { seen } = fixture("executed-plain").made.networks[0];
  assertEquals(ends("executed-plain"), [[seen.hostEnd.name, undefined]]);
  assertEquals(ends("macvlan"), [[undefined, undefined]]);
});

Deno.test("fromRecord1: a first attach that was cut off goes to what was asked for", () => {
  const record: Record1 = fixture("attaching");
  const { from, to } = changing(record);
  assertEquals(from, undefined);
  assertEquals(to!.facts.networks.map(({ attachment }) => attachment), record.made.networks);
  assertEquals(servedVm(to!).owners, ["web/eth0"]);
  assertEquals(servedVm(to!).guests, []);
  const claim = { hostIP: "", hostPort: 8080, vmPort: 80, protocol: "tcp" } as const;
  assertEquals(to!.spec.claims, [{ ...claim, by: "attach", chosen: false }]);
});

Deno.test("fromRecord1: attaching anew that was cut off has what was there to be given again", () => {
  const record: Record1 = fixture("attaching-again");
  const { from, to } = changing(record);
  assertEquals(from, to);
  const [link] = record.interfaces;
  const { mac, addresses } = from!.facts.networks[0]!.link!;
  assertEquals<unknown>([mac, addresses], [link!.mac, link!.addresses]);
  assertEquals(from!.facts.networks[0]!.attachment.result, undefined);
  assertEquals<unknown>(recordOf(from!), printed(record));
});

Deno.test("fromRecord1: a removal that was cut off goes to nothing", () => {
  const record: Record1 = fixture("removing");
  const { from, to } = changing(record);
  assertEquals(to, undefined);
  assertEquals<unknown>(recordOf(from!), printed(record));
  assertEquals(servedVm(from!).guests, record.made.guests.map(plainRules));
});

Deno.test("fromRecord1: other ports of a plugin, cut off, are of either side", () => {
  const record: Record1 = fixture("republishing");
  const { from, to } = changing(record);
  const portsTold = (at: Both | undefined) =>
    // deno-lint-ignore no-explicit-any -- the plugin's own.
    (at!.facts.networks[0]!.attachment.plugins[1]!.config.runtimeConfig as any).portMappings
      .map(({ hostPort }: { hostPort: number }) => hostPort);
  assertEquals([portsTold(from), portsTold(to)], [[8080], [8081]]);
  assertEquals(portsOf(from!.spec.claims), [...record.made.portOwners!.attach]);
  assertEquals(subtractPorts(record.ports, portsOf(to!.spec.claims)), []);
  assert(!JSON.stringify([from, to]).includes("inDoubt"));
});

Deno.test("fromRecord1: what is in doubt is looked at, though both sides are alike", () => {
  const record: Record1 = fixture("executed");
  const { made } = record;
  const doubtfulRules = changing({ ...record, made: { ...made, rulesInDoubt: true } });
  assertEquals(doubtfulRules.from, doubtfulRules.to);
  const networks = made.networks.map((network) => ({
    ...network,
    plugins: network.plugins.map((plugin) => ({ ...plugin, inDoubt: plugin.config })),
  }));
  const { from, to } = changing({ ...record, made: { ...made, networks } });
  assertEquals(from, to);
  assertEquals(from, attached(record));
});

Deno.test("fromAddress1: an address has the same rules", () => {
  const record: Address1 = fixture("address");
  assert(isAddress1(record));
  const attachment = fromAddress1(record);
  assert(attachment.is === "attached");
  assert(isAddressAttachment({ version: 2, ...attachment }));
  const { guests, firewall } = servedAddress(attachment.at);
  assertEquals(guests, [plainRules(record.rules)]);
  assertEquals(firewall, record.firewall);
  assertEquals(attachment.at.claims.map(({ vmPort, chosen }) => [vmPort, chosen]), [
    [80, false],
    [81, true],
    [82, false],
  ]);
});
