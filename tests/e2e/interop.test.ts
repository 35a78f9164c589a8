/**
 * Containers on the reference CNI plugins and VMs on tapkit, on one bridge and from one pool.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { requireReference, runOnMachine } from "../support/cni-reference.ts";
import { NetnsGuest } from "../support/guest-netns.ts";
import { Host } from "../support/host.ts";

const CONFLIST = "/etc/cni/net.d/10-ignite.conflist";
const POOL = "/var/lib/cni/networks/ignite-cni-bridge";

// deno-lint-ignore no-explicit-any -- CNI's own shapes.
type Json = any;

/** A container: a namespace on the default network, by the whole chain of reference plugins. */
class Container {
  readonly name: string;
  readonly #host: Host;
  #plugins: readonly Json[] = [];
  #result: Json;

  private constructor(host: Host, name: string) {
    this.#host = host;
    this.name = name;
  }

  static async attach(host: Host, name: string): Promise<Container> {
    const container = new Container(host, name);
    const { name: network, cniVersion, plugins } = JSON.parse(await host.readFile(CONFLIST));
    container.#plugins = plugins.map((plugin: Json) => ({ ...plugin, name: network, cniVersion }));
    await host.must("ip", ["netns", "add", name]);
    await host.must("ip", ["-n", name, "link", "set", "lo", "up"]);
    for (const plugin of container.#plugins) {
      const prevResult = container.#result === undefined ? {} : { prevResult: container.#result };
      container.#result = await runOnMachine(host, "ADD", container.#self, {
        ...plugin,
        ...prevResult,
      });
    }
    return container;
  }

  get #self() {
    return { id: `container-${this.name}`, netns: `/run/netns/${this.name}` };
  }

  get address(): string {
    return this.#result.ips[0].address.split("/")[0];
  }

  async remove(): Promise<void> {
    for (const plugin of this.#plugins.toReversed()) {
      const config = { ...plugin, prevResult: this.#result };
      await runOnMachine(this.#host, "DEL", this.#self, config);
    }
    await this.#host.must("ip", ["netns", "delete", this.name]);
  }
}

async function openHost(): Promise<Host> {
  requireReference();
  const host = await Host.create();
  await host.addLan();
  await host.mustTapkit("install-default-cni");
  return host;
}

async function attachVm(host: Host, name: string, ...args: string[]): Promise<Json> {
  return (await host.mustTapkit("attach-vm", name, ...args)).json[0];
}

const addressOf = (record: Json): string => record.interfaces[0].addresses[0].address.split("/")[0];

/** The addresses of the pool that somebody holds. */
async function reserved(host: Host): Promise<string[]> {
  const names = (await host.sh(`ls ${POOL}`)).trim().split("\n");
  return names.filter((name) => /^[0-9.]+$/.test(name)).sort();
}

async function bridgePorts(host: Host): Promise<number> {
  return JSON.parse(await host.must("ip", ["-j", "link", "show", "master", "ignite0"])).length;
}

for (const first of ["container", "VM"] as const) {
  Deno.test(`interop: a ${first} comes first: both reach each other, each removes its own`, async () => {
    await using host = await openHost();
    let container: Container | undefined;
    if (first === "container") container = await Container.attach(host, "c1");
    const record = await attachVm(host, "web");
    container ??= await Container.attach(host, "c1");
    const addresses = [container.address, addressOf(record)];
    assertEquals(await reserved(host), addresses.toSorted());

    await using guest = await NetnsGuest.start(host, record);
    await guest.dhcp();
    await guest.serveHttp(80, "from the VM");
    const fromContainer = await host.fetch(`http://${addresses[1]}/`, { netns: container.name });
    assertEquals(fromContainer.body, "from the VM");
    await host.writeFile("/run/www/index.html", "from the container");
    const serve = ["httpd", "-f", "-p", "80", "-h", "/run/www"];
    await using _server = host.spawn("busybox", serve, { netns: container.name });
    const { stdout } = await guest.run("busybox", [
      ...["sh", "-c", 'for i in 1 2 3 4 5; do wget -qO- "$0" && exit; sleep 0.2; done'],
      `http://${addresses[0]}/`,
    ]);
    assertEquals(stdout, "from the container");

    await host.mustTapkit("attach-vm", "web", "--remove");
    assertEquals([await reserved(host), await bridgePorts(host)], [[addresses[0]], 1]);
    const gateway = await host.must("busybox", ["ping", "-c1", "-W2", addresses[0]!]);
    assertEquals(/ 0% packet loss/.test(gateway), true, gateway);
    const again = await attachVm(host, "web");
    await container.remove();
    assertEquals([await reserved(host), await bridgePorts(host)], [[addressOf(again)], 1]);
    assertEquals((await host.tapkit("attach-vm", "web", "--check")).json[0].problems, []);
    await host.mustTapkit("attach-vm", "web", "--remove");
    assertEquals(await reserved(host), []);
  });
}

Deno.test("interop: containers and VMs in parallel share the pool without a duplicate", async () => {
  await using host = await openHost();
  const numbers = Array.from({ length: 6 }, (_, index) => index);
  const [containers, records] = await Promise.all([
    Promise.all(numbers.map((number) => Container.attach(host, `c${number}`))),
    Promise.all(numbers.map((number) => attachVm(host, `vm${number}`))),
  ]);
  const addresses = [...containers.map(({ address }) => address), ...records.map(addressOf)];
  assertEquals(new Set(addresses).size, 12);
  assertEquals(await reserved(host), addresses.toSorted());
  assertEquals(await bridgePorts(host), 12);
  const names = numbers.map((number) => `vm${number}`);
  await Promise.all([
    ...containers.map((container) => container.remove()),
    host.mustTapkit("attach-vm", ...names, "--remove"),
  ]);
  assertEquals(await reserved(host), []);
});

Deno.test("interop: the reference bridge's CHECK passes on a VM's interface", async () => {
  await using host = await openHost();
  const record = await attachVm(host, "web", "--ports", "8080:80");
  const { at } = JSON.parse(await host.readFile("/var/lib/tapkit/vms/web.json"));
  const { plugins, result } = at.facts.networks[0].attachment;
  const config = { ...plugins[0].config, prevResult: result };
  const attachment = { id: record.id, netns: record.netns };
  assertEquals(await runOnMachine(host, "CHECK", attachment, config), undefined);
  await host.mustTapkit("attach-vm", "web", "--remove");
});
