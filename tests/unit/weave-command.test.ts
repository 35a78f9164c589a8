import { assertEquals, assertMatch, assertThrows } from "@std/assert";
import type { Container } from "../../lib/docker/docker.ts";
import { InputError } from "../../lib/errors.ts";
import { parseSaved } from "../../lib/firewall/iptables-save.ts";
import {
  differences,
  isWeave,
  type Launch,
  runArguments,
  shellText,
} from "../../lib/weave/command.ts";
import { startOf } from "../../lib/weave/image.ts";
import { listPeers, missingPeers } from "../../lib/weave/ready.ts";
import { parseReport } from "../../lib/weave/report.ts";
import { withoutWeave } from "../../lib/weave/rules.ts";
import { parsePeers, resolvePeers } from "../../lib/weave/peers.ts";

const LAUNCH: Launch = {
  image: "weaveworks/weave-kube:2.5.2",
  start: { asksKubernetes: false, metrics: "WEAVE_METRICS_ADDR" },
  hostname: "host1",
  peers: ["192.0.2.10", "192.0.2.11"],
  mtu: 1376,
  noFastDatapath: true,
  password: false,
  more: {},
};

Deno.test("shellText: is the documentation's command, with what it lacks", () => {
  assertEquals(
    shellText(LAUNCH),
    String.raw`docker run -d \
  --name weave \
  --privileged \
  --net host \
  --pid host \
  --restart always \
  -e HOSTNAME=host1 \
  -e KUBE_PEERS='192.0.2.10 192.0.2.11' \
  -e EXPECT_NPC=0 \
  -e WEAVE_MTU=1376 \
  -e WEAVE_NO_FASTDP=1 \
  -e WEAVE_METRICS_ADDR=127.0.0.1:6782 \
  -v /var/lib/weave:/weavedb \
  -v /opt:/host/opt \
  -v /home:/host/home \
  -v /etc:/host/etc \
  -v /var/lib/dbus:/host/var/lib/dbus \
  -v /lib/modules:/lib/modules \
  -v /run/xtables.lock:/run/xtables.lock \
  --entrypoint /home/weave/launch.sh \
  weaveworks/weave-kube:2.5.2`,
  );
});

Deno.test("shellText: a shell reads the arguments of runArguments", () => {
  const launches: Launch[] = [
    LAUNCH,
    { ...LAUNCH, password: true, range: "10.96.0.0/12", noFastDatapath: false },
    { ...LAUNCH, start: { asksKubernetes: true, metrics: "WEAVE_STATUS_ADDR" }, password: true },
    { ...LAUNCH, more: { EXTRA_ARGS: `--log-level=debug --x='"$HOME"' \\ \n!` } },
    { ...LAUNCH, hostname: "", confDir: "/a dir/net.d", binDir: "/opt/it's" },
  ];
  for (const launch of launches) {
    const { stdout, success } = new Deno.Command("sh", {
      args: ["-c", `docker() { printf '%s\\0' "$@"; }\n${shellText(launch)}`],
    }).outputSync();
    assertEquals(success, true);
    assertEquals(new TextDecoder().decode(stdout).split("\0").slice(0, -1), runArguments(launch));
  }
});

