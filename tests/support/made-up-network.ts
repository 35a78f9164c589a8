/**
 * A made-up network whose plugin behaves as field reports say that some makers' do, Weave Net's
 * above all. It is of CNI 0.3.0: no CHECK, and a result of one address and its gateway, without
 * interfaces and routes. It takes no MAC; it gives both ends of the pair the MTU of its bridge; it
 * names the pair by the first seven characters of the container id; its IPAM keys by the whole of
 * it, and answers a second ADD with the same address; while it hangs it waits, and while it is down
 * it fails, for good.
 *
 * What it cannot show: how a real router behaves in time, over several hosts, in its own data path,
 * and after an upgrade. It is no copy of anybody's code.
 *
 * @module
 */

import type { Host } from "./host.ts";

const STATE = "/var/lib/made-up";

/** How the network is made. */
export interface MadeUpOptions {
  /** The name of the network, and of its plugin's program. */
  readonly name?: string;
  readonly bridge?: string;
  /** Of its bridge, and of what it gives. */
  readonly mtu?: number;
  /** Whether the bridge's MTU is that of its narrowest port; else it was set by hand. */
  readonly followsPorts?: boolean;
  /** The first three numbers of its /24. */
  readonly prefix?: string;
  /** Of the specification; from 0.4.0 on its CHECK is content with everything. */
  readonly cniVersion?: string;
  /** Plugins behind it in the chain. */
  readonly chained?: readonly unknown[];
  /** Of its configuration's file: a lower one sorts first. */
  readonly priority?: number;
}

/** The network on a throwaway host. */
export class MadeUpNetwork {
  readonly #host: Host;
  readonly name: string;
  readonly bridge: string;
  readonly #mtu: number;
  readonly #prefix: string;
  readonly #cniVersion: string;
  readonly #followsPorts: boolean;

  private constructor(host: Host, options: MadeUpOptions) {
    this.#host = host;
    this.name = options.name ?? "made-up";
    this.bridge = options.bridge ?? "mubr0";
    this.#mtu = options.mtu ?? 65535;
    this.#prefix = options.prefix ?? "10.40.0";
    this.#cniVersion = options.cniVersion ?? "0.3.0";
    this.#followsPorts = options.followsPorts ?? false;
  }

  /** Installs plugin and configuration, and starts it: its bridge is there, and masqueraded. */
  static async install(host: Host, options: MadeUpOptions = {}): Promise<MadeUpNetwork> {
    const network = new MadeUpNetwork(host, options);
    const { name } = network;
    const { chained = [], priority = 10 } = options;
    await host.sh(`mkdir -p /opt/cni/bin /etc/cni/net.d ${network.#state}/ips`);
    await host.writeFile(`/opt/cni/bin/${name}`, network.#program(), 0o755);
    await host.writeFile(
      `/etc/cni/net.d/${priority}-${name}.conflist`,
      JSON.stringify({
        cniVersion: network.#cniVersion,
        name,
        plugins: [{ type: name }, ...chained],
      }),
    );
    await network.makeBridge();
    const subnet = `${network.#prefix}.0/24`;
    await host.sh(`iptables -t nat -A POSTROUTING -s ${subnet} ! -d ${subnet} -j MASQUERADE`);
    return network;
  }

  /** The gateway of its guests. */
  get gateway(): string {
    return `${this.#prefix}.1`;
  }

  get #state(): string {
    return `${STATE}/${this.name}`;
  }

