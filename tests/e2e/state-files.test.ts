/**
 * Files of the state that a crash, an administrator or another program left: survived, and what is
 * not tapkit's stays.
 *
 * @module
 */

import { assertEquals, assertMatch } from "@std/assert";
import { Host } from "../support/host.ts";

const ID = "4b5e57f6eb2f42b9039b3d1e13929295f231749c510cbe341cd68036d9af97e2";
const POOL = "/var/lib/cni/networks/ignite-cni-bridge";
const STATE = "/var/lib/tapkit";

/** What is found, and what is expected of an attachment and a removal that find it. */
interface Case {
  readonly what: string;
  readonly files: Readonly<Record<string, string>>;
  readonly address: string;
  /** The files that must be there, untouched, after the removal; the others must not. */
  readonly kept?: readonly string[];
}

const CASES: readonly Case[] = [
  {
    what: "a torn counter of the pool",
    files: { [`${POOL}/last_reserved_ip.0`]: "172.18." },
    address: "172.18.0.2/16",
  },
  {
    what: "an address whose file names nobody, and one of somebody else",
    files: { [`${POOL}/172.18.0.2`]: "", [`${POOL}/172.18.0.3`]: "other\r\neth0" },
    address: "172.18.0.4/16",
    kept: [`${POOL}/172.18.0.2`, `${POOL}/172.18.0.3`],
  },
  {
    what: "a half written reservation",
    files: { [`${POOL}/.${ID}.eth0`]: ID.slice(0, 9) },
    address: "172.18.0.2/16",
  },
  {
    what: "a half written record",
    files: { [`${STATE}/vms/web.json.tmp`]: '{"version":1,"vm":' },
    address: "172.18.0.2/16",
  },
  {
    what: "locks that nobody holds",
    files: {
      [`${STATE}/lock`]: "",
      [`${STATE}/locks/web`]: "",
      [`${STATE}/serve-dhcp.lock`]: "",
      [`${POOL}/lock`]: "",
    },
    address: "172.18.0.2/16",
  },
  {
    what: "another VM's torn record",
    files: { [`${STATE}/vms/other.json`]: '{"vers' },
    address: "172.18.0.2/16",
    kept: [`${STATE}/vms/other.json`],
  },
];

Deno.test("attach-vm: files that were left or are foreign are survived, and nothing is lost", async () => {
  for (const { what, files, address, kept = [] } of CASES) {
    await using host = await Host.create();
    await host.addLan();
    await host.mustTapkit("install-default-cni");
    for (const [path, text] of Object.entries(files)) await host.writeFile(path, text);
    const { json: [record] } = await host.mustTapkit("attach-vm", "web");
    assertEquals(record.interfaces[0].addresses[0].address, address, what);
    assertEquals((await host.tapkit("attach-vm", "web", "--check")).json[0].problems, [], what);
    await host.mustTapkit("attach-vm", "web", "--remove");
    for (const [path, text] of Object.entries(files)) {
      const found = await host.readFile(path).catch(() => undefined);
      if (kept.includes(path)) assertEquals(found, text, `${what}: ${path}`);
      else if (path.startsWith(STATE)) await host.awaitGone(path);
    }
  }
});

Deno.test("attach-vm: an id that a VM without a record holds is taken over", async () => {
  await using host = await Host.create();
  await host.addLan();
  const before = await host.snapshot();
  await host.sh(`mkdir -p ${STATE}/ids; ln -s gone ${STATE}/ids/${ID.slice(0, 7)}`);
  await host.mustTapkit("attach-vm", "web");
  await host.mustTapkit("attach-vm", "web", "--remove");
  await host.assertRestored(before);
});

Deno.test("attach-vm: a state directory without room, and one that is read-only, are named with the mend", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.sh("mkdir /tmp/full && mount -t tmpfs -o size=16k tmpfs /tmp/full");
  await host.sh("dd if=/dev/zero of=/tmp/full/fill bs=4k 2>/dev/null || true");
  await host.sh("mkdir /tmp/ro && mount -t tmpfs -o ro tmpfs /tmp/ro");
  const cases: [directory: string, message: RegExp][] = [
    [
      "/tmp/full",
      /\/tmp\/full\S* cannot be written: No space left on device: check that its file system/,
    ],
    [
      "/tmp/ro/state",
      /mkdir '\/tmp\/ro\/state': Read-only file system \(EROFS\): name another one/,
    ],
  ];
  for (const [directory, message] of cases) {
    const before = await host.snapshot();
    const { code, stderr } = await host.tapkit("attach-vm", "web", "--state-dir", directory);
    assertEquals(code, 1, stderr);
    assertMatch(stderr, message);
    await host.assertRestored(before);
  }
});
