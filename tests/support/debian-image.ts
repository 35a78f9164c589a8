/**
 * The disk image of docs/qemu.md, made by the commands that are there, and kept in the cache directory of
 * the user. It takes a minute and 550 MB.
 *
 * @module
 */

import { cacheDirectory } from "./guest-image.ts";
import type { Host } from "./host.ts";
import { pageBlocks } from "./page.ts";

/** Where the page has its files. */
export const VMS = "/var/lib/vms";

/** The page's files for a VM to boot. */
const FILES = ["debian.raw", "vmlinuz", "initrd.img"];

/** The page's commands that make the image. */
export function imageCommands(): string {
  return pageBlocks("qemu.md", "sh").find((block) => block.includes("mmdebstrap"))!;
}

/**
 * Gives a host the files that {@linkcode imageCommands} make. They are made outside of it: Debian's
 * packages are not to be had from there.
 */
export async function giveDebianImage(host: Host): Promise<void> {
  const directory = await debianImage();
  await host.sh(`mkdir -p ${VMS}`);
  for (const name of FILES) await host.sh(`ln -s ${directory}/${name} ${VMS}/${name}`);
}

async function debianImage(): Promise<string> {
  const commands = imageCommands();
  const bytes = new TextEncoder().encode(commands);
  const key = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).slice(0, 8).toHex();
  const cache = cacheDirectory();
  await Deno.mkdir(cache, { recursive: true });
  using lock = await Deno.open(`${cache}/debian.lock`, { write: true, create: true });
  await lock.lock(true);
  const directory = `${cache}/debian-${key}`;
  if (await Deno.stat(directory).then(() => true, () => false)) return directory;
  for (const { name } of [...Deno.readDirSync(cache)]) {
    if (/^(new-)?debian-/.test(name)) await Deno.remove(`${cache}/${name}`, { recursive: true });
  }
  const work = await Deno.makeTempDir({ dir: cache, prefix: "new-debian-" });
  console.error("making docs/qemu.md's disk image");
  const { success, stderr } = await new Deno.Command("bash", {
    args: ["-euc", commands.replaceAll(VMS, work)],
    env: { LC_ALL: "C.UTF-8" },
    stdin: "null",
    stdout: "null",
  }).output();
  if (!success) throw new Error(`docs/qemu.md: ${new TextDecoder().decode(stderr)}`);
  await Deno.mkdir(`${work}/made`);
  for (const name of FILES) await Deno.rename(`${work}/${name}`, `${work}/made/${name}`);
  await Deno.rename(`${work}/made`, directory);
  await Deno.remove(work, { recursive: true });
  return directory;
}
