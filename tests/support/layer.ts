/**
 * Packages that the tests need, beside the machine instead of on it: they are installed into overlays
 * of its directories, in namespaces where nothing that they start can stay, and the tests run on top
 * of these. The machine itself, its services and their settings stay as they are.
 *
 * A layer is kept in the cache directory of the user, for as long as the machine has the packages it
 * was made upon. Each run lays an empty half of its own over it.
 */

import { fetchPackages } from "./apt.ts";

/** Says that this process runs on a layer, and which process outside waits for it. */
export const OUTSIDE_VARIABLE = "TAPKIT_TEST_OUTSIDE";

/** The directories that packages write to; some are links into others. */
const DIRECTORIES = ["bin", "etc", "lib", "lib32", "lib64", "opt", "sbin", "usr", "var"];

/** Arguments: the layer, where apt keeps its archives, the directories, `--`, apt-get's arguments. */
const BUILD = `
set -e
layer=$1
shift
while [ "$1" != -- ]; do
  mkdir -p "$layer"/{upper,work}/$1
  mount -n -t overlay overlay /$1 \
    -o "lowerdir=/$1,upperdir=$layer/upper/$1,workdir=$layer/work/$1"
  shift
done
shift
mount -n -t tmpfs -o mode=755 tmpfs /run
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
exec unshare --net --ipc --uts --pid --fork --kill-child --mount-proc apt-get "$@"
`;

/** Arguments: the layer, the directories, `--`, the command. A file that is a mount stays what it is. */
const RUN = `
set -e
layer=$1
shift
mount -n -t tmpfs -o mode=755 tmpfs "$layer/own"
for name in resolv.conf hosts hostname; do
  ! mountpoint -q /etc/$name || cp /etc/$name "$layer/own/$name"
done
while [ "$1" != -- ]; do
  mkdir -p "$layer"/own/{upper,work}/$1
  mount -n -t overlay overlay /$1 \
    -o "lowerdir=$layer/upper/$1:/$1,upperdir=$layer/own/upper/$1,workdir=$layer/own/work/$1"
  shift
done
shift
for name in resolv.conf hosts hostname; do
  [ ! -e "$layer/own/$name" ] || cp "$layer/own/$name" /etc/$name
done
exec "$@"
`;

/**
 * The layer that has the packages, made when it is not there.
 *
 * @param cache a directory that is in none of those that packages write to
 * @returns its path
 */
export async function packageLayer(names: readonly string[], cache: string): Promise<string> {
  const inside = directories().find((name) => `${cache}/`.startsWith(`/${name}/`));
  if (inside !== undefined) {
    throw new Error(`${cache} is in /${inside}: name another directory with XDG_CACHE_HOME`);
  }
  await Deno.mkdir(cache, { recursive: true });
  using lock = await Deno.open(`${cache}/layer.lock`, { write: true, create: true });
  await lock.lock(true);
  const layer = `${cache}/layer-${await keyOf(names)}`;
  if (await isThere(layer)) return layer;
  await removeStale(cache);
  const work = await Deno.makeTempDir({ dir: cache, prefix: "new-layer-" });
  try {
    const args = await fetchPackages(names, `${work}/apt`);
    console.error("installing them beside this machine");
    await inNamespaces(BUILD, [work, ...directories(), "--", ...args]);
    for (const done of ["apt", "work"]) await Deno.remove(`${work}/${done}`, { recursive: true });
    await Deno.mkdir(`${work}/own`);
    await Deno.rename(work, layer);
  } finally {
    if (await isThere(work)) await Deno.remove(work, { recursive: true });
  }
  return layer;
}

/**
 * Runs this program again, on top of a layer.
 *
 * @returns its exit code
 */
export async function runOnLayer(layer: string): Promise<number> {
  const program = [Deno.execPath(), "run", "-A", Deno.mainModule, ...Deno.args];
  // Nobody takes a layer away that somebody runs on.
  const held = ["--shared", layer, "unshare", "--mount", "--propagation", "private"];
  const child = new Deno.Command("flock", {
    args: [...held, "bash", "-c", RUN, "run", layer, ...directories(), "--", ...program],
    env: { [OUTSIDE_VARIABLE]: String(Deno.pid) },
    stdin: "inherit",
    stdout: "inherit",
    stderr: "inherit",
  }).spawn();
  // A terminal's Ctrl-C reaches the child by itself.
  Deno.addSignalListener("SIGINT", () => {});
  Deno.addSignalListener("SIGTERM", () => child.kill("SIGTERM"));
  return (await child.status).code;
}

/** Of other packages, or upon a machine that has changed since; but none that is in use. */
async function removeStale(cache: string): Promise<void> {
  for (const { name } of [...Deno.readDirSync(cache)]) {
    const path = `${cache}/${name}`;
    if (name.startsWith("new-layer-")) await Deno.remove(path, { recursive: true });
    if (!name.startsWith("layer-")) continue;
    await new Deno.Command("flock", { args: ["--nonblock", path, "rm", "-rf", path] }).output();
  }
}

async function inNamespaces(script: string, args: readonly string[]): Promise<void> {
  const { success, stdout, stderr } = await new Deno.Command("unshare", {
    args: ["--mount", "--propagation", "private", "bash", "-c", script, "layer", ...args],
    env: { DEBIAN_FRONTEND: "noninteractive", LC_ALL: "C.UTF-8" },
    stdin: "null",
  }).output();
  if (success) return;
  const decoder = new TextDecoder();
  throw new Error(`apt-get: ${decoder.decode(stderr)}${decoder.decode(stdout)}`);
}

function directories(): string[] {
  return DIRECTORIES.filter((name) => {
    try {
      return Deno.lstatSync(`/${name}`).isDirectory;
    } catch {
      return false;
    }
  });
}

/** Packages, and those that the machine has: what is made upon these does not fit others. */
async function keyOf(names: readonly string[]): Promise<string> {
  const status = await Deno.readTextFile("/var/lib/dpkg/status");
  const bytes = new TextEncoder().encode(`${names.toSorted().join(" ")}\n${status}`);
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).slice(0, 8).toHex();
}

async function isThere(path: string): Promise<boolean> {
  return await Deno.lstat(path).then(() => true, () => false);
}
