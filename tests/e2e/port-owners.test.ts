/**
 * One host port has one owner, whoever keeps the rule that maps it, and whoever was there first.
 *
 * @module
 */

import { assertEquals, assertMatch } from "@std/assert";
import { REFERENCE_DIR, requireReference } from "../support/cni-reference.ts";
import { Host } from "../support/host.ts";

requireReference();

/** Who has port 8080, and how that is said. */
interface Owner {
  readonly name: string;
  readonly take: (host: Host) => Promise<unknown>;
  readonly said: RegExp;
  /** Of an IPv4 address alone: then the others' ports of that number are free. */
  readonly at?: "192.0.2.1";
  /** TCP when absent. */
  readonly protocol?: "udp";
}

const ID = "c0ffee".repeat(10);

/** Another runtime publishes a port by the reference portmap. */
async function portmap(host: Host, variant: "nft" | "legacy", hostIP?: string): Promise<void> {
  await host.sh(
    `mkdir -p /run/programs
     for name in iptables ip6tables; do
       ln -sf "$(command -v $name-${variant})" /run/programs/$name
     done`,
  );
  const port = { hostPort: 8080, containerPort: 80, protocol: "tcp" };
  await host.must(`${REFERENCE_DIR}/portmap`, [], {
    env: {
      PATH: `/run/programs:${Deno.env.get("PATH")}`,
      CNI_COMMAND: "ADD",
      CNI_CONTAINERID: ID,
      CNI_IFNAME: "eth0",
      CNI_NETNS: "/proc/1/ns/net",
      CNI_PATH: REFERENCE_DIR,
    },
    stdin: JSON.stringify({
      cniVersion: "0.4.0",
      name: "others",
      type: "portmap",
      capabilities: { portMappings: true },
      runtimeConfig: { portMappings: [{ ...port, ...hostIP === undefined ? {} : { hostIP } }] },
      prevResult: {
        cniVersion: "0.4.0",
        interfaces: [{ name: "eth0", sandbox: "/proc/1/ns/net" }],
        ips: [{ version: "4", address: "10.99.0.2/24", interface: 0 }],
      },
    }),
  });
}

const attach = (...args: string[]) => (host: Host) => host.mustTapkit("attach-vm", ...args);
const nft = (text: string) => (host: Host) => host.must("nft", ["-f", "-"], { stdin: text });
const listen = (at: string) => async (host: Host) => {
  host.own(host.spawn("busybox", ["httpd", "-f", "-p", at, "-h", "/run"]));
  await host.listening(8080, "tcp");
};

