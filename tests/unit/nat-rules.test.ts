/**
 * Rules of others, and the host ports they map. Texts as the programs print them.
 */

import { assertEquals } from "@std/assert";
import { parseListedRules } from "../../lib/firewall/nat-listed.ts";
import { findClaims, type NatRule } from "../../lib/firewall/nat-rules.ts";
import { parseSavedRules } from "../../lib/firewall/nat-saved.ts";

/** What is claimed, in a line each: `tcp 192.0.2.1 8080,9000-9009 → 10.0.0.2 (comment)`. */
function claims(rules: readonly NatRule[]): string[] {
  return findClaims(rules).map(({ match, to, comment }) => {
    const ports = match.ports.map(([first, last]) => first === last ? first : `${first}-${last}`);
    const words = [...match.protocols ?? ["any"], ...match.addresses ?? [], ports.join(",")];
    return `${words.join(" ")} → ${to || "itself"}${comment === undefined ? "" : ` (${comment})`}`;
  });
}

for (
  const [who, saved, expected] of [
    ["the portmap plugin", [
      "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
      "-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
      '-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \\"net\\" id: \\"3c44\\"" ' +
      "-m multiport --dports 8080,8081 -j CNI-DN-1",
      "-A CNI-DN-1 -s 10.20.0.0/24 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
      "-A CNI-DN-1 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.20.0.2:80",
      "-A CNI-DN-1 -d 192.0.2.1/32 -p tcp -m tcp --dport 8081 -j DNAT --to-destination 10.20.0.2:81",
    ], [
      'tcp 8080 → 10.20.0.2 (dnat name: "net" id: "3c44")',
      'tcp 192.0.2.1/32 8081 → 10.20.0.2 (dnat name: "net" id: "3c44")',
    ]],
    ["Docker", [
      "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
      "-A DOCKER -i docker0 -j RETURN",
      "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2:80",
      "-A DOCKER ! -i docker0 -p udp -m udp --dport 53 -j DNAT --to-destination [fd00::2]:53",
    ], ["tcp 80 → 172.17.0.2", "udp 53 → fd00::2"]],
    ["Kubernetes, where no rule that translates names a port", [
      "-A PREROUTING -j KUBE-SERVICES",
      "-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-A",
      "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",
      "-A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j KUBE-EXT-A",
      "-A KUBE-EXT-A -j KUBE-SVC-A",
      "-A KUBE-SVC-A -j KUBE-SEP-A",
      "-A KUBE-SEP-A -p tcp -m tcp -j DNAT --to-destination 10.244.0.2:443",
    ], ["tcp 10.96.0.1/32 443 → 10.244.0.2", "tcp 30080 → 10.244.0.2"]],
    ["podman", [
      "-A PREROUTING -m addrtype --dst-type LOCAL -j NETAVARK-HOSTPORT-DNAT",
      '-A NETAVARK-HOSTPORT-DNAT -p tcp -m tcp --dport 8080 -m comment --comment "dnat name: podman id: ab" -j NETAVARK-DN-1',
      "-A NETAVARK-DN-1 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.88.0.2:80",
    ], ["tcp 8080 → 10.88.0.2 (dnat name: podman id: ab)"]],
    ["a person", [
      "-A PREROUTING -i eth0 -p tcp -m tcp --dport 8000:8010 -j REDIRECT --to-ports 80",
      "-A PREROUTING -p udp -m multiport --dports 1,3:5 -j DNAT --to-destination 10.0.0.9",
      "-A PREROUTING -p tcp -m tcp ! --dport 22 -j DNAT --to-destination 10.0.0.9",
      "-A PREROUTING -i eth0 -j DNAT --to-destination 10.0.0.9",
      "-A PREROUTING -p tcp -m tcp --dport 22 -j ACCEPT",
      "-A POSTROUTING -p tcp -m tcp --dport 25 -j MASQUERADE",
      '-A PREROUTING -p tcp -m comment --comment "-j DNAT --dport 7" -j ACCEPT',
    ], ["tcp 8000-8010 → itself", "udp 1,3-5 → 10.0.0.9"]],
    ["chains that nothing leads to, and such as lead to each other", [
      "-A LONE -p tcp -m tcp --dport 1 -j DNAT --to-destination 10.0.0.9:1",
      "-A START -p tcp -m tcp --dport 2 -j A",
      "-A A -j B",
      "-A B -j A",
      "-A B -p tcp -j DNAT --to-destination 10.0.0.9:1",
    ], ["tcp 1 → 10.0.0.9", "tcp 2 → 10.0.0.9"]],
  ] as const
) {
  Deno.test(`parseSavedRules, findClaims: ${who}`, () => {
    assertEquals(claims(parseSavedRules(["*nat", ...saved, "COMMIT"].join("\n"))), [...expected]);
  });
}

