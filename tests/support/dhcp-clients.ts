/**
 * Real DHCP clients, each run once on eth0 of a guest's namespace. Their hook scripts write down
 * what they were told and change nothing.
 *
 * @module
 */

import { withNetns } from "../../lib/sys/netns.ts";
import type { DhcpWire } from "./dhcp-wire.ts";

/** What a client's script was told, by the client's own names. */
export type Told = Readonly<Record<string, string>>;

/** How one client is run; `directory` holds its script and files. */
interface Client {
  readonly program: string;
  command(directory: string): string[];
  readonly files?: Readonly<Record<string, string>>;
}

export const CLIENTS = {
  udhcpc: {
    program: "busybox",
    command: (directory) => [
      ...["busybox", "udhcpc", "-i", "eth0", "-f", "-q", "-n", "-t", "3", "-T", "1", "-A", "1"],
      ...["-s", `${directory}/script`, "-x", "hostname:guest"],
      ...["-O", "mtu", "-O", "search", "-O", "staticroutes", "-O", "hostname"],
    ],
  },
  dhclient: {
    program: "dhclient",
    command: (directory) => [
      ...["dhclient", "-4", "-d", "-1", "-cf", `${directory}/conf`, "-lf", `${directory}/leases`],
      ...["-pf", `${directory}/pid`, "-sf", `${directory}/script`, "eth0"],
    ],
    files: {
      conf: "option rfc3442-classless-static-routes code 121 = array of unsigned integer 8;\n" +
        "timeout 5;\nrequest subnet-mask, broadcast-address, routers, domain-name,\n" +
        "  domain-name-servers, domain-search, host-name, interface-mtu,\n" +
        "  rfc3442-classless-static-routes;\n",
    },
  },
  dhcpcd: {
    program: "dhcpcd",
    // It keeps its leases and its control socket in fixed places.
    command: (directory) => [
      ...["unshare", "-m", "sh", "-c"],
      "mount -t tmpfs none /run; mount -t tmpfs none /var/lib; mkdir /var/lib/dhcpcd; " +
      `exec dhcpcd -4 -B -1 -A -t 5 -f ${directory}/conf -c ${directory}/script eth0`,
    ],
    files: {
      conf:
        "clientid\nvendorclassid dhcpcd\noption domain_name_servers, domain_name, domain_search, host_name\n" +
        "option classless_static_routes, interface_mtu\n",
    },
  },
} as const satisfies Record<string, Client>;

/** How long a client may take; milliseconds. */
const TIME_LIMIT = 10_000;

export type ClientName = keyof typeof CLIENTS;

/** Whether a client is installed here. */
export function hasClient(name: ClientName): boolean {
  const directories = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
  return directories.some((directory) => exists(`${directory}/${CLIENTS[name].program}`));
}

function exists(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

/** Runs a client until it has its lease; returns what its script was told when it got it. */
export async function runClient(wire: DhcpWire, name: ClientName): Promise<Told> {
  const directory = Deno.makeTempDirSync();
  try {
    const client: Client = CLIENTS[name];
    const files = Object.entries(client.files ?? {});
    for (const [file, text] of files) Deno.writeTextFileSync(`${directory}/${file}`, text);
    Deno.writeTextFileSync(`${directory}/leases`, "");
    Deno.writeTextFileSync(
      `${directory}/script`,
      `#!/bin/sh\nenv > ${directory}/told.$$\n` +
        `mv ${directory}/told.$$ "${directory}/told-\${1:-$reason}"\n`,
      { mode: 0o755 },
    );
    const [program, ...args] = client.command(directory);
    const child = withNetns(wire.guest, () =>
      new Deno.Command(program!, {
        args,
        clearEnv: true,
        env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin" },
        stdin: "null",
        stdout: "null",
        stderr: "piped",
      }).spawn());
    const output = child.output();
    const limit = setTimeout(() => kill(child), TIME_LIMIT);
    const told = await waitForFile(directory, output);
    clearTimeout(limit);
    // dhclient would stay with its lease.
    kill(child);
    const { stderr } = await output;
    if (told === undefined) {
      throw new Error(`${name} got no lease: ${new TextDecoder().decode(stderr)}`);
    }
    return parseEnvironment(told);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
}

function kill(child: Deno.ChildProcess): void {
  try {
    child.kill();
  } catch (error) {
    // Ended by itself.
    if (!(error instanceof TypeError)) throw error;
  }
}

async function waitForFile(
  directory: string,
  output: Promise<unknown>,
): Promise<string | undefined> {
  let ended = false;
  output.then(() => ended = true);
  while (true) {
    const last = ended;
    for (const name of ["told-bound", "told-BOUND"]) {
      if (exists(`${directory}/${name}`)) return Deno.readTextFileSync(`${directory}/${name}`);
    }
    if (last) return undefined;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

function parseEnvironment(text: string): Told {
  return Object.fromEntries(
    text.trim().split("\n").map((line) => {
      const equals = line.indexOf("=");
      return [line.slice(0, equals), line.slice(equals + 1)];
    }),
  );
}