const OWNERS: readonly Owner[] = [
  {
    name: "a VM in nftables",
    take: attach("first", "--firewall", "nftables", "--ports", "8080:80"),
    said: /already mapped to VM "first"/,
  },
  {
    name: "a VM in nftables whose rules somebody flushed",
    take: async (host) => {
      await host.mustTapkit("attach-vm", "first", "--ports", "8080:80");
      await host.mustTapkit("attach-vm", "second", "--ports", "9090:90");
      await host.must("nft", ["flush", "map", "inet", "tapkit", "ports4"]);
    },
    said: /already mapped to VM "first"/,
  },
  {
    name: "a VM in iptables-nft",
    take: attach("first", "--firewall", "iptables", "--ports", "8080:80"),
    said: /already mapped to VM "first"/,
  },
  {
    name: "a VM in iptables-legacy",
    take: async (host) => {
      await host.sh("iptables-legacy -t nat -L; ip6tables-legacy -t nat -L");
      await attach("first", "--firewall", "iptables", "--ports", "8080:80")(host);
    },
    said: /already mapped to VM "first"/,
  },
  {
    name: "a VM of an executed portmap",
    take: attach("first", "--plugins", "exec", "--ports", "192.0.2.1:8080:80"),
    said: /already mapped to VM "first"/,
    at: "192.0.2.1",
  },
  {
    name: "a VM of an executed portmap whose record is gone",
    take: async (host) => {
      await attach("first", "--plugins", "exec", "--ports", "8080:80")(host);
      await host.sh("rm /var/lib/tapkit/vms/first.json");
    },
    said: /already mapped by chain CNI-DN-\w+ of iptables-nft \(dnat name: .*\)/,
  },
  {
    name: "a VM of another state directory",
    take: attach("first", "--state-dir", "/var/lib/other", "--ports", "192.0.2.1:8080:80"),
    said: /already mapped to VM "first"/,
    at: "192.0.2.1",
  },
  {
    name: "an address that tapkit did not attach",
    take: (host) => host.mustTapkit("map-port", "--to", "192.0.2.2", "8080:80"),
    said: /already mapped to address 192\.0\.2\.2: .* run map-port --to 192\.0\.2\.2 --remove/,
  },
  {
    name: "another runtime's portmap, iptables-nft",
    take: (host) => portmap(host, "nft"),
    said: new RegExp(`mapped by chain CNI-DN-\\w+ of iptables-nft \\(dnat name: .*${ID}`),
  },
  {
    name: "another runtime's portmap, iptables-legacy, of one address",
    take: (host) => portmap(host, "legacy", "192.0.2.1"),
    said: new RegExp(`mapped by chain CNI-DN-\\w+ of iptables-legacy \\(dnat name: .*${ID}`),
    at: "192.0.2.1",
  },
  {
    name: "another runtime's portmap, nftables",
    take: nft(`table ip cni_hostport {
      chain hostports {
        tcp dport 8080 dnat to 10.99.0.2:80 comment "${ID}"
      }
      chain prerouting {
        type nat hook prerouting priority dstnat
        jump hostports
      }
    }`),
    said: new RegExp(`chain hostports of nftables table "ip cni_hostport" \\(${ID}\\)`),
  },
  {
    name: "podman",
    take: (host) =>
      host.sh(
        `iptables-nft -t nat -N NETAVARK-HOSTPORT-DNAT
         iptables-nft -t nat -N NETAVARK-DN-1
         iptables-nft -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j NETAVARK-HOSTPORT-DNAT
         iptables-nft -t nat -A NETAVARK-HOSTPORT-DNAT -p tcp --dport 8080 \
           -m comment --comment 'dnat name: podman id: ${ID}' -j NETAVARK-DN-1
         iptables-nft -t nat -A NETAVARK-DN-1 -p tcp --dport 8080 -j DNAT \
           --to-destination 10.88.0.2:80`,
      ),
    said: new RegExp(`chain NETAVARK-DN-1 of iptables-nft \\(dnat name: podman id: ${ID}\\)`),
  },
  {
    name: "a person's rule for several ports of a prefix",
    take: (host) =>
      host.sh(
        `iptables-legacy -t nat -A PREROUTING -d 192.0.2.0/30 -p tcp -m multiport \
           --dports 22,8080 -j DNAT --to-destination 10.99.0.9`,
      ),
    said: /already mapped by chain PREROUTING of iptables-legacy/,
    at: "192.0.2.1",
  },
  {
    name: "a person's table of nftables, by a map",
    take: nft(`table inet mine {
      map where { type inet_service : ipv4_addr . inet_service
        elements = { 8080 : 10.99.0.9 . 80 } }
      chain in { type nat hook prerouting priority dstnat
        dnat ip to tcp dport map @where
      }
    }`),
    said: /already mapped by chain in of nftables table "inet mine"/,
  },
  {
    name: "who listens on all addresses",
    take: listen("8080"),
    said: /in use by busybox \(pid \d+\)/,
  },
  {
    name: "who listens on one address",
    take: listen("192.0.2.1:8080"),
    said: /in use by busybox \(pid \d+\)/,
    at: "192.0.2.1",
  },
  {
    name: "who waits for datagrams",
    take: (host) => host.serveUdp(8080, "mine"),
    said: /in use by \w+ \(pid \d+\)/,
    protocol: "udp",
  },
];

/** Who comes later, by each means. Nothing of them stays. */
const COMERS: readonly (readonly [script: string, ...args: string[]])[] = [
  ["attach-vm", "late", "--firewall", "nftables", "--ports"],
  ["attach-vm", "late", "--firewall", "iptables", "--ports"],
  ["attach-vm", "late", "--plugins", "exec", "--ports"],
  ["map-port", "there"],
];

