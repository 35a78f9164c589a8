/**
 * Where attacks take place: a host with guests and a container on a bridge, and a machine on its
 * LAN, each with a packet socket on its interface.
 *
 * ```
 * lan 192.0.2.2 ── eth-lan host cni0 ─┬─ web     a guest with a published port, 8080:80
 *     2001:db8::2     10.5.0.1        ├─ mal     a guest without flags
 *                     fd00:5::1       ├─ alone   a guest with --isolated
 *                                     ├─ held    a guest with --deny-egress of everything
 *                                     ├─ loose   a guest with --no-antispoof
 *                                     ├─ bare    a guest whose network gives it no address
 *                                     └─ box     a container, held to nothing
 * ```
 */

import { DUAL_BRIDGE, GATEWAY, GATEWAY6, PUBLISHING_NETWORK } from "./dual-network.ts";
import { arp, bytes, ethernet } from "./frames.ts";
import { NetnsGuest } from "./guest-netns.ts";
import { Host } from "./host.ts";
import { eventually, type Machine } from "./machine.ts";
import { Wiretap } from "./wiretap.ts";

const GUESTS = {
  web: ["--ports", "8080:80"],
  mal: [],
  alone: ["--isolated"],
  held: ["--deny-egress", "0.0.0.0/0", "--deny-egress", "::/0"],
  loose: ["--no-antispoof"],
  bare: ["--network", "bare"],
} as const;

export type GuestName = keyof typeof GUESTS;
export type PartyName = GuestName | "box" | "lan" | "host";

/** Who attacks, or is attacked. */
export interface Party {
  readonly machine: Machine;
  /** Its namespace's name, where it is not its machine's own. */
  readonly netns?: string;
  readonly mac: string;
  readonly ip: string;
  readonly ip6: string;
  /** Its link-local address. */
  readonly local: string;
  /** On its interface; the host's is on the bridge. */
  readonly tap: Wiretap;
}

export interface SceneOptions {
  readonly mode: "tc-redirect" | "dhcp-bridge";
  readonly firewall: "nftables" | "iptables";
  /** Whether bridged frames pass the host's IP firewalls, and are looked at there. */
  readonly bridgeNetfilter: boolean;
}

/** What happens to the firewall before attacks are tried. */
export const STATES = {
  "as attached": "",
  "after nft flush ruleset": "nft flush ruleset",
  "after iptables -F in all tables": `
    for program in iptables ip6tables; do
      for table in filter nat mangle raw; do
        $program -t $table -F && $program -t $table -X || true
      done
      for chain in INPUT FORWARD OUTPUT; do $program -P $chain ACCEPT; done
    done 2>/dev/null`,
} as const;

export type State = keyof typeof STATES;

const ARP = 0x0806;
/** The same bridge, without addresses. */
const BARE_NETWORK = {
  cniVersion: "1.0.0",
  name: "bare",
  plugins: [{ type: "bridge", bridge: DUAL_BRIDGE.bridge }],
};
const BARE = ["10.5.0.201", "fd00:5::201"] as const;
const BOX = { ip: "10.5.0.200", ip6: "fd00:5::200" } as const;

export class Scene implements AsyncDisposable {
  readonly host: Host;
  readonly #stack = new AsyncDisposableStack();
  readonly #parties = new Map<PartyName, Party>();
  readonly #lanTap: Wiretap;
  readonly #flags: readonly string[];
  #fences = 0;

  private constructor(host: Host, { mode, firewall }: SceneOptions) {
    this.host = this.#stack.use(host);
    this.#lanTap = this.#stack.use(Wiretap.open(host.netnsPath, "eth-lan"));
    this.#flags = ["--mode", mode, "--firewall", firewall, "--plugins", "builtin"];
  }

