import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { ipToBytes } from "../../lib/inet/ip.ts";
import { linkLocalOf } from "../../lib/vm/wire/guest-guard.ts";
import { DUAL_NETWORK } from "../support/dual-network.ts";
import { arp, bytes, ethernet, extension, icmpv6, ipv4, ipv6, udp } from "../support/frames.ts";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { eventually } from "../support/machine.ts";
import { Wiretap } from "../support/wiretap.ts";

const [IP, IPV6, ARP] = [0x0800, 0x86dd, 0x0806];
const ALL = "ff:ff:ff:ff:ff:ff";
/** Whatever other plugins the machine has. */
const BUILTIN = ["--plugins", "builtin"] as const;
/** Of the network, which is not translated on the way to its own. */
const NOBODY = "10.5.0.77";
const OTHER_MAC = "02:00:00:00:00:99";
const OTHER_LOCAL = "fe80::1234";
const DUAL_STACK = JSON.stringify(DUAL_NETWORK);

/** Sends frames as one guest, and `last`, which arrives; says which of them reached the other. */
async function reach(
  { from, to, last }: { from: Wiretap; to: Wiretap; last: Uint8Array },
  frames: readonly (readonly [name: string, frame: Uint8Array])[],
): Promise<string[]> {
  to.clear();
  for (const [, frame] of frames) from.send(frame);
  from.send(last);
  // What has not come before it does not come.
  await eventually(5000, "an honest frame behind the others reaches the other guest", () => {
    return to.heard.some((hex) => hex.startsWith(last.toHex()));
  });
  return frames.filter(([, frame]) => to.heard.some((hex) => hex.startsWith(frame.toHex())))
    .map(([name]) => name);
}

function forgeries(mac: string, own: string, own6: string) {
  const macs = { from: mac, to: ALL };
  const payload = udp({ source: 5000, destination: 5001 }, 40);
  const linkLocal = linkLocalOf(mac);
  const advert = icmpv6(134, ipToBytes("::"));
  const forged = [
    [
      "another's MAC",
      bytes(
        ethernet(IP, { ...macs, from: OTHER_MAC }),
        ipv4(payload, { source: own, destination: NOBODY }),
      ),
    ],
    [
      "another's IPv4 address",
      bytes(ethernet(IP, macs), ipv4(payload, { source: "10.5.0.200", destination: NOBODY })),
    ],
    ["another's IPv6 address", bytes(ethernet(IPV6, macs), ipv6(payload, 17, "fd00:5::200"))],
    [
      "ARP answer for the gateway",
      bytes(ethernet(ARP, macs), arp({ senderMac: mac, senderIp: "10.5.0.1", operation: 2 })),
    ],
    [
      "ARP with another's MAC",
      bytes(ethernet(ARP, macs), arp({ senderMac: OTHER_MAC, senderIp: own, operation: 2 })),
    ],
    ["router advertisement", bytes(ethernet(IPV6, macs), ipv6(advert, 58, linkLocal))],
    [
      "router advertisement behind a header",
      bytes(ethernet(IPV6, macs), ipv6(extension(58, advert), 60, linkLocal)),
    ],
    [
      "router advertisement in a fragment",
      bytes(ethernet(IPV6, macs), ipv6(bytes([58, 0, 0, 0, 0, 0, 0, 1], advert), 44, linkLocal)),
    ],
    [
      "fragment that hides its upper header",
      bytes(
        ethernet(IPV6, macs),
        ipv6(bytes([60, 0, 0, 1, 0, 0, 0, 1], extension(58, new Uint8Array(0))), 44, linkLocal),
      ),
    ],
    [
      "neighbour advertisement for another",
      bytes(ethernet(IPV6, macs), ipv6(icmpv6(136, ipToBytes("fd00:5::1")), 58, linkLocal)),
    ],
    ["another link-local address", bytes(ethernet(IPV6, macs), ipv6(payload, 17, OTHER_LOCAL))],
    [
      "neighbour advertisement for one",
      bytes(ethernet(IPV6, macs), ipv6(icmpv6(136, ipToBytes(OTHER_LOCAL)), 58, linkLocal)),
    ],
    [
      "ARP probe for another",
      bytes(
        ethernet(ARP, macs),
        arp({ senderMac: mac, senderIp: "0.0.0.0", targetIp: "10.5.0.200" }),
      ),
    ],
    ["another protocol", bytes(ethernet(0x88cc, macs), new Uint8Array(60))],
  ] as const;
  const honest = [
    ["IPv4", bytes(ethernet(IP, macs), ipv4(payload, { source: own, destination: NOBODY }))],
    ["IPv6", bytes(ethernet(IPV6, macs), ipv6(payload, 17, own6))],
    ["IPv6 link-local", bytes(ethernet(IPV6, macs), ipv6(payload, 17, linkLocal))],
    ["gratuitous ARP", bytes(ethernet(ARP, macs), arp({ senderMac: mac, senderIp: own }))],
    [
      "ARP probe",
      bytes(ethernet(ARP, macs), arp({ senderMac: mac, senderIp: "0.0.0.0", targetIp: own })),
    ],
    [
      "neighbour advertisement",
      bytes(ethernet(IPV6, macs), ipv6(icmpv6(136, ipToBytes(own6)), 58, linkLocal)),
    ],
  ] as const;
  const behind = udp({ source: 5000, destination: 5002 }, 40);
  const last = bytes(ethernet(IP, macs), ipv4(behind, { source: own, destination: NOBODY }));
  return { forged, honest, last };
}