for (const { name, take, said, at, protocol = "tcp" } of OWNERS) {
  Deno.test(`attach-vm, map-port: a host port of ${name} is refused`, async () => {
    await using host = await Host.create();
    await host.addLan();
    await host.sh("ip address add 192.0.2.7/24 dev eth-lan");
    await host.mustTapkit("attach-vm", "there");
    await take(host);
    const refusal = new RegExp(`host port (192.0.2.1:)?8080/${protocol} is .*: choose another`);
    for (const [script, ...args] of COMERS) {
      for (const ports of ["8080:80", "192.0.2.1:8080:80", "8070-8085:70-85"]) {
        const words = [...args, `${ports}/${protocol}`];
        const { code, stderr } = await host.tapkit(script, ...words);
        assertEquals(code, 1, `${script} ${words.join(" ")}: ${stderr}`);
        assertMatch(stderr, said);
        assertMatch(stderr, refusal);
      }
    }
    const other = protocol === "tcp" ? "udp" : "tcp";
    const free = [`8080:80/${other}`, ...at === undefined ? [] : ["192.0.2.7:8080:80"]];
    await host.mustTapkit("map-port", "there", "8081:80", ...free);
  });
}

Deno.test("attach-vm --check, map-port --check: tell of who took a host port later, without asking", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.mustTapkit("attach-vm", "web", "--ports", "8080:80");
  await host.mustTapkit("map-port", "--to", "192.0.2.2", "192.0.2.1:8081:80");
  for (const [script, ...args] of [["attach-vm", "web"], ["map-port", "web"]] as const) {
    assertEquals((await host.tapkit(script, ...args, "--check")).code, 0);
  }
  await portmap(host, "legacy");
  await host.sh(
    "iptables-nft -t nat -A OUTPUT -p tcp --dport 8000:8999 -j REDIRECT --to-ports 80",
  );
  for (
    const [script, ...args] of [
      ["attach-vm", "web"],
      ["map-port", "web"],
      ["map-port", "--to", "192.0.2.2"],
    ] as const
  ) {
    const { code, json: [{ problems }] } = await host.tapkit(script, ...args, "--check");
    assertEquals(code, 3);
    const port = args.length === 1 ? "8080/tcp" : "192.0.2.1:8081/tcp";
    const said = [
      `host port ${port} is already mapped by chain OUTPUT of iptables-nft too`,
      ...args.length === 1
        ? [`host port ${port} is already mapped by chain CNI-DN- of iptables-legacy () too`]
        : [],
    ];
    assertEquals(
      problems.map((text: string) => text.replace(/CNI-DN-\w+/, "CNI-DN-").replace(/\(.*\)/, "()")),
      said,
    );
  }
});

Deno.test("attach-vm --ports: what cannot be read is said, once, and is not taken for nothing", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.sh(
    `iptables-legacy -t nat -A PREROUTING -p tcp --dport 8080 -j REDIRECT --to-ports 80
     mount --bind /dev/null "$(realpath "$(command -v iptables-legacy-save)")"`,
  );
  const { code, stderr } = await host.tapkit("attach-vm", "a", "b", "--ports", "0:80");
  assertEquals(code, 0, stderr);
  const said = stderr.match(/warning: which host ports iptables-legacy maps cannot be told: .*/g);
  assertEquals(said, [
    "warning: which host ports iptables-legacy maps cannot be told: iptables-legacy-save is not " +
    "installed: install the package iptables",
  ]);
});

Deno.test("attach-vm --ports 0:80: of 300 names none collides, where the old iptables was used", async () => {
  await using host = await Host.create();
  await host.addLan();
  // A third of the ports is free in the end.
  await host.sh(
    `iptables-legacy -t nat -L; ip6tables-legacy -t nat -L; iptables-nft -t nat -L
     echo 40000 40449 >/proc/sys/net/ipv4/ip_local_port_range`,
  );
  const names = Array.from({ length: 300 }, (_, index) => `vm-${index}`);
  const { json } = await host.mustTapkit("attach-vm", ...names, "--ports", "0:80", {
    timeoutMs: 120_000,
  });
  assertEquals(new Set(json.map(({ ports: [port] }) => port.hostPort)).size, 300);
});

Deno.test("attach-vm --ports 0:80: two state directories at once get different ports", async () => {
  await using host = await Host.create();
  await host.addLan();
  await host.sh("echo 40000 40024 >/proc/sys/net/ipv4/ip_local_port_range");
  const attach = (directory: string, mark: string) => {
    const names = Array.from({ length: 10 }, (_, index) => `${mark}-${index}`);
    return host.mustTapkit("attach-vm", ...names, "--state-dir", directory, "--ports", "0:80");
  };
  const done = await Promise.all([attach("/var/lib/one", "a"), attach("/var/lib/two", "b")]);
  const ports = done.flatMap(({ json }) => json.map(({ ports: [port] }) => port.hostPort));
  assertEquals(new Set(ports).size, 20);
});