const port = (right: unknown, protocol = "tcp") => ({
  match: { op: "==", left: { payload: { protocol, field: "dport" } }, right },
});
const daddr = { payload: { protocol: "ip", field: "daddr" } };
const th = { payload: { protocol: "th", field: "dport" } };
const l4proto = { meta: { key: "l4proto" } };
const dnat = { dnat: { family: "ip", addr: "10.0.0.2", port: 80 } };

for (
  const [what, expr, expected] of [
    ["one port", [port(8080), dnat], ["tcp 8080 → 10.0.0.2"]],
    ["a set of ports and ranges", [port({ set: [53, { range: [60, 70] }] }, "udp"), dnat], [
      "udp 53,60-70 → 10.0.0.2",
    ]],
    ["a named set", [port("@some"), dnat], ["tcp 5,7-9 → 10.0.0.2"]],
    ["an address", [{ match: { op: "==", left: daddr, right: "192.0.2.1" } }, port(80), dnat], [
      "tcp 192.0.2.1 80 → 10.0.0.2",
    ]],
    ["a protocol by its number", [
      { match: { op: "==", left: l4proto, right: 17 } },
      { match: { op: "==", left: th, right: 53 } },
      dnat,
    ], ["udp 53 → 10.0.0.2"]],
    ["a port by its place in the header", [
      { match: { op: "==", left: { payload: { base: "th", offset: 16, len: 16 } }, right: 9 } },
      dnat,
    ], ["any 9 → 10.0.0.2"]],
    ["a concatenation", [
      {
        match: {
          op: "==",
          left: { concat: [daddr, port(0).match.left] },
          right: { set: [{ concat: ["192.0.2.1", 80] }, { concat: ["192.0.2.2", 81] }] },
        },
      },
      dnat,
    ], ["tcp 192.0.2.1 80 → 10.0.0.2", "tcp 192.0.2.2 81 → 10.0.0.2"]],
    ["a map", [
      { dnat: { family: "ip", addr: { map: { key: port(0).match.left, data: "@where" } } } },
    ], ["tcp 1000 → 10.0.0.1", "tcp 1001 → 10.0.0.2"]],
    ["a map of addresses, protocols and ports", [{
      dnat: {
        addr: {
          map: {
            key: { concat: [daddr, l4proto, th] },
            data: { set: [[{ concat: ["192.0.2.1", 6, 80] }, { concat: ["10.0.0.5", 8080] }]] },
          },
        },
      },
    }], ["tcp 192.0.2.1 80 → 10.0.0.5"]],
    ["a verdict map", [{ vmap: { key: { concat: [l4proto, th] }, data: "@verdicts" } }], [
      "tcp 30080 → 10.0.0.2",
    ]],
    ["redirect", [port(81), { redirect: { port: 82 } }], ["tcp 81 → itself"]],
    ["what iptables' programs know more of", [
      port(5),
      { xt: { type: "target", name: "DNAT" } },
    ], ["tcp 5 → itself"]],
    ["what is not understood narrows nothing", [
      { match: { op: "==", left: { osf: { key: "name" } }, right: "Linux" } },
      { queue: null },
      port(80),
      dnat,
    ], ["tcp 80 → 10.0.0.2"]],
    ["all ports but one", [{ match: { ...port(22).match, op: "!=" } }, dnat], []],
    ["no port", [dnat], []],
    ["what only accepts", [port(22), { accept: null }], []],
  ] as const
) {
  Deno.test(`parseListedRules, findClaims: ${what}`, () => {
    const text = JSON.stringify({
      nftables: [
        { metainfo: { json_schema_version: 1 } },
        { set: { name: "some", elem: [5, { range: [7, 9] }] } },
        {
          map: {
            name: "where",
            elem: [[{ elem: { val: 1000, comment: "x" } }, "10.0.0.1"], [1001, "10.0.0.2"]],
          },
        },
        {
          map: {
            name: "verdicts",
            elem: [[{ concat: ["tcp", 30080] }, { goto: { target: "service" } }], [
              { concat: ["tcp", 30081] },
              { drop: null },
            ]],
          },
        },
        { rule: { chain: "prerouting", expr } },
        { rule: { chain: "service", expr: [dnat] } },
      ],
    });
    assertEquals(claims(parseListedRules(text)), [...expected]);
  });
}
