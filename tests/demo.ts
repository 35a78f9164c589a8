/**
 * `deno task demo`: one real guest on the default network, for a person to watch.
 * `deno task demo weave`: two hosts joined by Weave Net, and a guest on each.
 *
 * Everything happens in a throwaway host, so the machine it runs on stays as it is. What happens
 * is told on standard error; standard output is one line of JSON at the end.
 */

import { DOCKERS } from "./support/docker.ts";
import { guestImage } from "./support/guest-image.ts";
import { Host } from "./support/host.ts";
import { QemuGuest } from "./support/qemu.ts";
import { ensureRequirements, NotHere } from "./support/requirements.ts";
import { weaveHosts } from "./support/weave/host.ts";
import { WEAVE_IMAGE } from "./support/weave/stand-in.ts";

const URL_ON_LAN = "http://192.0.2.1:8080/";

/** The two hosts of the other one. */
const BOTH = "192.0.2.10,192.0.2.11";

/** The engines' own files, and what Weave's image and iptables leave. */
const LEFT_BY_DOCKER = [
  ...DOCKERS,
  /\/run\/xtables.lock/,
  /^directory \/opt\/cni/,
  /^iptables-legacy-save (\*|:|COMMIT)/,
];

/** Where a signal finds what is to be ended. */
const running = new AsyncDisposableStack();

for (const signal of ["SIGINT", "SIGTERM"] as const) {
  Deno.addSignalListener(signal, () => {
    say("interrupted: removing everything");
    running.disposeAsync().finally(() => Deno.exit(signal === "SIGINT" ? 130 : 143));
  });
}

try {
  const [act, ...more] = Deno.args;
  if (act !== undefined && act !== "weave" || more.length > 0) {
    throw new NotHere("run it as: deno task demo, or deno task demo weave");
  }
  await ensureRequirements(act === "weave" ? "weave demo" : "demo");
  await step("a guest to boot: Debian's kernel and busybox", () => guestImage());
  const result = await (act === "weave" ? weaveDemo() : demo());
  await running.disposeAsync();
  console.log(JSON.stringify(result));
} catch (error) {
  await running.disposeAsync();
  if (!(error instanceof Error)) throw error;
  console.error(`demo: ${error instanceof NotHere ? error.message : error.stack}`);
  Deno.exit(1);
}

async function demo(): Promise<Record<string, unknown>> {
  const [host, peer] = await step("a bare host, and another machine on its LAN", async () => {
    const host = running.use(await Host.create({ name: "demo" }));
    return [host, await host.addLan()] as const;
  });
  const before = await host.snapshot();

  const record = await step("attach-vm web --ports 8080:80", async () => {
    return (await host.mustTapkit("attach-vm", "web", "--ports", "8080:80")).json[0];
  });
  const card = record.interfaces[0];
  detail(`${card.tap} in ${record.netns}, on network ${card.network}`);
  detail(`address ${card.addresses[0].address}, MAC ${card.mac}, MTU ${card.mtu}`);

  const guest = await step("QEMU boots a guest behind the TAP", async () => {
    return running.use(await QemuGuest.boot(host, record));
  });
  const { lease } = guest;
  detail(`lease by DHCP: ${lease.ip}/${lease.mask}, router ${lease.router.join(" ")}`);
  detail(`resolver ${lease.dns.join(" ")}, host name ${lease.hostname}, MTU ${lease.mtu}`);

  const page = await step(`the other machine fetches ${URL_ON_LAN}`, () => peer.fetch(URL_ON_LAN));
  detail(`${page.status}: ${page.body.trim()}`);
  if (page.status !== 200) throw new Error("the page did not come through the published port");
  const client = await peer.fetch(`${URL_ON_LAN}cgi-bin/client`);
  detail(`the guest saw the client as ${client.body.replaceAll(/[[\]]|::ffff:/g, "")}`);

  await step("the guest is switched off", () => guest.shutdown());
  await step("attach-vm web --remove", () => host.mustTapkit("attach-vm", "web", "--remove"));
  await step("links, addresses, routes, rules and files are as before", () => {
    return host.assertRestored(before);
  });
  return { demo: "ok", http: page.status, ip: lease.ip, bootSeconds: guest.bootSeconds };
}

