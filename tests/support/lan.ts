/**
 * A local network for throwaway machines: a bridge in a machine of its own.
 */

import { Machine } from "./machine.ts";

/** How a machine is put on a LAN. */
export interface LanPort {
  /** The interface's name in the machine; `eth0` when absent. */
  readonly link?: string;
  /** With prefix lengths, both families. */
  readonly addresses: readonly string[];
  /** Default routes, one address of a family each. */
  readonly gateways?: readonly string[];
}

/** A switch that machines are connected to. */
export class Lan implements AsyncDisposable {
  readonly mtu: number;
  readonly #switch: Machine;
  #ports = 0;

  private constructor(machine: Machine, mtu: number) {
    this.#switch = machine;
    this.mtu = mtu;
  }

  /** Starts an empty LAN. */
  static async create({ mtu = 1500 }: { mtu?: number } = {}): Promise<Lan> {
    const machine = await Machine.createBare({ name: "lan" });
    await machine.sh(
      `echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6
       ip link add lan0 mtu ${mtu} up type bridge mcast_snooping 0`,
    );
    return new Lan(machine, mtu);
  }

  /** Gives a machine an interface on this LAN, with its addresses and routes. */
  async connect(machine: Machine, port: LanPort): Promise<void> {
    const { link = "eth0", addresses, gateways = [] } = port;
    const name = `port${++this.#ports}`;
    // The process id counts for the real machine's process namespace, so only --net is entered.
    await enter(this.#switch, [
      ...["ip", "link", "add", name, "mtu", String(this.mtu)],
      ...["master", "lan0", "up", "type", "veth"],
      ...["peer", "name", link, "mtu", String(this.mtu), "netns", String(machine.pid)],
    ]);
    await machine.sh([
      `echo 0 >/proc/sys/net/ipv6/conf/${link}/accept_dad`,
      `echo 0 >/proc/sys/net/ipv6/conf/${link}/accept_ra`,
      "ip -batch - <<END",
      `link set ${link} up`,
      ...addresses.map((address) => `address add ${address} dev ${link}`),
      ...gateways.map((gateway) => `route add default via ${gateway} dev ${link}`),
      "END",
      // The kernel makes an IPv6 address usable somewhat later.
      ...addresses.filter((address) => address.includes(":")).map((address) =>
        `timeout 5 bash -c 'until ip -6 route show table local dev ${link} | ` +
        `grep -qF "local ${address.replace(/\/.*/, "")} "; do sleep 0.002; done'`
      ),
    ].join("\n"));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#switch[Symbol.asyncDispose]();
  }
}

async function enter(machine: Machine, command: readonly string[]): Promise<void> {
  const { success, stderr } = await new Deno.Command("nsenter", {
    args: ["-t", String(machine.pid), "--net", "--", ...command],
    stdin: "null",
  }).output();
  if (!success) throw new Error(`${command.join(" ")}: ${new TextDecoder().decode(stderr)}`);
}