for (const mode of ["tc-redirect", "dhcp-bridge"] as const) {
  Deno.test(`attach-vm: a guest speaks for itself and for nobody else (${mode})`, async (t) => {
    await using host = await Host.create();
    await host.writeFile("/etc/cni/net.d/10-dual.conflist", DUAL_STACK);
    // Else the host itself reassembles fragments and drops what makes no sense.
    await host.must("sysctl", ["-qw", "net.bridge.bridge-nf-call-ip6tables=0"]);
    const before = await host.snapshot();
    const { json } = await host.mustTapkit("attach-vm", "a", "b", "--mode", mode, ...BUILTIN);
    const [a, b] = json;
    assertEquals(a.interfaces[0].antispoof, undefined);
    {
      await using guestA = await NetnsGuest.start(host, a);
      await using guestB = await NetnsGuest.start(host, b);
      const [own, own6] = a.interfaces[0].addresses
        .map(({ address }: { address: string }) => address.split("/")[0]);
      const { forged, honest, last } = forgeries(a.interfaces[0].mac, own, own6);
      using from = Wiretap.open(guestA.netnsPath, "eth0");
      using to = Wiretap.open(guestB.netnsPath, "eth0");
      const way = { from, to, last };
      await t.step("forged frames go nowhere, honest ones do", async () => {
        assertEquals(await reach(way, forged), []);
        assertEquals(await reach(way, honest), honest.map(([name]) => name));
      });

      // What a guest needs to live goes on, and two guests reach each other.
      const lease = await guestA.dhcp();
      await guestB.dhcp();
      assertEquals(lease.ip, own);
      await guestB.serveHttp(80, "hello");
      const [other, other6] = b.interfaces[0].addresses
        .map(({ address }: { address: string }) => address.split("/")[0]);
      assertEquals((await guestA.fetch(`http://${other}/`)).body, "hello");
      for (const [guest, address] of [[guestA, own6], [guestB, other6]] as const) {
        await guest.must("ip", ["addr", "add", `${address}/64`, "dev", "eth0"]);
      }
      // Duplicate detection has its say first.
      for (const guest of [guestA, guestB]) await guest.settle();
      assertEquals((await guestA.fetch(`http://[${other6}]/`)).body, "hello");

      // What may hide DHCP, or is said by routers and switches, is dropped even then.
      const official = /hides|router|another protocol/;
      const names = forged.map(([name]) => name).filter((name) => !official.test(name));

      await t.step("let loose while it runs, and held again", async () => {
        const loose = await host.mustTapkit("attach-vm", "a", "--no-antispoof");
        assertEquals(loose.json[0].interfaces[0].antispoof, false);
        assertEquals(await reach(way, forged), names);
        await host.mustTapkit("attach-vm", "a");
        assertEquals((await host.tapkit("attach-vm", "a", "--check")).code, 0);
        assertEquals(await reach(way, forged.slice(0, 1)), names.slice(0, 1));
        await host.mustTapkit("attach-vm", "a", "--antispoof");
        assertEquals(await reach(way, forged), []);
      });

      await t.step(
        "a guard that is gone is missed, and put back while the guest runs",
        async () => {
          const netns = { netns: "tapkit-a" };
          await host.must("tc", ["filter", "del", "dev", "vm_eth0", "ingress", "pref", "1"], netns);
          const { code, json: [found] } = await host.tapkit("attach-vm", "a", "--check");
          assertEquals([code, found.problems], [3, [`the guard of "vm_eth0" is missing`]]);
          const mended = await host.mustTapkit("attach-vm", "a");
          assertStringIncludes(mended.stderr, 'repairing: the guard of "vm_eth0" is missing');
          assertEquals(await reach(way, forged), []);
        },
      );

      await t.step(
        "a link-local address of its own making is named, or any is let pass",
        async () => {
          const local = /^(another link-local|neighbour advertisement for one)/;
          for (const allowed of [OTHER_LOCAL, "any"]) {
            const { json: [named] } = await host.mustTapkit(
              "attach-vm",
              "a",
              "--link-local",
              allowed,
            );
            assertEquals(named.interfaces[0].linkLocal, allowed);
            const passing = names.filter((name) => local.test(name));
            assertEquals(await reach(way, forged), passing);
            assertEquals((await host.tapkit("attach-vm", "a", "--check")).code, 0);
          }
          await host.mustTapkit("attach-vm", "--restore");
          assertEquals((await reach(way, forged)).length, 2);
          await host.mustTapkit("attach-vm", "a", "--link-local", "eui64");
          assertEquals(await reach(way, forged), []);
        },
      );
      // Of what was let loose the other believed some.
      await guestB.must("ip", ["neigh", "flush", "dev", "eth0"]);
      assertEquals((await guestA.fetch(`http://${other}/`)).body, "hello");
    }
    await host.mustTapkit("attach-vm", "a", "b", "--remove");
    await host.assertRestored(before);
  });
}

