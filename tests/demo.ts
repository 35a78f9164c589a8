/**
 * `deno task demo`: one real guest on the default network, for a person to watch.
 *
 * Everything happens in a throwaway host, so the machine it runs on stays as it is. What happens
 * is told on standard error; standard output is one line of JSON at the end.
 */

import { guestImage } from "./support/guest-image.ts";
import { Host } from "./support/host.ts";
import { QemuGuest } from "./support/qemu.ts";
import { ensureRequirements, NotHere } from "./support/requirements.ts";

const URL_ON_LAN = "http://192.0.2.1:8080/";

/** Where a signal finds what is to be ended. */
const running = new AsyncDisposableStack();

for (const signal of ["SIGINT", "SIGTERM"] as const) {
  Deno.addSignalListener(signal, () => {
    say("interrupted: removing everything");
    running.disposeAsync().finally(() => Deno.exit(signal === "SIGINT" ? 130 : 143));
  });
}

try {
  await ensureRequirements("demo");
  await step("a guest to boot: Debian's kernel and busybox", () => guestImage());
  const result = await demo();
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
