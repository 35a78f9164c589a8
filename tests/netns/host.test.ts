/** The throwaway hosts themselves: what they keep apart, and what their snapshots notice. */

import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { Host } from "../support/host.ts";
import { eventually } from "../support/machine.ts";
import { assertSameSnapshot } from "../support/snapshot.ts";

Deno.test("Host: keeps files, links and names away from the real machine", async () => {
  await using host = await Host.create({ name: "throwaway" });
  await host.sh(`
    mkdir -p /etc/cni/net.d /var/lib/cni /opt/cni/bin
    for path in /etc/cni/net.d/tapkit-proof /var/lib/tapkit-proof /opt/tapkit-proof \\
      /tmp/tapkit-proof /run/tapkit-proof; do echo here >$path; done
    ip netns add tapkit-proof
    ip link add tapkit-proof type bridge
  `);
  for (const directory of ["/etc/cni/net.d", "/var/lib", "/opt", "/tmp", "/run", "/run/netns"]) {
    assertThrows(() => Deno.statSync(`${directory}/tapkit-proof`), Deno.errors.NotFound);
  }
  assertEquals(await host.readFile("/etc/cni/net.d/tapkit-proof"), "here\n");
  assertEquals(await host.must("hostname"), "throwaway\n");
  assert(await host.must("ls", ["/sys/class/net"]) === "lo\ntapkit-proof\n");
  const links = new Deno.Command("ip", { args: ["link"] }).outputSync();
  assertEquals(new TextDecoder().decode(links.stdout).includes("tapkit-proof"), false);
});

Deno.test("Host.run: hands over input, environment, output and exit code", async () => {
  await using host = await Host.create();
  assertEquals(
    await host.run("bash", ["-c", "cat; echo $WORD >&2; exit 3"], {
      stdin: "in\n",
      env: { WORD: "word" },
    }),
    { code: 3, stdout: "in\n", stderr: "word\n" },
  );
  const late = await host.run("sleep", ["60"], { timeoutMs: 100 });
  assertEquals(late.code, 137);
  assertStringIncludes(late.stderr, "killed after 100 ms");
});

/** What a plant, the command that makes it, the one that takes it away, and how it shows. */
type Plant = readonly [what: string, plant: string, take: string, seen: string];

const PLANTS: readonly Plant[] = [
  ["a link", "ip link add br7 type bridge", "ip link delete br7", "+ link br7 kind bridge"],
  [
    "an address",
    "ip address add 10.9.9.9/24 dev eth-lan",
    "ip address delete 10.9.9.9/24 dev eth-lan",
    "+ address eth-lan 10.9.9.9/24",
  ],
  [
    "a route",
    "ip route add 10.8.0.0/16 dev lo table 77",
    "ip route flush table 77",
    "+ route dst 10.8.0.0/16 dev lo table 77",
  ],
  [
    "a rule",
    "ip rule add from 10.7.0.1 table 7",
    "ip rule delete from 10.7.0.1",
    "src 10.7.0.1 table 7",
  ],
  [
    "an nftables rule",
    "nft add table ip t; nft add chain ip t c; nft add rule ip t c counter drop",
    "nft delete table ip t",
    "+ nft table ip t / chain c / counter drop",
  ],
  [
    "a rule of iptables",
    "iptables-legacy -A FORWARD -s 10.1.1.1 -j DROP",
    "iptables-legacy -D FORWARD -s 10.1.1.1 -j DROP",
    "+ iptables-legacy-save -A FORWARD -s 10.1.1.1/32 -j DROP",
  ],
  [
    "a sysctl",
    "echo 1 >/proc/sys/net/ipv4/conf/lo/route_localnet",
    "echo 0 >/proc/sys/net/ipv4/conf/lo/route_localnet",
    "+ sysctl ipv4/conf/lo/route_localnet 1",
  ],
  ["a namespace", "ip netns add new", "ip netns delete new", "+ netns new"],
  [
    "a link in a namespace",
    "ip -n there link add br8 type bridge",
    "ip -n there link delete br8",
    "+ netns there: link br8 kind bridge",
  ],
  ["a file", "mkdir /var/lib/x; echo 1 >/var/lib/x/y", "rm -r /var/lib/x", "+ file /var/lib/x/y"],
  ["a changed file", "echo new >/etc/old", "echo old >/etc/old", "+ file /etc/old"],
  [
    "a deleted file",
    "cp -p /etc/passwd /run/p; rm /etc/passwd",
    "mv /run/p /etc/passwd",
    "+ deleted /etc/passwd",
  ],
  ["a file in /run", "echo 1 >/run/left", "rm /run/left", "+ file /run/left"],
  ["a mount", "mount -n -t tmpfs t /mnt", "umount -n /mnt", "+ mount /mnt"],
];

