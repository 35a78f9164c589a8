import { assertEquals, assertMatch } from "@std/assert";
import { Host } from "../support/host.ts";
import { ROOT } from "../support/machine.ts";

const SMALL = JSON.stringify({
  cniVersion: "0.4.0",
  name: "small",
  plugins: [
    {
      type: "bridge",
      bridge: "br-small",
      isGateway: true,
      ipMasq: true,
      ipam: { type: "host-local", subnet: "10.9.9.0/30" },
    },
    { type: "portmap", capabilities: { portMappings: true } },
  ],
});

Deno.test("attach-vm: a step that fails leaves nothing of those before it", async (t) => {
  const cases: [what: string, prepare: string, args: string[], message: RegExp][] = [
    ["the pool is full", "true", ["--network", "small"], /"small" has no free address/],
    [
      "a process listens on the port",
      "(busybox nc -l -p 8080 >/dev/null 2>&1 &) ;" +
      "until grep -q :1F90 /proc/net/tcp /proc/net/tcp6; do sleep 0.02; done",
      ["--ports", "8080:80"],
      /host port 8080\/tcp is in use by .*\(pid \d+\)/,
    ],
    [
      "the bridge's name is another link's",
      "ip link add ignite0 type veth peer name other",
      [],
      /"ignite0" is not a bridge/,
    ],
    [
      "the bridge has another address",
      "ip link add ignite0 address 02:00:00:00:00:09 up type bridge; " +
      "ip addr add 10.1.1.1/24 dev ignite0",
      [],
      /"ignite0" has the address 10\.1\.1\.1\/24/,
    ],
    [
      "the namespace is somebody else's",
      "ip netns add tapkit-web",
      [],
      /network namespace \/run\/netns\/tapkit-web is there already, and is not tapkit's/,
    ],
    [
      "the TAP's name is taken in the given namespace",
      "ip netns add mine; ip -n mine link add vm_eth0 type veth peer name x",
      ["--netns", "/run/netns/mine"],
      /\/run\/netns\/mine has a link "vm_eth0" already/,
    ],
    [
      "the interface's name is taken in the given namespace",
      "ip netns add mine; ip -n mine link add eth0 type veth peer name x",
      ["--netns", "/run/netns/mine"],
      /\/run\/netns\/mine has a link "eth0" already/,
    ],
    [
      "the subnet overlaps a route that came in between",
      "ip route add 172.18.4.0/24 via 192.0.2.2",
      [],
      /172\.18\.0\.0\/16 .*172\.18\.4\.0\/24/,
    ],
    [
      "the record cannot be written",
      "mkdir -p /var/lib/tapkit && mount -t tmpfs -o size=4k,nr_inodes=4 tmpfs /var/lib/tapkit",
      [],
      /space/i,
    ],
  ];
  for (const [what, prepare, args, message] of cases) {
    await t.step(what, async () => {
      await using host = await Host.create();
      await host.addLan();
      await host.mustTapkit("install-default-cni");
      await host.writeFile("/etc/cni/net.d/20-small.conflist", SMALL);
      const builtin = ["--plugins", "builtin"];
      await host.mustTapkit("attach-vm", "other", "--network", "small", ...builtin);
      await host.sh(prepare);
      // The bridge's IPv6 address comes by itself a second or two after it.
      const before = await host.snapshot();
      const { code, stdout, stderr } = await host.tapkit("attach-vm", "web", ...builtin, ...args);
      assertEquals([code, stdout], [1, ""], stderr);
      assertMatch(stderr, message);
      await host.assertRestored(before, {
        except: [/fe80:/, /ff00::/, /serve-dhcp/],
      });
    });
  }
});