Deno.test("runArguments: no secret, no Docker socket, so any engine's API will do", () => {
  const words = runArguments({ ...LAUNCH, password: true });
  assertEquals(words.filter((word) => /docker\.sock|DOCKER_|WEAVE_PASSWORD=[^"]/.test(word)), []);
  assertEquals(words.slice(-5), [
    "--entrypoint",
    "/bin/sh",
    "weaveworks/weave-kube:2.5.2",
    "-ec",
    'export WEAVE_PASSWORD="$(cat /weavedb/tapkit-password)"; exec /home/weave/launch.sh',
  ]);
});

/** What `docker inspect` says of a container that was started with these arguments. */
function started(launch: Launch, more: Partial<Container["Config"]> = {}): Container {
  const words = runArguments(launch);
  const given = (flag: string) => words.filter((_, index) => words[index - 1] === flag);
  const image = words.indexOf(launch.image);
  return {
    Id: "0123",
    Name: "/weave",
    State: { Running: true, Restarting: false, Status: "running", ExitCode: 0 },
    Config: {
      Image: launch.image,
      Env: ["PATH=/usr/bin", ...given("-e")],
      Entrypoint: given("--entrypoint"),
      Cmd: words.slice(image + 1),
      Labels: {},
      ...more,
    },
    HostConfig: {
      NetworkMode: "host",
      Binds: given("-v"),
      Privileged: true,
      PidMode: "host",
      RestartPolicy: { Name: "always" },
      Dns: null,
      DnsSearch: null,
    },
    RestartCount: 0,
    ResolvConfPath: "",
    NetworkSettings: { SandboxKey: "", Ports: {}, Networks: {} },
  };
}

Deno.test("differences: none of what was started so; the peers are changed live", () => {
  assertEquals(differences(started(LAUNCH), LAUNCH), []);
  assertEquals(
    differences(started({ ...LAUNCH, peers: ["192.0.2.12"], hostname: "x" }), LAUNCH),
    [],
  );
});

Deno.test("differences: names each, and shows no password", () => {
  const typed = started(LAUNCH, {
    Image: "weaveworks/weave-kube:2.6.0",
    Env: [
      "KUBE_PEERS=192.0.2.10",
      "WEAVE_MTU=1400",
      "WEAVE_PASSWORD=secret",
      "IPALLOC_RANGE=10.1.0.0/16",
    ],
    Cmd: ["--log-level=debug"],
  });
  assertEquals(differences(typed, LAUNCH), [
    "is of weaveworks/weave-kube:2.6.0, not weaveworks/weave-kube:2.5.2",
    "lacks EXPECT_NPC=0",
    "has WEAVE_MTU=1400, not 1376",
    "lacks WEAVE_NO_FASTDP=1",
    "lacks WEAVE_METRICS_ADDR=127.0.0.1:6782",
    "has IPALLOC_RANGE=10.1.0.0/16",
    "shows its password to docker inspect",
    "executes /home/weave/launch.sh --log-level=debug",
  ]);
  const { HostConfig } = started(LAUNCH);
  const other = {
    ...HostConfig,
    NetworkMode: "bridge",
    PidMode: "",
    Privileged: false,
    Binds: null,
    RestartPolicy: { Name: "no" },
  };
  assertEquals(differences({ ...started(LAUNCH), HostConfig: other }, LAUNCH), [
    "has other mounts",
    "is not privileged",
    "is not on the host's network",
    "does not see the host's processes",
    "is not restarted after a reboot",
  ]);
});

Deno.test("isWeave: by what is executed, whatever the name and the image", () => {
  assertEquals(isWeave(started(LAUNCH)), true);
  assertEquals(isWeave(started({ ...LAUNCH, password: true })), true);
  assertEquals(
    isWeave(started({ ...LAUNCH, start: { ...LAUNCH.start, asksKubernetes: true } })),
    true,
  );
  const router = { Entrypoint: ["/home/weave/weaver"], Cmd: ["--port", "6783"] };
  assertEquals(isWeave(started(LAUNCH, router)), false);
  assertEquals(isWeave(started(LAUNCH, { Entrypoint: null, Cmd: null })), false);
});

Deno.test("startOf: tells later images by their question to Kubernetes", () => {
  const documented =
    "#!/bin/sh\nMETRICS_ADDR=${WEAVE_METRICS_ADDR:-0.0.0.0:6782}\nset -- $KUBE_PEERS\n";
  assertEquals(startOf(documented), { asksKubernetes: false, metrics: "WEAVE_METRICS_ADDR" });
  const later =
    `${documented}WEAVE_KUBERNETES_VERSION=$(/home/weave/kube-utils -print-k8s-version)\n`;
  assertEquals(startOf(later)?.asksKubernetes, true);
  assertEquals(startOf(later.replace(/\n$/, " || true\n"))?.asksKubernetes, false);
  assertEquals(
    startOf(`${documented}# X=$(/home/weave/kube-utils -print-uid)\n`)?.asksKubernetes,
    false,
  );
  assertEquals(
    startOf("STATUS_ADDR=${WEAVE_STATUS_ADDR:-x}\necho $KUBE_PEERS\n")?.metrics,
    "WEAVE_STATUS_ADDR",
  );
  assertEquals(startOf("#!/bin/sh\n# KUBE_PEERS\nexec sleep 1\n"), undefined);
});

Deno.test("a later image's launch.sh goes on after the questions have failed", () => {
  const directory = Deno.makeTempDirSync({ prefix: "tapkit-weave-" });
  try {
    const words = runArguments({ ...LAUNCH, start: { ...LAUNCH.start, asksKubernetes: true } });
    const script = words.at(-1)!.replaceAll("/home/weave", directory);
    const utils = `${directory}/kube-utils`;
    Deno.writeTextFileSync(utils, "#!/bin/sh\nexit 1\n", { mode: 0o755 });
    Deno.writeTextFileSync(
      `${directory}/launch.sh`,
      `#!/bin/sh\nset -e\nVERSION=$(${utils} -print-k8s-version)\nUID_=$(${utils} -print-uid)\n` +
        'echo "here: $(dirname "$0")"\n',
      { mode: 0o755 },
    );
    const sh = (...args: string[]) => {
      const { code, stdout } = new Deno.Command("sh", { args }).outputSync();
      return { code, out: new TextDecoder().decode(stdout) };
    };
    assertEquals(sh(`${directory}/launch.sh`).code, 1);
    assertEquals(sh("-ec", script), { code: 0, out: `here: ${directory}\n` });
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
});

Deno.test("parsePeers: addresses and names, with ports or without, each once", () => {
  assertEquals(parsePeers(" 192.0.2.10, host-2.example 192.0.2.10 192.0.2.11:6783", "--peers"), [
    "192.0.2.10",
    "host-2.example",
    "192.0.2.11:6783",
  ]);
  for (
    const [text, reason] of [
      ["", /names no peer/],
      ["192.0.2.300", /is malformed/],
      ["192.0.2", /is malformed/],
      ["2001:db8::1", /is an IPv6 address, by which Weave Net does not connect/],
      ["a;reboot", /is malformed/],
      ["-x", /is malformed/],
    ] as const
  ) {
    assertMatch(assertThrows(() => parsePeers(text, "--peers"), InputError).message, reason);
  }
});

Deno.test("missingPeers: those that are not connected, with Weave's reason, without this host", async () => {
  const report = parseReport(JSON.stringify({
    Router: {
      Name: "a",
      Connections: [
        { Address: "192.0.2.11:51423", State: "established", Info: "sleeve b(host2)" },
        {
          Address: "192.0.2.13:6783",
          State: "failed",
          Info: "Multiple connections to c added to a",
        },
        {
          Address: "192.0.2.12:6783",
          State: "failed",
          Info: "dial tcp4 :0->192.0.2.12:6783: connect: connection refused, retry: 2026-01-01",
        },
      ],
    },
  }))!;
  const given = ["192.0.2.10", "192.0.2.11", "192.0.2.12:6783", "host4.invalid", "localhost:6783"]
    .concat("192.0.2.13");
  const peers = await resolvePeers(given, new Set(["192.0.2.10", "127.0.0.1"]));
  assertEquals(
    listPeers(missingPeers(report, peers)),
    "192.0.2.12:6783 (connection refused), host4.invalid",
  );
});

Deno.test("withoutWeave: takes away Weave Net's rules and chains, and nothing else", () => {
  const saved = parseSaved(`*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:WEAVE-EXPOSE - [0:0]
:WEAVE-NPC - [0:0]
:DOCKER-USER - [0:0]
-A INPUT -d 127.0.0.1/32 -p tcp -m tcp --dport 6784 -m comment --comment "Block non-local access to Weave Net control port" -j DROP
-A INPUT -i weave -j ACCEPT
-A FORWARD -j DOCKER-USER
-A FORWARD -i weave -o weave -j ACCEPT
-A FORWARD -i weave ! -o weave -j ACCEPT
-A FORWARD -o weave -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o weave -j WEAVE-EXPOSE
-A FORWARD -o weave -m state --state NEW -j NFLOG --nflog-group 86
-A FORWARD -o weave -j DROP
-A FORWARD -s 192.0.2.7/32 -i weave -j ACCEPT
-A FORWARD -i eth0 -j ACCEPT
-A WEAVE-EXPOSE -d 10.32.0.0/12 -j ACCEPT
-A DOCKER-USER -o weave -j RETURN
COMMIT
*nat
:POSTROUTING ACCEPT [0:0]
:WEAVE - [0:0]
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -j WEAVE
-A WEAVE ! -s 10.32.0.0/12 -d 10.32.0.0/12 -j MASQUERADE
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
COMMIT
`);
  assertEquals(
    withoutWeave(saved),
    `*filter
-D INPUT -d 127.0.0.1/32 -p tcp -m tcp --dport 6784 -m comment --comment "Block non-local access to Weave Net control port" -j DROP
-D FORWARD -i weave -o weave -j ACCEPT
-D FORWARD -i weave ! -o weave -j ACCEPT
-D FORWARD -o weave -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-D FORWARD -o weave -j WEAVE-EXPOSE
-D FORWARD -o weave -m state --state NEW -j NFLOG --nflog-group 86
-D FORWARD -o weave -j DROP
-F WEAVE-EXPOSE
-F WEAVE-NPC
-X WEAVE-EXPOSE
-X WEAVE-NPC
COMMIT

*nat
-D POSTROUTING -j WEAVE
-F WEAVE
-X WEAVE
COMMIT
`,
  );
});
