/** Tracked connections: no command walks the kernel's table of them on its ordinary way. */

import { assert, assertEquals } from "@std/assert";
import { scriptWords } from "../support/bundle.ts";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";
import { fetchName, serveName } from "../support/http.ts";

const TRACE = "/run/flows.trace";

/** Requests for a dump of ctnetlink, as strace writes them. */
const DUMP = /CTNETLINK<<8\|IPCTNL_MSG_CT_GET\b.*NLM_F_DUMP/;

Deno.test("no command walks the tracked connections, but where a port or an address is given out again", async (t) => {
  await using host = await Host.create();
  const peer = await host.addLan();
  const { json: [side] } = await host.mustTapkit("attach-vm", "side", "--ports", "9000:80");
  await using guest = await NetnsGuest.start(host, side);
  await guest.dhcp();
  await serveName(guest);
  const walks = async (...words: string[]) => {
    const [script, ...args] = words;
    const command = [Deno.execPath(), ...scriptWords(script!), ...args];
    await host.must("strace", [
      "-f",
      "-s",
      "64",
      "-e",
      "trace=sendto,sendmsg",
      "-o",
      TRACE,
      ...command,
    ]);
    const text = await host.readFile(TRACE);
    await host.must("rm", [TRACE]);
    assert(text.includes("NETLINK") || text.includes("nlmsg"), "nothing was traced");
    return text.split("\n").filter((line) => DUMP.test(line)).length;
  };
  // Something is tracked.
  assertEquals(await fetchName(peer, "192.0.2.1", 9000), "side");
  assert(Number(await host.sh("conntrack -C")) > 0);

  await t.step("attach, attach again, map and remove", async () => {
    assertEquals(await walks("attach-vm", "web", "--ports", "8080:80"), 0);
    assertEquals(await walks("attach-vm", "web", "--ports", "8080:80"), 0);
    assertEquals(await walks("map-port", "web", "8081:80"), 0);
    assertEquals(await walks("attach-vm", "web", "--check"), 0);
    assertEquals(await walks("attach-vm", "web", "--remove"), 0);
  });
  await t.step("a port that is given out again is worth one walk, the next one none", async () => {
    assertEquals(await walks("attach-vm", "api", "--ports", "8080:80"), 1);
    assertEquals(await walks("attach-vm", "other", "--ports", "8082:80"), 0);
    assertEquals(await walks("attach-vm", "other", "api", "--remove"), 0);
  });
});
