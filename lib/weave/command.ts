/**
 * The documentation's `docker run` of Weave Net (pure): its arguments, the same for a person to paste,
 * and how a container that is there differs from it.
 *
 * @module
 */

import type { Container } from "../docker/docker.ts";
import { PASSWORD_FILE, WEAVE_DIR } from "./settings.ts";

/** The container's name. */
export const CONTAINER = "weave";

/** The documentation's image. */
export const IMAGE = "weaveworks/weave-kube:2.5.2";

/** What fits into the packets that carry it, encrypted or not, on a network with an MTU of 1500. */
export const MTU = 1376;

const LAUNCH = "/home/weave/launch.sh";

/** How an image has to be started outside of Kubernetes. */
export interface ImageStart {
  /**
   * Whether its launch.sh asks Kubernetes for its version, and ends when there is no answer. Then the
   * lines that ask may fail.
   */
  readonly asksKubernetes: boolean;
  /** The variable by which it is told where metrics are served. */
  readonly metrics: "WEAVE_METRICS_ADDR" | "WEAVE_STATUS_ADDR";
}

/** All that the command depends on. */
export interface Launch {
  readonly image: string;
  readonly start: ImageStart;
  readonly hostname: string;
  readonly peers: readonly string[];
  /** In bytes. */
  readonly mtu: number;
  /** What addresses are given from; Weave's own default if absent. */
  readonly range?: string;
  /** Whether the kernel lacks Weave's fast datapath, or its bridge was made without it. */
  readonly noFastDatapath: boolean;
  /** Whether the router reads a password from its file. */
  readonly password: boolean;
  /** Further variables, from a container that was started by hand. */
  readonly more: Readonly<Record<string, string>>;
  /** Where CNI configurations and plugins go on the host, if not to the usual places. */
  readonly confDir?: string;
  readonly binDir?: string;
}

/** The variables of a launch, in the documentation's order; then what the documentation lacks. */
export function environment(launch: Launch): ReadonlyMap<string, string> {
  const { mtu, range, noFastDatapath, start, more } = launch;
  return new Map([
    ["HOSTNAME", launch.hostname],
    ["KUBE_PEERS", launch.peers.join(" ")],
    // No network policies: the rules for them drop everything where nothing else makes the others.
    ["EXPECT_NPC", "0"],
    ["WEAVE_MTU", String(mtu)],
    ...noFastDatapath ? [["WEAVE_NO_FASTDP", "1"] as const] : [],
    [start.metrics, "127.0.0.1:6782"],
    ...range === undefined ? [] : [["IPALLOC_RANGE", range] as const],
    ...Object.entries(more),
  ]);
}

function binds({ confDir, binDir }: Launch): string[] {
  return [
    `${WEAVE_DIR}:/weavedb`,
    "/opt:/host/opt",
    "/home:/host/home",
    "/etc:/host/etc",
    "/var/lib/dbus:/host/var/lib/dbus",
    "/lib/modules:/lib/modules",
    "/run/xtables.lock:/run/xtables.lock",
    ...confDir === undefined ? [] : [`${confDir}:/host/etc/cni/net.d`],
    ...binDir === undefined ? [] : [`${binDir}:/host/opt/cni/bin`],
  ];
}

/** What the container executes: the documentation's, unless that does not work. */
function program({ start, password }: Launch): { entrypoint: string; words: readonly string[] } {
  if (!start.asksKubernetes && !password) return { entrypoint: LAUNCH, words: [] };
  const mended = "/home/weave/launch-outside-kubernetes.sh";
  const lines = [
    ...password ? [`export WEAVE_PASSWORD="$(cat /weavedb/${PASSWORD_FILE})"`] : [],
    ...start.asksKubernetes
      ? [`sed '/=\\$(.*kube-utils -print-/s/$/ || true/' ${LAUNCH} >${mended}`, `exec sh ${mended}`]
      : [`exec ${LAUNCH}`],
  ];
  return { entrypoint: "/bin/sh", words: ["-ec", lines.join("; ")] };
}

