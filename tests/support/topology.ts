/**
 * A host with two guests on a bridge and a machine on its LAN, all of them anonymous namespaces,
 * each with a {@linkcode Peer}.
 *
 * ```
 * machine 192.0.2.50 ── eth0 host 192.0.2.1, 192.0.2.9 ── ignite0 172.18.0.1 ─┬─ guest1 172.18.0.2
 *         2001:db8::50       2001:db8::1                          fd00:18::1  └─ guest2 172.18.0.3
 * ```
 */

import { type Netns, newNetns, withNetns } from "../../lib/sys/netns.ts";
import { Peer } from "./peer.ts";

export interface TopologyOptions {
  /** Whether bridged frames pass the host's IP firewalls. */
  readonly bridgeNetfilter: boolean;
}

/** Runs a shell script inside a namespace and returns its standard output. */
export function runInside(netns: Netns, script: string): string {
  const output = withNetns(
    netns,
    () => new Deno.Command("sh", { args: ["-ec", script] }).outputSync(),
  );
  const decoder = new TextDecoder();
  if (!output.success) throw new Error(`${script}: ${decoder.decode(output.stderr)}`);
  return decoder.decode(output.stdout);
}

type Machine = "host" | "machine" | "guest1" | "guest2";

export class Topology implements AsyncDisposable {
  readonly #stack = new AsyncDisposableStack();
  readonly host = this.#stack.use(newNetns());
  readonly machine = this.#stack.use(newNetns());
  readonly guest1 = this.#stack.use(newNetns());
  readonly guest2 = this.#stack.use(newNetns());
  readonly #peers = new Map<Machine, Peer>();

  private constructor() {}

  static async start(options: TopologyOptions): Promise<Topology> {
    const topology = new Topology();
    try {
      topology.#plumb(options);
      const names = ["host", "machine", "guest1", "guest2"] as const;
      await Promise.all(names.map(async (name) => {
        const peer = topology.#stack.use(await Peer.start(topology[name], name));
        topology.#peers.set(name, peer);
      }));
      return topology;
    } catch (error) {
      await topology[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Each machine's programs. */
  get peers(): Readonly<Record<Machine, Peer>> {
    return Object.fromEntries(this.#peers) as Record<Machine, Peer>;
  }

  #plumb({ bridgeNetfilter }: TopologyOptions): void {
    const path = (netns: Netns) => `/proc/${Deno.pid}/fd/${netns.fd}`;
    // Duplicate address detection would keep link-local addresses silent for a second.
    for (const netns of [this.host, this.machine, this.guest1, this.guest2]) {
      runInside(
        netns,
        `for scope in all default; do echo 0 >/proc/sys/net/ipv6/conf/$scope/accept_dad; done`,
      );
    }
    runInside(
      this.host,
      `
      for table in iptables ip6tables; do
        echo ${bridgeNetfilter ? 1 : 0} >/proc/sys/net/bridge/bridge-nf-call-$table
      done
      ip link set lo up
      ip link add eth0 type veth peer name eth0 netns ${path(this.machine)}
      ip address add 192.0.2.1/24 dev eth0
      ip address add 192.0.2.9/24 dev eth0
      ip address add 2001:db8::1/64 dev eth0 nodad
      ip link add ignite0 type bridge
      ip address add 172.18.0.1/16 dev ignite0
      ip address add fd00:18::1/64 dev ignite0 nodad
      ip link set eth0 up
      ip link set ignite0 up
      ip link add veth1 type veth peer name eth0 netns ${path(this.guest1)}
      ip link add veth2 type veth peer name eth0 netns ${path(this.guest2)}
      for port in veth1 veth2; do
        ip link set $port master ignite0 up
        ip link set $port type bridge_slave hairpin on
      done`,
    );
    runInside(
      this.machine,
      `
      ip link set lo up
      ip link set eth0 up
      ip address add 192.0.2.50/24 dev eth0
      ip address add 2001:db8::50/64 dev eth0 nodad`,
    );
    for (const [guest, number] of [[this.guest1, 2], [this.guest2, 3]] as const) {
      runInside(
        guest,
        `
        ip link set lo up
        ip link set eth0 up
        ip address add 172.18.0.${number}/16 dev eth0
        ip address add fd00:18::${number}/64 dev eth0 nodad
        ip route add default via 172.18.0.1
        ip -6 route add default via fd00:18::1`,
      );
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync();
  }
}