  static async create(options: SceneOptions): Promise<Scene> {
    const host = await Host.create();
    const lan = await host.addLan();
    await host.writeFile("/etc/cni/net.d/10-dual.conflist", JSON.stringify(PUBLISHING_NETWORK));
    await host.writeFile("/etc/cni/net.d/20-bare.conflist", JSON.stringify(BARE_NETWORK));
    // The guests' packets are to be forwarded whatever became of the rules.
    await host.must("sysctl", ["-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]);
    for (const table of ["iptables", "ip6tables"]) {
      const value = options.bridgeNetfilter ? 1 : 0;
      await host.must("sysctl", ["-qw", `net.bridge.bridge-nf-call-${table}=${value}`]);
    }
    const scene = new Scene(host, options);
    try {
      for (const [name, flags] of Object.entries(GUESTS)) {
        await scene.#addGuest(name as GuestName, flags);
      }
      await scene.#addBox();
      await scene.#addParty("lan", { machine: lan });
      await scene.#addParty("host", { machine: host, link: "cni0" });
      // The host knows the LAN's MAC, so that what it forwards is not lost in between.
      await host.must("busybox", ["ping", "-c", "1", "-W", "5", "192.0.2.2"]);
      await host.must("busybox", ["ping6", "-c", "1", "-W", "5", "2001:db8::2"]);
      return scene;
    } catch (error) {
      await scene[Symbol.asyncDispose]();
      throw error;
    }
  }

  party(name: PartyName): Party {
    const party = this.#parties.get(name);
    if (party === undefined) throw new TypeError(`nobody is called ${name}`);
    return party;
  }

  /** Brings the host into a state. */
  async enter(state: State): Promise<void> {
    if (STATES[state] !== "") await this.host.sh(STATES[state]);
  }

  /** Brings what is gone back. */
  async mend(): Promise<void> {
    await this.host.mustTapkit("attach-vm", ...Object.keys(GUESTS));
  }

  /** Waits until the host has had all that a party sent. */
  async fence(name: PartyName): Promise<void> {
    const { mac, ip, tap } = this.party(name);
    if (name === "host") return;
    const [hears, targetIp] = name === "lan"
      ? [this.#lanTap, "192.0.2.1"]
      : [this.party("host").tap, GATEWAY];
    const number = bytes([++this.#fences >> 8, this.#fences & 0xff], new Uint8Array(16).fill(0xfe));
    const frame = bytes(
      ethernet(ARP, { from: mac, to: "ff:ff:ff:ff:ff:ff" }),
      arp({ senderMac: mac, senderIp: ip, targetIp }),
      number,
    );
    tap.send(frame);
    const hex = frame.toHex();
    await eventually(5000, `${name}'s ARP request reaches the host`, () => {
      return hears.heard.includes(hex);
    });
  }

  async #addGuest(name: GuestName, flags: readonly string[]): Promise<void> {
    const { json: [record] } = await this.host.mustTapkit(
      ...["attach-vm", name, ...flags, ...this.#flags] as const,
    );
    const machine = this.#stack.use(await NetnsGuest.start(this.host, record));
    const { addresses } = record.interfaces[0];
    const [ip = BARE[0], ip6 = BARE[1]] = addresses
      .map(({ address }: { address: string }) => address.split("/")[0]);
    await machine.sh(configure("eth0", ip, ip6));
    await machine.serveHttp(80, name);
    await this.#addParty(name, { machine });
  }

  async #addBox(): Promise<void> {
    await this.host.sh(`
      ip netns add box
      ip link add box0 type veth peer name eth0 netns box
      ip link set box0 master cni0 up
      ip netns exec box sh -ec '
        echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad
        ip link set lo up; ip link set eth0 up
        ${configure("eth0", BOX.ip, BOX.ip6)}'
      mkdir -p /run/box && echo box >/run/box/index.html`);
    const httpd = ["httpd", "-f", "-p", "80", "-h", "/run/box"];
    this.host.spawn("busybox", httpd, { netns: "box" });
    await this.#addParty("box", { machine: this.host, netns: "box" });
  }

  async #addParty(
    name: PartyName,
    { machine, netns, link = "eth0" }: { machine: Machine; netns?: string; link?: string },
  ): Promise<void> {
    const where = netns === undefined ? {} : { netns };
    const path = netns === undefined ? machine.netnsPath : machine.path(`/run/netns/${netns}`);
    type Shown = { address: string; addr_info: { local: string; family: string; scope: string }[] };
    const show = async () => {
      const text = await machine.must("ip", ["-j", "addr", "show", "dev", link], where);
      return (JSON.parse(text) as Shown[])[0]!;
    };
    const find = ({ addr_info }: Shown, family: string, scope: string) =>
      addr_info.find((one) => one.family === family && one.scope === scope)?.local;
    await eventually(5000, `${name} has a link-local address`, async () => {
      return find(await show(), "inet6", "link") !== undefined;
    });
    const shown = await show();
    this.#parties.set(name, {
      machine,
      ...where,
      mac: shown.address,
      ip: find(shown, "inet", "global")!,
      ip6: find(shown, "inet6", "global")!,
      local: find(shown, "inet6", "link")!,
      tap: this.#stack.use(Wiretap.open(path, link)),
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync();
  }
}

function configure(link: string, ip: string, ip6: string): string {
  return `
    ip addr add ${ip}/24 dev ${link}
    ip -6 addr add ${ip6}/64 dev ${link} nodad
    ip route add default via ${GATEWAY}
    ip -6 route add default via ${GATEWAY6}`;
}
