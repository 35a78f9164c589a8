/** A VM beside another firewall: what has to work, whatever that firewall is. */

import { assertEquals, assertMatch } from "@std/assert";
import { NetnsGuest } from "./guest-netns.ts";
import type { Host } from "./host.ts";
import { fetchName, serveName } from "./http.ts";
import { eventually, type Machine } from "./machine.ts";

/** A firewall that is there already. */
export interface OtherFirewall {
  /** What it has, comparable. */
  readonly list: (host: Host) => Promise<string>;
  /** Whether it is one whose default closes published ports, and its name on stderr. */
  readonly denies?: string;
  /** Shell commands that take tapkit's rules away, as its reload does. */
  readonly reload: string;
  /** What `--check` says then. */
  readonly problem: RegExp;
  /** Further words for attach-vm. */
  readonly options?: readonly string[];
  /** Called where everything is in place, for what is particular. */
  readonly meanwhile?: (host: Host, peer: Machine) => Promise<void>;
}

/** Rules without what counts or changes by itself. */
export const LIST_IPTABLES = `for save in {iptables,ip6tables}-{nft,legacy}-save; do
  $save 2>/dev/null | sed -E '/^#/d; s/ \\[[0-9]+:[0-9]+\\]//; s/^\\[[0-9]+:[0-9]+\\] //'
done`;

/** Starts firewalld, on a message bus of its own. */
export async function startFirewalld(host: Host): Promise<void> {
  await host.sh("mkdir -p /run/dbus; dbus-uuidgen --ensure");
  host.spawn("dbus-daemon", ["--system", "--nofork", "--nopidfile"]);
  const answers = async (command: string, ...args: string[]) =>
    (await host.run(command, args)).code === 0;
  await eventually(10_000, "the message bus listens", () => {
    return answers("test", "-S", "/run/dbus/system_bus_socket");
  });
  host.spawn("firewalld", ["--nofork", "--nopid"]);
  await eventually(60_000, "firewalld runs", () => answers("firewall-cmd", "--state"));
}

const HOST_ADDRESS = "192.0.2.1";
const PEER_ADDRESS = "192.0.2.2";

/** Attaches a VM with a published port and walks through all that is wanted of it. */
export async function testCoexistence(
  host: Host,
  peer: Machine,
  other: OtherFirewall,
): Promise<void> {
  await serveName(peer, 8000);
  const before = await other.list(host);
  const attach = ["web", "--ports", "8080:80", ...other.options ?? []];
  const { json: [record], stderr } = await host.mustTapkit("attach-vm", ...attach);
  await using guest = await NetnsGuest.start(host, record);
  await guest.dhcp();
  await serveName(guest);

  const reachesOut = () => fetchName(guest, PEER_ADDRESS, 8000);
  const published = () => fetchName(peer, HOST_ADDRESS, 8080);
  assertEquals(await reachesOut(), "peer", "the VM reaches out");
  if (other.denies !== undefined) {
    assertMatch(stderr, new RegExp(`${other.denies} keeps .* attach-vm web --open-firewall`));
    assertEquals(await published(), "closed", "closed until it is opened");
    assertEquals(await fetchName(host, "127.0.0.1", 8080), "web", "the host itself reaches it");
    await host.mustTapkit("attach-vm", "web", "--open-firewall");
  }
  assertEquals(await published(), "web", "the published port");
  assertEquals((await host.tapkit("attach-vm", "web", "--check")).json, [
    { vm: "web", problems: [] },
  ]);
  await other.meanwhile?.(host, peer);

  await host.sh(other.reload);
  const { json: [checked], code } = await host.tapkit("attach-vm", "web", "--check");
  assertEquals(code, 3);
  assertMatch(checked.problems.join("\n"), other.problem);
  await host.mustTapkit("attach-vm", "web");
  assertEquals([await reachesOut(), await published()], ["peer", "web"], "after the repair");
  assertEquals((await host.tapkit("attach-vm", "web", "--check")).code, 0);

  if (other.denies !== undefined) {
    await host.mustTapkit("attach-vm", "web", "--no-open-firewall");
    assertEquals(await published(), "closed", "closed again");
  }
  await host.mustTapkit("attach-vm", "web", "--remove");
  assertEquals(await other.list(host), before, "as it was, byte for byte");
}
