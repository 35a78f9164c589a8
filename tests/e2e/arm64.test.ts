/** The other processor that tapkit is for: what the kernel takes and gives has other shapes there. */

import { assertEquals } from "@std/assert";
import { runOnArm64 } from "../support/arm64.ts";

/** The resident does what it still has to do, and ends, when no VM is left. */
const ENDED = `for i in $(seq 100); do
  [ -n "$(ls /run/netns)$(ls /sys/class/net | grep -v '^lo$')" ] || break; sleep 0.3
done; ls /run/netns /sys/class/net`;

Deno.test("arm64: attach, DHCP's server, the resident, ports, look, and remove without a trace", async () => {
  const commands = {
    arch: "uname -m",
    attached: "tapkit attach-vm web --ports 8080:80",
    links: "ls /sys/class/net",
    served: `for i in $(seq 100); do [ ! -S /run/tapkit/tapkit.sock ] || break; sleep 0.3; done
      tapkit attach-vm web --check`,
    mapped: "tapkit map-port web 8081:81",
    more: "tapkit attach-vm a b",
    listed: "tapkit attach-vm --list",
    log: "cat /var/lib/tapkit/serve-dhcp.log",
    alone: "TAPKIT_SOCKET=none tapkit attach-vm a --remove",
    removed: "tapkit attach-vm --remove --all",
    left: ENDED,
  };
  const outcomes = await runOnArm64(Object.values(commands));
  const said = outcomes.map(({ code, stdout, stderr }, index) =>
    `${Object.values(commands)[index]}: exit ${code}\n${stdout}${stderr}`
  ).join("\n");
  assertEquals(outcomes.map(({ code }) => code), outcomes.map(() => 0), said);
  const by = Object.fromEntries(
    Object.keys(commands).map((name, index) => [name, outcomes[index]!.stdout]),
  ) as typeof commands;
  const lines = (text: string) => text.trim().split("\n").map((line) => JSON.parse(line));
  assertEquals(by.arch.trim(), "aarch64");
  assertEquals(lines(by.attached)[0].interfaces[0].addresses[0].address, "172.18.0.2/16", said);
  assertEquals(by.links.split("\n").filter((name) => name.startsWith("veth")).length, 1, said);
  assertEquals(lines(by.served), [{ vm: "web", problems: [] }], said);
  assertEquals(lines(by.mapped)[0].ports.map(({ hostPort }: { hostPort: number }) => hostPort), [
    8080,
    8081,
  ], said);
  assertEquals(lines(by.listed).map(({ vm }) => vm), ["a", "b", "web"], said);
  // What it did, and not a command by itself.
  assertEquals(/map-port web 8081:81: done/.test(by.log), true, said);
  assertEquals(lines(by.removed).map(({ vm }) => vm), ["b", "web"], said);
  assertEquals(by.left.trim(), "/run/netns:\n\n/sys/class/net:\nlo", said);
});
