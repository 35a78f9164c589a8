/**
 * The disk image of docs/qemu.md, made by the commands that are there, and kept in the cache directory of
 * the user. It takes a minute and 550 MB.
 *
 * @module
 */

import type { Host } from "./host.ts";
import { kept, makeBy } from "./kept.ts";
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
  return await kept({
    name: "debian",
    recipe: [commands],
    async make(work) {
      console.error("making docs/qemu.md's disk image");
      await makeBy(commands.replaceAll(VMS, work));
      await Deno.mkdir(`${work}/made`);
      for (const name of FILES) await Deno.rename(`${work}/${name}`, `${work}/made/${name}`);
      return `${work}/made`;
    },
  });
}
