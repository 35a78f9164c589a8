/**
 * Makes the golden files of DHCP anew: runs the clients in throwaway namespaces, answers them, and
 * writes the frames they sent. Needs root, busybox, isc-dhcp-client and dhcpcd-base:
 * `deno run -A tests/golden/capture-dhcp.ts`.
 *
 * @module
 */

import { parseUdpFrame } from "../../lib/dhcp/frame.ts";
import { DhcpServer } from "../../lib/dhcp/server.ts";
import { type ClientName, CLIENTS, runClient } from "../support/dhcp-clients.ts";
import { DhcpWire, GUEST_MAC, pathOf, serving, TAP } from "../support/dhcp-wire.ts";

const GUEST = {
  mac: GUEST_MAC,
  address: "172.18.0.2/16",
  gateway: "172.18.0.1",
  routes: [],
  nameservers: ["192.0.2.53"],
  search: ["example.org"],
  hostname: "web",
  mtu: 1500,
};

const VERSIONS: Readonly<Record<ClientName, readonly string[]>> = {
  udhcpc: ["busybox"],
  dhclient: ["dhclient", "--version"],
  dhcpcd: ["dhcpcd", "--version"],
};

function versionOf(name: ClientName): string {
  const [program, ...args] = VERSIONS[name];
  const { stdout, stderr } = new Deno.Command(program!, { args }).outputSync();
  return new TextDecoder().decode(stdout.length > 0 ? stdout : stderr).split("\n")[0]!;
}

function hexLines(bytes: Uint8Array): string {
  return bytes.toHex().replaceAll(/(.{64})/g, "$1\n").trim();
}

for (const name of Object.keys(CLIENTS) as ClientName[]) {
  await using wire = new DhcpWire();
  using server = new DhcpServer();
  server.sync([{ key: "web/eth0", netnsPath: pathOf(wire.host), tap: TAP, guest: GUEST }]);
  await using _serving = serving(server);
  await runClient(wire, name);
  const frames = wire.sent.filter((frame) => parseUdpFrame(frame)?.destinationPort === 67);
  const command = CLIENTS[name].command("DIRECTORY").join(" ");
  const head = `# ${command}\n# whole frames; ${versionOf(name)}\n\n`;
  const path = new URL(`./dhcp/${name}.hex`, import.meta.url);
  Deno.writeTextFileSync(path, head + frames.map(hexLines).join("\n\n") + "\n");
}