async function weaveDemo(): Promise<Record<string, unknown>> {
  const hosts = await step(
    "two hosts on one LAN, a Docker engine and Weave Net's image on each",
    () => weaveHosts(),
  );
  for (const host of hosts) running.use(host);
  const isReal = await takeRealImage(hosts);
  detail(
    isReal
      ? `${WEAVE_IMAGE}, from this machine's Docker`
      : `a stand-in for ${WEAVE_IMAGE}: this machine's Docker does not have it`,
  );
  const before = await Promise.all(hosts.map((host) => host.snapshot()));

  const states = await step(`setup-weave --peers ${BOTH}, on both`, async () => {
    const args = ["setup-weave", "--peers", BOTH] as const;
    const done = await Promise.all(hosts.map((host) => host.mustTapkit(...args)));
    return done.map(({ json: [state] }) => state);
  });
  for (const { primaryIP, connections: [to] } of states) {
    detail(
      `${primaryIP} is ready, its connection to ${to?.peer ?? "itself"} ${to?.state ?? "alone"}`,
    );
  }

  const guests: QemuGuest[] = [];
  for (const [host, name] of [[hosts[0], "left"], [hosts[1], "right"]] as const) {
    const record = await step(`attach-vm ${name}, on ${host.name}`, async () => {
      return (await host.mustTapkit("attach-vm", name)).json[0];
    });
    const card = record.interfaces[0];
    detail(`network ${card.network}, address ${card.addresses[0].address}, MTU ${card.mtu}`);
    const guest = await step("QEMU boots a guest behind the TAP", async () => {
      return running.use(await QemuGuest.boot(host, record));
    });
    detail(`lease by DHCP: ${guest.lease.ip}/${guest.lease.mask}, MTU ${guest.lease.mtu}`);
    guests.push(guest);
  }

  const [left, right] = guests;
  const url = `http://${right!.lease.ip}/`;
  const page = await step(`the left guest fetches ${url} from the right one`, async () => {
    const answer = await left!.sh(
      `printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 10 ${right!.lease.ip} 80`,
    );
    return answer.trim().split("\n").at(-1)!.trim();
  });
  detail(page);
  if (page === "") throw new Error("the page did not come across");

  for (const [index, host] of hosts.entries()) {
    await step(`${host.name}: the guest goes, and the host leaves the network`, async () => {
      await guests[index]!.shutdown();
      await host.mustTapkit("attach-vm", "--all", "--remove");
      await host.mustTapkit("setup-weave", "--remove", "--purge");
    });
  }
  await step("links, addresses, routes, rules and files are as before", async () => {
    for (const [index, host] of hosts.entries()) {
      await host.assertRestored(before[index]!, { except: LEFT_BY_DOCKER });
    }
  });
  return { demo: "ok", image: isReal ? WEAVE_IMAGE : "stand-in", page, ip: right!.lease.ip };
}

/** Puts the real image in the place of the stand-in, where this machine's Docker has it. */
async function takeRealImage(hosts: readonly Host[]): Promise<boolean> {
  const archive = await Deno.makeTempFile({ prefix: "tapkit-demo-" });
  try {
    const save = new Deno.Command("docker", { args: ["save", "-o", archive, WEAVE_IMAGE] });
    if (!(await save.output().catch(() => ({ success: false }))).success) return false;
    for (const host of hosts) {
      await host.must("docker", ["load"], { stdin: await Deno.readFile(archive) });
    }
    return true;
  } finally {
    await Deno.remove(archive);
  }
}

/** Tells what was done and how long it took; on a terminal also what is under way. */
async function step<T>(what: string, action: () => Promise<T>): Promise<T> {
  if (Deno.stderr.isTerminal()) {
    Deno.stderr.writeSync(new TextEncoder().encode(`       …    ${what}\r`));
  }
  const begin = performance.now();
  const result = await action();
  say(`${String(Math.round(performance.now() - begin)).padStart(6)} ms   ${what}`);
  return result;
}

function detail(text: string): void {
  say(`            ${text}`);
}

function say(text: string): void {
  console.error(text);
}