/** What iptables-legacy leaves: its lock, and the empty table. */
const TRACES = [
  /^iptables-legacy-save /,
  /^file \/run\/xtables\.lock /,
  /^directory \/run\/mount /,
];

Deno.test("Host.snapshot: sees whatever is planted, and nothing once it is gone", async (t) => {
  await using host = await Host.create();
  await host.addLan();
  await host.sh("ip netns add there; echo old >/etc/old");
  const before = await host.snapshot();
  await host.sh(PLANTS.map(([, plant]) => plant).join("\n"));
  const process = host.spawn("sleep", ["77"]);
  const during = await host.snapshot();
  const { message } = assertThrows(() => assertSameSnapshot(before, during), Error);
  for (const [what, , , seen] of PLANTS) {
    await t.step(what, () => assertStringIncludes(message, seen));
  }
  await t.step("a process", () => assertStringIncludes(message, "+ process sleep 77"));
  await process[Symbol.asyncDispose]();
  await host.sh(PLANTS.map(([, , take]) => take).join("\n"));
  await host.assertRestored(before, { strict: true, except: TRACES });
});

Deno.test("Host: its processes end with it, detached ones too", async () => {
  let pid: number;
  {
    await using host = await Host.create();
    await host.sh("setsid sleep 7777 </dev/null >/dev/null 2>&1 &");
    pid = host.pid;
    const runs = () => findProcesses(["sleep", "7777"]).length === 1;
    await eventually(2000, "the detached process runs", runs);
  }
  assertEquals(findProcesses(["sleep", "7777"]), []);
  assertThrows(() => Deno.readTextFileSync(`/proc/${pid}/environ`));
});

Deno.test("Host.addLan: machines reach each other by IPv4 and IPv6, HTTP and UDP", async () => {
  await using host = await Host.create();
  const peer = await host.addLan();
  await peer.serveHttp(80, "page\n");
  for (const address of ["192.0.2.2", "[2001:db8::2]"]) {
    assertEquals(await host.fetch(`http://${address}/`), { code: 0, status: 200, body: "page\n" });
  }
  const client = await host.fetch("http://192.0.2.2/cgi-bin/client");
  assertStringIncludes(client.body, "192.0.2.1");
  assertEquals((await host.fetch("http://192.0.2.2:81/")).code, 1);
  await host.serveUdp(53, "dns");
  const udp = await peer.udpClient("192.0.2.1", 53);
  const answer = await udp.answer("question");
  assertStringIncludes(answer ?? "nothing", "dns 192.0.2.2 ");
  assertEquals(await udp.answer("again"), answer);
  const deaf = await peer.udpClient("192.0.2.1", 54);
  assertEquals(await deaf.ask("question", 200), undefined);
});

function findProcesses(command: readonly string[]): string[] {
  return [...Deno.readDirSync("/proc")].map(({ name }) => name).filter((name) => {
    try {
      return Deno.readTextFileSync(`/proc/${name}/cmdline`) ===
        command.map((word) => `${word}\0`).join("");
    } catch {
      return false;
    }
  });
}