  /** Makes its bridge, as when it starts on a host that has none. */
  async makeBridge(): Promise<void> {
    const { bridge } = this;
    const mtu = `mtu ${this.#mtu}`;
    // An MTU that is set stays as ports come, and so does a MAC.
    await this.#host.sh(`
      ip link add ${bridge} address 02:00:00:00:40:01 ${this.#followsPorts ? mtu : ""} type bridge
      ip link set ${bridge} ${this.#followsPorts ? "" : mtu} up
      ip address add ${this.gateway}/24 dev ${bridge}
    `);
  }

  /** Its plugin waits from now on. */
  async hang(): Promise<void> {
    await this.#host.sh(`touch ${this.#state}/hangs`);
  }

  /** Its plugin fails from now on, as nobody listens where it asks. */
  async stop(): Promise<void> {
    await this.#host.sh(`touch ${this.#state}/down`);
  }

  /** Its plugin answers again. */
  async start(): Promise<void> {
    await this.#host.sh(`rm -f ${this.#state}/down ${this.#state}/hangs`);
  }

  /** Its plugin refuses from now on to add what has an address. */
  async refuseTwice(): Promise<void> {
    await this.#host.sh(`touch ${this.#state}/once`);
  }

  /** Its IPAM loses its memory. */
  async forget(): Promise<void> {
    await this.#host.sh(`rm -f ${this.#state}/ips/*`);
  }

  /** The addresses that its IPAM has given, by container id. */
  async given(): Promise<Record<string, string>> {
    const { stdout } = await this.#host.run("sh", [
      "-c",
      `cd ${this.#state}/ips && for id in *; do [ -e "$id" ] && echo "$id $(cat $id)"; done; true`,
    ]);
    return Object.fromEntries(
      stdout.trim().split("\n").filter(Boolean).map((line) => line.split(" ")),
    );
  }

  /** The verbs that its plugin was called with since the last look. */
  async calls(): Promise<string[]> {
    const path = `${this.#state}/calls`;
    const { stdout } = await this.#host.run("sh", ["-c", `cat ${path}; : >${path}`]);
    return stdout.trim().split("\n").filter(Boolean);
  }

  /** How often its plugin was called with a verb since the last {@linkcode calls}. */
  async called(verb: string): Promise<number> {
    const { stdout } = await this.#host.run("grep", ["-c", `^${verb}$`, `${this.#state}/calls`]);
    return Number(stdout);
  }

  #program(): string {
    const state = this.#state;
    const version = this.#cniVersion;
    const refused = `dial tcp 127.0.0.1:6784: connect: connection refused`;
    return `#!/bin/sh
cat >/dev/null
echo $CNI_COMMAND >>${state}/calls
fail() { echo "{\\"cniVersion\\": \\"${version}\\", \\"code\\": 100, \\"msg\\": \\"$1\\"}"; echo "$1" >&2; exit 1; }
[ $CNI_COMMAND = VERSION ] && { echo '{"cniVersion": "0.3.0", "supportedVersions": ["0.3.0"]}'; exit; }
while [ -e ${state}/hangs ]; do sleep 0.4; done
[ -e ${state}/down ] && fail "Post http://127.0.0.1:6784/ip/$CNI_CONTAINERID: ${refused}"
own=${state}/ips/$CNI_CONTAINERID
inside() { nsenter --net=$CNI_NETNS ip "$@"; }
case $CNI_COMMAND in
ADD)
  [ -e ${state}/once ] && [ -e $own ] && fail "$CNI_CONTAINERID has an address already"
  outer=veth${this.bridge.slice(0, 2)}$(echo $CNI_CONTAINERID | cut -c1-7)
  inside link show $CNI_IFNAME >/dev/null 2>&1 && fail "$CNI_IFNAME: file exists"
  inside link add $CNI_IFNAME mtu ${this.#mtu} type veth peer name $outer mtu ${this.#mtu} netns 1 ||
    fail "$outer: file exists"
  ip link set $outer master ${this.bridge} up || { ip link del $outer; fail "${this.bridge} does not exist"; }
  inside link set $CNI_IFNAME up
  number=2
  exec 9<${state}/ips; flock 9
  [ -e $own ] || {
    while grep -qx ${this.#prefix}.$number ${state}/ips/* 2>/dev/null; do number=$((number + 1)); done
    echo ${this.#prefix}.$number >$own
  }
  exec 9>&-
  address=$(cat $own)
  inside address add $address/24 dev $CNI_IFNAME
  inside route add default via ${this.gateway} 2>/dev/null
  cat <<END
{"cniVersion": "${version}", "dns": {},
 "ips": [{"version": "4", "address": "$address/24", "gateway": "${this.gateway}"}]}
END
  ;;
DEL)
  [ -n "$CNI_NETNS" ] && inside link del $CNI_IFNAME 2>/dev/null
  rm -f $own
  ;;
CHECK) ;;
*) fail "unknown verb $CNI_COMMAND" ;;
esac
exit 0
`;
  }
}