Deno.test("attach-vm: a guest with a link-local address of its own making is on the network", async () => {
  await using host = await Host.create();
  await host.writeFile("/etc/cni/net.d/10-dual.conflist", DUAL_STACK);
  const { json: [record] } = await host.mustTapkit("attach-vm", "a", ...BUILTIN);
  await using guest = await NetnsGuest.start(host, record);
  const [, own6] = record.interfaces[0].addresses
    .map(({ address }: { address: string }) => address.split("/")[0]);
  // RFC 7217 with a secret, as NetworkManager, Windows and others have it.
  await guest.sh(`
    ip link set eth0 down
    echo 2001:db8::5ec:1e7 >/proc/sys/net/ipv6/conf/eth0/stable_secret
    ip link set eth0 up
    ip -6 addr add ${own6}/64 dev eth0
    ip -6 route add default via fd00:5::1`);
  await eventually(5000, "its addresses are not tentative", async () => {
    const shown = await guest.must("ip", ["-6", "addr", "show", "dev", "eth0"]);
    assert(!shown.includes("dadfailed"), shown);
    return /fe80/.test(shown) && !/tentative/.test(shown);
  });
  const shown = await guest.must("ip", ["-6", "addr", "show", "dev", "eth0", "scope", "link"]);
  assert(!shown.includes(linkLocalOf(record.interfaces[0].mac)), shown);
  await guest.serveHttp(80, "guest");
  await host.serveHttp(8000, "host");
  assertEquals((await guest.fetch("http://[fd00:5::1]:8000/")).body, "host");
  assertEquals((await host.fetch(`http://[${own6}]/`)).body, "guest");
  assertEquals((await guest.dhcp()).ip, record.interfaces[0].addresses[0].address.split("/")[0]);
});

Deno.test("attach-vm: flags of opposite meaning do not go together", async () => {
  await using host = await Host.create();
  const { code, stderr } = await host.tapkit("attach-vm", "a", "--antispoof", "--no-antispoof");
  assertEquals(code, 2);
  assertMatch(stderr, /--antispoof and --no-antispoof do not go together/);
  const local = await host.tapkit("attach-vm", "a", "--link-local", "2001:db8::1");
  assertEquals(local.code, 2);
  assertMatch(
    local.stderr,
    /"2001:db8::1" is not a link-local address: use an address of fe80::\/10, any/,
  );
  const line = '{"name":"a","no-antispoof":"yes"}\n';
  const from = await host.tapkit("attach-vm", "--from", "-", { stdin: line });
  assertEquals(from.code, 2);
  assertMatch(from.stderr, /"no-antispoof" is "yes": write true/);
});
