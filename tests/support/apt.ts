/**
 * Debian's packages, fetched and installed with apt. What is done is said on standard error.
 */

/** Runs apt-get; its output is shown when it fails, as the error. */
async function aptGet(args: readonly string[], cwd?: string): Promise<void> {
  const { success, stdout, stderr } = await new Deno.Command("apt-get", {
    args: ["-q", "-o", "DPkg::Lock::Timeout=300", ...args],
    env: { DEBIAN_FRONTEND: "noninteractive", LC_ALL: "C.UTF-8" },
    stdin: "null",
    ...(cwd === undefined ? {} : { cwd }),
  }).output();
  if (success) return;
  const decoder = new TextDecoder();
  throw new Error(`apt-get ${args.join(" ")}: ${decoder.decode(stderr)}${decoder.decode(stdout)}`);
}

/** Package lists may be missing or older than what the mirrors hold: then they are fetched. */
async function withFreshLists(action: () => Promise<void>): Promise<void> {
  try {
    await action();
  } catch {
    console.error("apt-get update");
    await aptGet(["update"]);
    await action();
  }
}

/** Installs packages without what they merely recommend. */
export async function installPackages(names: readonly string[]): Promise<void> {
  console.error(`apt-get install --no-install-recommends ${names.join(" ")}`);
  await withFreshLists(() => aptGet(["install", "-y", "--no-install-recommends", ...names]));
}

/**
 * Downloads the package that another one depends on and unpacks it, without installing anything.
 *
 * @param name the package whose first dependency is wanted
 * @param directory where it is unpacked
 * @returns the name of the package that was unpacked
 */
export async function unpackDependency(name: string, directory: string): Promise<string> {
  let dependency = "";
  await withFreshLists(async () => {
    const { stdout } = await new Deno.Command("apt-cache", { args: ["depends", name] }).output();
    const match = /^\s*Depends: ([^\s<>]+)$/m.exec(new TextDecoder().decode(stdout));
    if (match === null) throw new Error(`apt knows no package ${name}, or it depends on nothing`);
    dependency = match[1]!;
    console.error(`apt-get download ${dependency}`);
    await aptGet(["download", dependency], directory);
  });
  const [archive] = [...Deno.readDirSync(directory)].map((entry) => entry.name)
    .filter((file) => file.endsWith(".deb"));
  if (archive === undefined) throw new Error(`apt-get download ${dependency} left no file`);
  const unpacked = await new Deno.Command("dpkg-deb", {
    args: ["-x", archive, "."],
    cwd: directory,
  }).output();
  if (!unpacked.success) throw new Error(new TextDecoder().decode(unpacked.stderr));
  return dependency;
}