/** The options of the command, each with its value, then the image and what it executes. */
function groups(launch: Launch): string[][] {
  const { entrypoint, words } = program(launch);
  return [
    ["run", "-d"],
    ["--name", CONTAINER],
    ["--privileged"],
    ["--net", "host"],
    ["--pid", "host"],
    ["--restart", "always"],
    ...[...environment(launch)].map(([name, value]) => ["-e", `${name}=${value}`]),
    ...binds(launch).map((bind) => ["-v", bind]),
    ["--entrypoint", entrypoint],
    [launch.image, ...words],
  ];
}

/** The arguments of `docker`. */
export function runArguments(launch: Launch): string[] {
  return groups(launch).flat();
}

/** The command as text that a shell reads, an option on each line. */
export function shellText(launch: Launch): string {
  const lines = groups(launch).map((words) => words.map(quoted).join(" "));
  return `docker ${lines.join(" \\\n  ")}`;
}

function quoted(word: string): string {
  if (/^[\w@%+=:,./-]+$/.test(word)) return word;
  const assigned = /^([A-Z_]+=)(.*)$/s.exec(word);
  const [name, value] = assigned === null ? ["", word] : [assigned[1]!, assigned[2]!];
  return `${name}'${value.replaceAll("'", `'\\''`)}'`;
}

/** Whether a container runs Weave Net's router as this command does, whoever started it. */
export function isWeave({ Config }: Container): boolean {
  return [...Config.Entrypoint ?? [], ...Config.Cmd ?? []]
    .some((word) => word.includes("/home/weave/launch"));
}

/** The variables of a container. */
export function environmentOf({ Config }: Container): ReadonlyMap<string, string> {
  return new Map((Config.Env ?? []).map((line) => {
    const at = line.indexOf("=");
    return [line.slice(0, at), line.slice(at + 1)];
  }));
}

/** What changes while the router runs, or does not matter to it. */
const LIVE = ["HOSTNAME", "KUBE_PEERS", "IPALLOC_INIT"];
/** What the router reads beside, and a password, which is not to be seen. */
const KNOWN = ["WEAVE_NO_FASTDP", "IPALLOC_RANGE", "WEAVE_PASSWORD", "WEAVE_STATUS_ADDR"];

/**
 * How a container differs from what this launch would start, but for the peers, which are changed
 * live. Each is a sentence about the container.
 */
export function differences(container: Container, launch: Launch): string[] {
  const wanted = environment(launch);
  const had = environmentOf(container);
  const names = new Set([...wanted.keys(), ...KNOWN].filter((name) => !LIVE.includes(name)));
  const { entrypoint, words } = program(launch);
  const { Config, HostConfig } = container;
  const list = (value: readonly string[] | null) => value ?? [];
  const same = (one: readonly string[], other: readonly string[]) =>
    one.length === other.length && one.every((word, index) => word === other[index]);
  return [
    ...Config.Image === launch.image ? [] : [`is of ${Config.Image}, not ${launch.image}`],
    ...[...names].flatMap((name) => {
      const [now, then] = [had.get(name), wanted.get(name)];
      if (now === then) return [];
      if (name === "WEAVE_PASSWORD") return ["shows its password to docker inspect"];
      if (now === undefined) return [`lacks ${name}=${then}`];
      return [`has ${name}=${now}${then === undefined ? "" : `, not ${then}`}`];
    }),
    ...same(list(Config.Entrypoint), [entrypoint]) && same(list(Config.Cmd), words)
      ? []
      : [`executes ${[...list(Config.Entrypoint), ...list(Config.Cmd)].join(" ")}`],
    ...same(list(HostConfig.Binds).toSorted(), binds(launch).toSorted())
      ? []
      : ["has other mounts"],
    ...HostConfig.Privileged ? [] : ["is not privileged"],
    ...HostConfig.NetworkMode === "host" ? [] : ["is not on the host's network"],
    ...HostConfig.PidMode === "host" ? [] : ["does not see the host's processes"],
    ...HostConfig.RestartPolicy.Name === "always" ? [] : ["is not restarted after a reboot"],
  ];
}
