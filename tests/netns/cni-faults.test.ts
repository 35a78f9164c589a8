/**
 * The faults of the installed reference plugins that lib/cni/reference-faults.ts cures. Where a step
 * fails, these plugins do not have the fault any more.
 *
 * @module
 */

import { assertEquals, assertMatch, assertRejects } from "@std/assert";
import { withNetns } from "../../lib/sys/netns.ts";
import {
  CniGuest,
  CniHost,
  type ReferenceCall,
  requireReference,
  runReference,
} from "../support/cni-reference.ts";

requireReference();

type Conf = Record<string, unknown>;

const CONTAINER = "0123456789abcdef0123456789abcdef0123";
const PORTS = [{ hostPort: 8080, containerPort: 80, protocol: "tcp" }];

/** A host with a guest, and plugins that are run for it. */
class Scene implements Disposable {
  readonly host = new CniHost();
  readonly guest = new CniGuest();

  /** A configuration whose plugin masquerades, with a pool of its own. */
  masquerading(type: string): Conf {
    const ipam = { type: "host-local", subnet: "10.20.0.0/24", dataDir: this.host.dataDir };
    return { type, bridge: "br0", isGateway: true, ipMasq: true, ipam };
  }

  // deno-lint-ignore no-explicit-any -- a result of the plugin's.
  call(command: ReferenceCall["command"], conf: Conf, netns = this.guest.path): Promise<any> {
    const config = { cniVersion: "1.0.0", name: "net", ...conf };
    const call = { command, containerId: CONTAINER, netns };
    return runReference(String(conf.type), call, config, this.host.netns);
  }

  /** Runs a program in the host's namespace; returns what it prints. */
  run(program: string, ...args: string[]): string {
    const command = new Deno.Command(program, { args });
    const { success, stdout, stderr } = withNetns(this.host.netns, () => command.outputSync());
    const decode = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
    if (!success) throw new Error(`${program} ${args.join(" ")}: ${decode(stderr)}`);
    return decode(stdout);
  }

  [Symbol.dispose](): void {
    this.guest[Symbol.dispose]();
    this.host[Symbol.dispose]();
  }
}

for (const type of ["bridge", "ptp"]) {
  Deno.test(`reference ${type}: CHECK does not see that masquerading was flushed (1)`, async () => {
    using scene = new Scene();
    const conf = scene.masquerading(type);
    const prevResult = await scene.call("ADD", conf);
    scene.run("iptables", "-t", "nat", "-F");
    assertEquals(await scene.call("CHECK", { ...conf, prevResult }), undefined);
  });

  Deno.test(`reference ${type}: DEL without the namespace leaves rules and the veth pair (2)`, async () => {
    using scene = new Scene();
    const conf = scene.masquerading(type);
    const prevResult = await scene.call("ADD", conf);
    await scene.call("DEL", { ...conf, prevResult }, "");
    assertMatch(scene.run("iptables", "-t", "nat", "-S"), new RegExp(CONTAINER));
    const ends = scene.host.ip("link", "show", "type", "veth");
    assertEquals(ends.length, 1);
  });

  Deno.test(`reference ${type}: DEL fails where the rules are gone, and succeeds then (3)`, async () => {
    using scene = new Scene();
    const conf = scene.masquerading(type);
    const prevResult = await scene.call("ADD", conf);
    scene.run("nft", "flush", "ruleset");
    const del = () => scene.call("DEL", { ...conf, prevResult });
    await assertRejects(del, Error, "does not exist");
    await del();
  });
}

Deno.test("reference portmap: CHECK right after ADD looks for IPv4's rules in ip6tables (4)", async () => {
  using scene = new Scene();
  const prevResult = await scene.call("ADD", scene.masquerading("bridge"));
  const conf = { type: "portmap", runtimeConfig: { portMappings: PORTS }, prevResult };
  await scene.call("ADD", conf);
  await assertRejects(() => scene.call("CHECK", conf), Error, "ipv6 dnat");
});

Deno.test("reference bridge: CHECK right after ADD fails without IPAM (4)", async () => {
  using scene = new Scene();
  const conf = { type: "bridge", bridge: "br0" };
  const prevResult = await scene.call("ADD", conf);
  await assertRejects(() => scene.call("CHECK", { ...conf, prevResult }), Error, "no plugin name");
});
