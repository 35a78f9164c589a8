import { assertEquals, assertMatch } from "@std/assert";
import { Host } from "../support/host.ts";
import { NetnsGuest } from "../support/guest-netns.ts";
import { fetchName, serveName } from "../support/http.ts";

for (const variant of ["nft", "legacy"] as const) {
  Deno.test(`attach-vm --firewall iptables: publishes, checks, mends, and goes (${variant})`, async () => {
    await using host = await Host.create();
    const peer = await host.addLan();
    await host.sh(`iptables-${variant} -t nat -S; ip6tables-${variant} -t nat -S`);
    const { json: [record] } = await host.mustTapkit(
      ...["attach-vm", "web", "--ports", "8080:80", "--firewall", "iptables"] as const,
    );
    await using guest = await NetnsGuest.start(host, record);
    await guest.dhcp();
    await serveName(guest);
    assertEquals(await fetchName(peer, "192.0.2.1", 8080), "web");
    assertMatch(await host.sh(`iptables-${variant}-save -t nat`), /--comment "web\/eth0" -j DNAT/);
    // Limits are nftables' also then.
    assertEquals((await host.sh("nft list tables inet")).trim(), "table inet tapkit_limits");

    await host.sh(`iptables-${variant} -t nat -F; iptables-${variant} -F`);
    const checked = await host.tapkit("attach-vm", "web", "--check");
    assertEquals(checked.code, 3);
    assertMatch(checked.json[0].problems.join(), /iptables lacks the rule/);
    assertMatch(checked.json[0].problems.join(), /mapping of 0.0.0.0:8080\/tcp is missing/);
    await host.mustTapkit("attach-vm", "web");
    assertEquals(await fetchName(peer, "192.0.2.1", 8080), "web");
    assertEquals((await host.tapkit("attach-vm", "web", "--check")).code, 0);

    const changed = await host.tapkit("attach-vm", "web", "--firewall", "nftables");
    assertEquals(changed.code, 1);
    assertMatch(changed.stderr, /its firewall backend cannot be changed while it is attached/);
    const other = await host.tapkit(
      "attach-vm",
      "api",
      "--ports",
      "8080:80",
      "--firewall",
      "nftables",
    );
    assertMatch(other.stderr, /host port 8080\/tcp is already mapped to VM "web"/);

    await host.mustTapkit("attach-vm", "web", "--remove");
    const rules = await host.sh(`iptables-${variant}-save; ip6tables-${variant}-save`);
    assertEquals(rules.split("\n").filter((line) => /TAPKIT|^-A/.test(line)), []);
  });
}

Deno.test("attach-vm --remove: takes away what either backend has of a VM whose record is lost", async () => {
  await using host = await Host.create();
  await host.addLan();
  for (const backend of ["iptables", "nftables"]) {
    await host.mustTapkit("attach-vm", "web", "--ports", "8080:80", "--firewall", backend);
    await host.sh("rm /var/lib/tapkit/vms/web.json");
    await host.mustTapkit("attach-vm", "web", "--remove");
    const left = await host.sh("iptables-save; ip6tables-save; nft list tables inet");
    assertEquals(left.split("\n").filter((line) => /TAPKIT|tapkit/.test(line)), [], backend);
  }
});
