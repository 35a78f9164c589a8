import { assertEquals } from "@std/assert";
import { parseOwners, parseReport, withoutPort } from "../../lib/weave/report.ts";

/** As a 2.5.2 router reports it. */
function report(ipam: object, connections: unknown = null): string {
  return JSON.stringify({
    Ready: true,
    Version: "2.5.2",
    Router: {
      Protocol: "weave",
      Encryption: false,
      Name: "c2:1e:4a:0b:77:01",
      NickName: "host1",
      Port: 6783,
      Peers: [
        { Name: "c2:1e:4a:0b:77:01", NickName: "host1", Connections: null },
        { Name: "c2:1e:4a:0b:77:02", NickName: "host2", Connections: null },
      ],
      Connections: connections,
      Targets: ["192.0.2.10", "192.0.2.11"],
    },
    IPAM: { Range: "10.32.0.0/12", RangeNumIPs: 1048576, ActiveIPs: 1, ...ipam },
  });
}

const ENTRY = { Token: "10.32.0.0", Size: 1048576, Peer: "c2:…", IsKnownPeer: true, Version: 1 };

Deno.test("parseReport: reads names, targets and connections", () => {
  const read = parseReport(report({ Paxos: null, Entries: [ENTRY] }, [
    {
      Address: "192.0.2.11:6783",
      Outbound: true,
      State: "established",
      Info: "sleeve  c2:02(host2)",
    },
    {
      Address: "192.0.2.10:6783",
      Outbound: true,
      State: "failed",
      Info: "cannot connect to ourself, retry: never",
    },
    {
      Address: "192.0.2.12:6783",
      Outbound: true,
      State: "failed",
      Info: "dial tcp4 :0->192.0.2.12:6783: connect: connection refused, retry: 2026-01-01 00:00",
    },
  ]));
  assertEquals(read?.name, "c2:1e:4a:0b:77:01");
  assertEquals(read?.version, "2.5.2");
  assertEquals(read?.peers.map(({ nickname }) => nickname), ["host1", "host2"]);
  assertEquals(read?.targets, ["192.0.2.10", "192.0.2.11"]);
  assertEquals(read?.connections.map(({ peer, state }) => [peer, state]), [
    ["192.0.2.11", "established"],
    ["192.0.2.12", "failed"],
  ]);
  assertEquals(read?.connections[0]?.info, "sleeve c2:02(host2)");
  assertEquals(read?.ipam, { range: "10.32.0.0/12", state: "ready" });
});

Deno.test("parseReport: tells the states of the allocation of addresses apart", () => {
  const state = (ipam: object) => parseReport(report(ipam))?.ipam;
  const range = "10.32.0.0/12";
  assertEquals(
    state({ Paxos: { Elector: true, KnownNodes: 1, Quorum: 2 }, Entries: null }),
    { range, state: "awaiting consensus", quorum: 2, known: 1 },
  );
  assertEquals(state({ Paxos: null, Entries: null }), { range, state: "idle" });
  assertEquals(
    state({ Entries: [{ ...ENTRY, IsKnownPeer: false }], PendingAllocates: null }),
    { range, state: "owners unreachable" },
  );
  assertEquals(
    state({ Entries: [ENTRY], PendingAllocates: ["3f0a 10.32.0.0/12"] }),
    { range, state: "waiting for addresses" },
  );
});

Deno.test("parseReport: what is not a report is none, what is missing is empty", () => {
  for (const text of ["", "[]", "null", "404 page not found", '{"Router":null}']) {
    assertEquals(parseReport(text), undefined, text);
  }
  assertEquals(parseReport('{"Router":{"Name":"a"}}')?.ipam, { range: "", state: "idle" });
});

Deno.test("parseOwners: lists addresses by owner", () => {
  const text = `{"owned":[{"containerid":"weave:expose","addrs":["10.32.0.1/12"]},
    {"containerid":"3f0a","addrs":["10.32.0.2/12"]}]}`;
  assertEquals([...parseOwners(text)], [
    ["weave:expose", ["10.32.0.1/12"]],
    ["3f0a", ["10.32.0.2/12"]],
  ]);
  assertEquals([...parseOwners('{"owned":null}')], []);
});

Deno.test("withoutPort: leaves addresses and names as they are", () => {
  const cases = [
    ["192.0.2.10:6783", "192.0.2.10"],
    ["192.0.2.10", "192.0.2.10"],
    ["[2001:db8::1]:6783", "2001:db8::1"],
    ["2001:db8::1", "2001:db8::1"],
    ["host2.example:6783", "host2.example"],
  ] as const;
  for (const [given, expected] of cases) assertEquals(withoutPort(given), expected);
});