Deno.test("attach-vm: a namespace that cannot be opened is not taken for one that is gone", async (t) => {
  const commands: [args: string[], netns: string][] = [
    [["web"], "tapkit-web"],
    [["web", "--check"], "tapkit-web"],
    [["web", "--remove"], "mine"],
  ];
  for (const [args, name] of commands) {
    await t.step(args.join(" "), async () => {
      await using host = await Host.create();
      await host.addLan();
      if (name === "mine") await host.must("ip", ["netns", "add", name]);
      const given = name === "mine" ? ["--netns", `/run/netns/${name}`] : [];
      await host.mustTapkit("attach-vm", "web", ...given);
      const before = await host.snapshot();
      const fault = ["-o", "/dev/null", "-P", `/run/netns/${name}`, "-e", "trace=openat"];
      const inject = ["-e", "inject=openat:error=ENFILE", "--", Deno.execPath(), "run", "-A"];
      const script = [`${ROOT}/scripts/attach-vm.ts`, ...args];
      const { code, stderr } = await host.run("strace", [...fault, ...inject, ...script]);
      assertEquals(code, 1, stderr);
      assertMatch(stderr, /open \/run\/netns\/[a-z-]+: ENFILE: raise the system's limit/);
      await host.assertRestored(before, { except: [/serve-dhcp/, /fe80:/, /ff00::/] });
      await host.mustTapkit("attach-vm", "web", "--remove");
    });
  }
});

Deno.test("attach-vm --remove: whatever is gone already, the rest goes", async (t) => {
  const damages: [what: string, damage: string][] = [
    ["the namespace", "ip netns delete tapkit-web"],
    ["the record", "rm /var/lib/tapkit/vms/web.json"],
    ["record and namespace", "rm /var/lib/tapkit/vms/web.json; ip netns delete tapkit-web"],
    ["the whole state directory", "rm -r /var/lib/tapkit"],
    ["the link", "ip -n tapkit-web link delete eth0"],
    ["the bridge", "ip link delete ignite0"],
    ["the rules", "nft flush ruleset"],
    ["the address's file", "rm /var/lib/cni/networks/ignite-cni-bridge/172.18.0.2"],
    ["the whole pool", "rm -r /var/lib/cni"],
    ["the conflist", "rm /etc/cni/net.d/10-ignite.conflist"],
    ["a clean unmount: the plain file stays", "busybox umount /run/netns/tapkit-web"],
  ];
  for (const [what, damage] of damages) {
    await t.step(what, async () => {
      await using host = await Host.create();
      await host.addLan();
      const before = await host.snapshot();
      await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
      await host.sh(damage);
      await host.mustTapkit("attach-vm", "web", "--remove");
      await host.assertRestored(before);
    });
  }
});

Deno.test("attach-vm: a torn or foreign record is named, kept, and gone after --remove", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  await host.mustTapkit("attach-vm", "web");
  const path = "/var/lib/tapkit/vms/web.json";
  const whole = await host.readFile(path);
  for (const text of [whole.slice(0, whole.length / 2), "", '{"version":7}', "[]", "null"]) {
    await host.writeFile(path, text);
    const { code, stderr } = await host.tapkit("attach-vm", "web");
    assertEquals(code, 1, stderr);
    assertMatch(stderr, /the record \/var\/lib\/tapkit\/vms\/web\.json is/);
    assertEquals(await host.readFile(path), text);
    const list = await host.mustTapkit("attach-vm", "--list");
    assertMatch(list.stderr, /warning: the record/);
  }
  await host.mustTapkit("attach-vm", "web", "--remove");
  await host.assertRestored(before);
});

Deno.test("attach-vm: twenty at once, each with an address of its own", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  const names = Array.from({ length: 20 }, (_, index) => `vm${index}`);
  const attached = await Promise.all(
    names.map((name) => host.mustTapkit("attach-vm", name, "--ports", "0:80")),
  );
  const records = attached.map(({ json }) => json[0]);
  const distinct = (values: unknown[]) => assertEquals(new Set(values).size, names.length);
  distinct(records.map(({ interfaces: [link] }) => link.addresses[0].address));
  distinct(records.map(({ interfaces: [link] }) => link.mac));
  distinct(records.map(({ ports: [port] }) => port.hostPort));
  await Promise.all(names.map((name) => host.mustTapkit("attach-vm", name, "--remove")));
  await host.assertRestored(before);
});

Deno.test("attach-vm: a DHCP server that cannot be started is warned about, what is attached stays", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  await host.sh("mkdir -p /var/lib/tapkit/serve-dhcp.lock");
  const { json, stderr } = await host.mustTapkit("attach-vm", "web");
  assertEquals(json[0].vm, "web");
  assertMatch(
    stderr,
    /warning: guests get no lease, .*serve-dhcp\.lock.*: run serve when that is repaired/,
  );
  await host.sh("rmdir /var/lib/tapkit/serve-dhcp.lock");
  await host.mustTapkit("attach-vm", "web", "--remove");
  await host.assertRestored(before);
});
