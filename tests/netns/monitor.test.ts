/** What the kernel tells of changes, and who hears it. */

import { assert, assertEquals } from "@std/assert";
import { Monitor, type Notice } from "../../lib/netlink/monitor.ts";
import { withNetns } from "../../lib/sys/netns.ts";
import { Host } from "../support/host.ts";
import { openNetns } from "../../lib/sys/netns.ts";
import { eventually } from "../support/machine.ts";

Deno.test("Monitor: hears changes of its namespace's nftables and links, and of links' other ends", async (t) => {
  await using host = await Host.create();
  await host.sh(
    "ip netns add a; ip link add v0 type veth peer name eth0 netns a; ip link set v0 up",
  );
  using netns = openNetns(host.netnsPath);
  using monitor = withNetns(netns, () => new Monitor());
  /** Runs a script, and waits for a notice of it. */
  const hears = async (script: string, is: (notice: Notice) => boolean): Promise<Notice> => {
    for (const _ of monitor.read());
    await host.sh(script);
    const heard: Notice[] = [];
    await eventually(5000, `${script} is heard`, () => {
      heard.push(...[...monitor.read()].flat());
      return heard.some(is);
    });
    return heard.find(is)!;
  };
  await t.step("a transaction of nf_tables, with its tables and who made it", async () => {
    const made = await hears("nft add table inet one", ({ about }) => about === "nftables");
    assert(made.about === "nftables");
    assertEquals([made.takes, made.tables, made.by?.name], [undefined, ["one"], "nft"]);
    const flushed = await hears("nft flush ruleset", ({ about }) => about === "nftables");
    assert(flushed.about === "nftables");
    assertEquals([flushed.takes, flushed.tables], ["rules", ["one"]]);
    await hears(
      "iptables-nft -A FORWARD -j ACCEPT",
      (one) => one.about === "nftables" && one.tables.includes("filter"),
    );
  });
  await t.step(
    "links, addresses, routes, qdiscs, filters, settings of its own namespace",
    async () => {
      const indices = new Set<number | undefined>();
      const cases = [
        ["ip link add br0 type bridge", "link", false],
        ["ip address add 10.1.0.1/24 dev br0", "address", false],
        ["ip link set br0 up; ip route add 10.9.0.0/24 via 10.1.0.2", "route", false],
        ["tc qdisc add dev br0 clsact", "qdisc", false],
        [
          "tc filter add dev br0 ingress u32 match u32 0 0 action mirred egress redirect dev br0",
          "filter",
          false,
        ],
        ["echo 1 >/proc/sys/net/ipv4/conf/br0/forwarding", "setting", false],
        ["tc filter del dev br0 ingress", "filter", true],
        ["tc qdisc del dev br0 clsact", "qdisc", true],
        ["ip route del 10.9.0.0/24", "route", true],
        ["ip address del 10.1.0.1/24 dev br0", "address", true],
        ["ip link del br0", "link", true],
      ] as const;
      for (const [script, about, gone] of cases) {
        const notice = await hears(
          script,
          (one) => one.about === about && "gone" in one && one.gone === gone,
        );
        assertEquals("nsid" in notice, false, script);
        if ("index" in notice) indices.add(notice.index);
      }
      assertEquals(indices.size, 1, `${[...indices]}`);
      assertEquals(typeof [...indices][0], "number");
    },
  );
  await t.step("of the namespace at a link's other end, with its number", async () => {
    const nsid = Number(
      /link-netnsid (\d+)|link-netns a/.exec(await host.sh("ip link show v0"))?.[1] ?? 0,
    );
    const added = await hears(
      "ip netns exec a ip tuntap add vm_eth0 mode tap",
      (one) => one.about === "link" && one.name === "vm_eth0",
    );
    assertEquals("nsid" in added && added.nsid, nsid);
    await hears(
      "ip netns exec a ip link del vm_eth0",
      (one) => one.about === "link" && one.gone && one.name === "vm_eth0" && one.nsid === nsid,
    );
  });
  await t.step("what does not fit is told as lost, and what follows is heard", async () => {
    using small = withNetns(netns, () => new Monitor({ receiveBuffer: 4096 }));
    await host.sh("for i in $(seq 40); do ip link add x$i type bridge; done");
    const notices = [...small.read()].flat();
    assert(notices.some(({ about }) => about === "lost"), `${notices.length} were kept`);
    assert(notices.length < 40);
    await hears("ip link add br1 type bridge", (one) => one.about === "link" && one.name === "br1");
  });
});
