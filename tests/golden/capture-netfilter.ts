/**
 * Makes the golden files of conntrack and nftables anew: what the kernel answers to `conntrack`
 * and `nft`. Needs root, conntrack, nftables and strace:
 * `deno run -A tests/golden/capture-netfilter.ts`.
 *
 * @module
 */

import { run, trace } from "./trace.ts";

interface Case {
  readonly name: string;
  readonly setup: string;
  readonly command: string;
  /** Type of the messages wanted: subsystem, then message (linux/netfilter/nfnetlink.h). */
  readonly type: string;
  /** Whether the program's requests are wanted, not the kernel's answers. */
  readonly sent?: boolean;
  /** What else a wanted message holds. */
  readonly holds?: string;
}

const [NEWRULE, NEWSETELEM, CT_NEW, BATCH_BEGIN] = ["060a", "0c0a", "0001", "1000"];
const PORTS_AT4 = "add map inet tapkit ports_at4 { type ipv4_addr . inet_proto . inet_service : " +
  "ipv4_addr . inet_service; }";
const hex = (text: string) => new TextEncoder().encode(text).toHex();

const table = (commands: string) => `nft "add table inet tapkit; ${commands}"`;

const CASES: readonly Case[] = [
  {
    name: "elements-ports_at4",
    setup: table(
      `${PORTS_AT4}; add element inet tapkit ports_at4 ` +
        '{ 192.0.2.1 . tcp . 8080 comment \\"web/eth0\\" : 172.18.0.2 . 80 }',
    ),
    command: "nft list map inet tapkit ports_at4",
    type: NEWSETELEM,
    holds: hex("web/eth0"),
  },
  {
    name: "elements-ports6",
    setup: table(
      "add map inet tapkit ports6 { type inet_proto . inet_service : ipv6_addr . inet_service; }; " +
        'add element inet tapkit ports6 { udp . 53 comment \\"web/eth0\\" : fd00:18::2 . 5353 }',
    ),
    command: "nft list map inet tapkit ports6",
    type: NEWSETELEM,
    holds: hex("web/eth0"),
  },
  {
    name: "elements-guests4",
    setup: table(
      "add set inet tapkit guests4 { type ipv4_addr . ifname; }; " +
        'add element inet tapkit guests4 { 172.18.0.2 . \\"ignite0\\" comment \\"web/eth0\\" }',
    ),
    command: "nft list set inet tapkit guests4",
    type: NEWSETELEM,
    holds: hex("web/eth0"),
  },
  {
    name: "elements-add",
    setup: table(PORTS_AT4),
    command: "nft add element inet tapkit ports_at4 " +
      `'{ 192.0.2.1 . tcp . 8080 comment "web/eth0" : 172.18.0.2 . 80 }'`,
    type: BATCH_BEGIN,
    sent: true,
  },
  {
    name: "elements-delete",
    setup: table(
      `${PORTS_AT4}; add element inet tapkit ports_at4 { 192.0.2.1 . tcp . 8080 : 172.18.0.2 . 80 }`,
    ),
    command: "nft delete element inet tapkit ports_at4 '{ 192.0.2.1 . tcp . 8080 }'",
    type: BATCH_BEGIN,
    sent: true,
  },
  {
    name: "rules",
    setup: table(
      'add chain inet tapkit forward; add rule inet tapkit forward accept comment \\"one\\"; ' +
        "add rule inet tapkit forward drop",
    ),
    command: "nft list table inet tapkit",
    type: NEWRULE,
  },
  {
    name: "flows",
    setup: "conntrack -I -p udp -s 192.0.2.50 -d 192.0.2.1 --sport 40000 --dport 53 -t 60 " +
      "--dst-nat 172.18.0.2:5353 >/dev/null 2>&1; " +
      "conntrack -I -p tcp -s 2001:db8::50 -d 2001:db8::1 --sport 40001 --dport 80 -t 60 " +
      "--state ESTABLISHED >/dev/null 2>&1",
    command: "conntrack -L",
    type: CT_NEW,
  },
];

function capture(test: Case): string {
  const wanted = trace(test.setup, test.command).filter(({ sent, hex }) =>
    sent === (test.sent ?? false) && hex.slice(8, 12) === test.type &&
    hex.includes(test.holds ?? "")
  );
  if (wanted.length === 0) throw new Error(`${test.name}: nothing was captured`);
  return wanted.map(({ hex }) => hex.replaceAll(/.{64}(?=.)/g, "$&\n")).join("\n\n");
}

const nft = run("nft", ["-v"]).replace(/ \(.*/, "");
const conntrack = run("conntrack", ["-V"]).split("\n", 1)[0];
const kernel = Deno.osRelease().replace(/-.*/, "");
const folder = new URL("./netfilter/", import.meta.url);
Deno.mkdirSync(folder, { recursive: true });
for (const test of CASES) {
  const program = test.command.startsWith("nft") ? nft : conntrack;
  const head = [
    `# ${test.command}`,
    `# ${test.sent ? "request" : "answers"}; ${program}; Linux ${kernel} ${Deno.build.arch}`,
    `# after: ${test.setup}`,
  ];
  const text = `${head.join("\n")}\n\n${capture(test)}\n`;
  Deno.writeTextFileSync(new URL(`${test.name}.hex`, folder), text);
  console.error(test.name);
}
