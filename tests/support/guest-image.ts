/**
 * The image of a real guest: Debian's cloud kernel, unpacked from its package, and an initramfs
 * of busybox and the init script. Built once, then kept in the cache directory of the user.
 */

import { unpackDependency } from "./apt.ts";
import { type CpioEntry, writeCpio } from "./cpio.ts";
import { CGI_CLIENT, INIT, MODULES } from "./guest-init.ts";
import { UDHCPC_SCRIPT } from "./lease.ts";

/** The files a VMM boots. */
export interface GuestImage {
  readonly kernel: string;
  readonly initramfs: string;
}

/** What the kernel's package is a dependency of. */
const KERNEL_PACKAGE = "linux-image-cloud-amd64";

const encoder = new TextEncoder();

/** Where the tests keep what takes long to make. */
export function cacheDirectory(): string {
  const base = Deno.env.get("XDG_CACHE_HOME") || `${Deno.env.get("HOME") ?? "/root"}/.cache`;
  return `${base}/tapkit-tests`;
}

/** The image, built when it is not there; several processes may ask at once. */
export async function guestImage(): Promise<GuestImage> {
  const cache = cacheDirectory();
  await Deno.mkdir(cache, { recursive: true });
  using lock = await Deno.open(`${cache}/lock`, { write: true, create: true });
  await lock.lock(true);
  const kernel = await kernelDirectory(cache);
  const entries = await contents(kernel);
  const archive = writeCpio(entries);
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", archive)).slice(0, 8).toHex();
  const initramfs = `${kernel}/initramfs-${hash}`;
  if (!await exists(initramfs)) {
    await Deno.writeFile(`${initramfs}.new`, archive);
    await Deno.rename(`${initramfs}.new`, initramfs);
  }
  return { kernel: `${kernel}/vmlinuz`, initramfs };
}

/** A directory with `vmlinuz` and the modules; the package is fetched when none is there. */
async function kernelDirectory(cache: string): Promise<string> {
  const known = [...Deno.readDirSync(cache)].map(({ name }) => name)
    .filter((name) => name.startsWith("linux-image-")).sort().at(-1);
  if (known !== undefined) return `${cache}/${known}`;
  const work = await Deno.makeTempDir({ dir: cache, prefix: "new-" });
  try {
    const name = await unpackDependency(KERNEL_PACKAGE, work);
    const version = name.replace(/^linux-image-/, "");
    const made = `${work}/made`;
    await Deno.mkdir(made);
    await Deno.rename(`${work}/boot/vmlinuz-${version}`, `${made}/vmlinuz`);
    const modules = await findModules(`${work}/lib/modules/${version}/kernel`);
    for (const module of MODULES) {
      const path = modules.get(module);
      if (path === undefined) throw new Error(`${name} has no module ${module}`);
      await Deno.writeFile(`${made}/${module}.ko`, await readModule(path));
    }
    await Deno.rename(made, `${cache}/${name}`);
    return `${cache}/${name}`;
  } finally {
    await Deno.remove(work, { recursive: true });
  }
}

/** Paths by module name, as far as wanted. */
async function findModules(directory: string): Promise<Map<string, string>> {
  const { stdout } = await new Deno.Command("find", { args: [directory, "-name", "*.ko*"] })
    .output();
  const paths = new TextDecoder().decode(stdout).split("\n");
  return new Map(paths.map((path) => [/([^/]+)\.ko/.exec(path)?.[1] ?? "", path]));
}

/** Debian compresses modules in some releases. */
async function readModule(path: string): Promise<Uint8Array> {
  if (path.endsWith(".ko")) return await Deno.readFile(path);
  const { success, stdout, stderr } = await new Deno.Command("xz", { args: ["-dc", path] })
    .output();
  if (!success) throw new Error(`${path}: ${new TextDecoder().decode(stderr)}`);
  return stdout;
}

async function contents(kernel: string): Promise<CpioEntry[]> {
  const directories = ["bin", "dev", "etc", "lib", "proc", "sys", "tmp", "www", "www/cgi-bin"];
  const busybox = await Deno.realPath(await busyboxPath());
  const { stdout } = await new Deno.Command(busybox, { args: ["--list"] }).output();
  const applets = new TextDecoder().decode(stdout).split("\n").filter((name) => name !== "");
  const script = (path: string, text: string): CpioEntry => {
    return { path, kind: "file", data: encoder.encode(text) };
  };
  return [
    ...directories.map((path): CpioEntry => ({ path, kind: "directory" })),
    { path: "dev/console", kind: "device", major: 5, minor: 1 },
    { path: "bin/busybox", kind: "file", data: await Deno.readFile(busybox) },
    ...applets.filter((name) => name !== "busybox").map((name): CpioEntry => {
      return { path: `bin/${name}`, kind: "symlink", target: "busybox" };
    }),
    ...await Promise.all(MODULES.map(async (name): Promise<CpioEntry> => {
      const data = await Deno.readFile(`${kernel}/${name}.ko`);
      return { path: `lib/${name}.ko`, kind: "file", data };
    })),
    script("init", INIT),
    script("etc/udhcpc", UDHCPC_SCRIPT),
    script("www/cgi-bin/client", CGI_CLIENT),
  ];
}

async function busyboxPath(): Promise<string> {
  for (const directory of ["/bin", "/usr/bin", "/usr/local/bin"]) {
    if (await exists(`${directory}/busybox`)) return `${directory}/busybox`;
  }
  throw new Error("busybox is not installed: install the package busybox-static");
}

async function exists(path: string): Promise<boolean> {
  return await Deno.lstat(path).then(() => true, () => false);
}
