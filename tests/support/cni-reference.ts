/**
 * The reference CNI plugins (Debian's containernetworking-plugins), run by the specification as an
 * oracle, in throwaway namespaces.
 *
 * @module
 */

import { NetlinkConnection } from "../../lib/netlink/connection.ts";
import { type Netns, newNetns, withNetns } from "../../lib/sys/netns.ts";
import type { Machine } from "./machine.ts";

/** Where the package puts them. */
export const REFERENCE_DIR = "/usr/lib/cni";

/**
 * Lines of a host's snapshot: what the plugins keep for the next attachment, and no attachment owns.
 * A test's bridge is `cnibr0`, with 10.20.0.0/24.
 */
export const SHARED: readonly RegExp[] = [
  /^ip6?tables-\S+ (\*|:|COMMIT|-A \S+ .*CNI-|-A CNI-(FORWARD|ADMIN|HOSTPORT))/,
  /^nft table ip6? (nat|filter|mangle)/,
  /cnibr0/,
  /anycast/,
  /^link hd0 /,
  /^directory \/run\/cni/,
  /^(address|route) .*(10\.20\.0\.|fe80:|ff00:)/,
  /serve-dhcp/,
];

/** A test's bridge, whose guests' router is the host. */
export const REFERENCE_BRIDGE = {
  type: "bridge",
  bridge: "cnibr0",
  isGateway: true,
  ipMasq: true,
  ipam: { type: "host-local", subnet: "10.20.0.0/24", routes: [{ dst: "0.0.0.0/0" }] },
} as const;

/** What publishes ports behind it. */
export const REFERENCE_PORTMAP = { type: "portmap", capabilities: { portMappings: true } } as const;

/** The configuration of the network "net" of some plugins. */
export function referenceNetwork(plugins: readonly unknown[], cniVersion = "1.0.0"): string {
  return JSON.stringify({ cniVersion, name: "net", plugins });
}

/** Throws unless the reference plugins are installed: a comparison with nothing proves nothing. */
export function requireReference(): void {
  try {
    Deno.statSync(`${REFERENCE_DIR}/bridge`);
  } catch (cause) {
    throw new Error("install the package containernetworking-plugins", { cause });
  }
}

/** What a plugin run is about. */
export interface ReferenceCall {
  readonly command: "ADD" | "DEL" | "CHECK";
  readonly containerId: string;
  readonly ifName?: string;
  /** Path of the namespace; host-local looks at none. */
  readonly netns?: string;
  readonly cniArgs?: string;
}

/** A plugin's environment and standard input. */
function prepare(type: string, call: ReferenceCall): Deno.Command {
  const { command, containerId, ifName = "eth0", netns = "/nowhere", cniArgs = "" } = call;
  return new Deno.Command(`${REFERENCE_DIR}/${type}`, {
    env: {
      CNI_COMMAND: command,
      CNI_CONTAINERID: containerId,
      CNI_IFNAME: ifName,
      CNI_NETNS: netns,
      CNI_ARGS: cniArgs,
      CNI_PATH: REFERENCE_DIR,
    },
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  });
}

/** Runs a plugin and waits; what it prints on failure is thrown. */
export async function runReference(
  type: string,
  call: ReferenceCall,
  config: unknown,
  netns?: Netns,
  // deno-lint-ignore no-explicit-any -- a result of any version.
): Promise<any> {
  const command = prepare(type, call);
  const child = netns === undefined ? command.spawn() : withNetns(netns, () => {
    // A box: withNetns takes whatever has a method "then" for a promise, and a child has none.
    return command.spawn();
  });
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(JSON.stringify(config)));
  await writer.close();
  const { success, stdout } = await child.output();
  const text = new TextDecoder().decode(stdout);
  if (!success) throw new Error(`${type} ${call.command}: ${text}`);
  return text.trim() === "" ? undefined : JSON.parse(text);
}

/** Runs a plugin in a machine by the specification; returns its result. */
export async function runOnMachine(
  machine: Machine,
  command: ReferenceCall["command"],
  container: { readonly id: string; readonly netns: string },
  // deno-lint-ignore no-explicit-any -- CNI's own shapes, here and below.
  config: any,
  // deno-lint-ignore no-explicit-any
): Promise<any> {
  const stdout = await machine.must(`${REFERENCE_DIR}/${config.type}`, [], {
    stdin: JSON.stringify(config),
    env: {
      CNI_COMMAND: command,
      CNI_CONTAINERID: container.id,
      CNI_NETNS: container.netns,
      CNI_IFNAME: "eth0",
      CNI_PATH: REFERENCE_DIR,
    },
  });
  return stdout.trim() === "" ? undefined : JSON.parse(stdout);
}

/** Of a host that executes no plugins. */
export const NO_PLUGINS = { binDirs: [], stateDir: "/nowhere" } as const;

/** A throwaway host: a namespace, its netlink connection, and a directory for pools. */
export class CniHost implements Disposable {
  readonly netns: Netns = newNetns();
  readonly nl: NetlinkConnection = withNetns(this.netns, () => NetlinkConnection.open());
  readonly dataDir: string = Deno.makeTempDirSync();

  /**
   * Runs `fn` with the host's namespace as the calling thread's. What is asynchronous must have done
   * its work there before it first waits, as a chain of built-in plugins has.
   */
  run<T>(fn: () => T): T {
    return withNetns(this.netns, () => [fn()])[0]!;
  }

  /** The JSON of an `ip` command. */
  // deno-lint-ignore no-explicit-any -- iproute2's own shapes.
  ip(...args: string[]): any {
    return ipJson(this.netns, ...args);
  }

  /** Addresses that are reserved in a network's pool. */
  reserved(network: string): string[] {
    try {
      return [...Deno.readDirSync(`${this.dataDir}/${network}`)]
        .map(({ name }) => name)
        .filter((name) => name !== "lock" && !name.startsWith("last_reserved_ip."))
        .sort();
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return [];
      throw error;
    }
  }

  [Symbol.dispose](): void {
    this.nl[Symbol.dispose]();
    this.netns[Symbol.dispose]();
    Deno.removeSync(this.dataDir, { recursive: true });
  }
}

/** A throwaway guest namespace and its netlink connection. */
export class CniGuest implements Disposable {
  readonly netns: Netns = newNetns();
  readonly nl: NetlinkConnection = withNetns(this.netns, () => NetlinkConnection.open());
  /** A path by which another process opens the namespace. */
  readonly path: string = `/proc/${Deno.pid}/fd/${this.netns.fd}`;

  // deno-lint-ignore no-explicit-any -- iproute2's own shapes.
  ip(...args: string[]): any {
    return ipJson(this.netns, ...args);
  }

  [Symbol.dispose](): void {
    this.nl[Symbol.dispose]();
    this.netns[Symbol.dispose]();
  }
}

// deno-lint-ignore no-explicit-any -- iproute2's own shapes.
function ipJson(netns: Netns, ...args: string[]): any {
  const command = new Deno.Command("ip", { args: ["-j", "-d", ...args] });
  const { success, stdout, stderr } = withNetns(netns, () => command.outputSync());
  const decode = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  if (!success) throw new Error(`ip ${args.join(" ")}: ${decode(stderr)}`);
  return JSON.parse(decode(stdout) || "[]");
}
