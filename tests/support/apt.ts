/**
 * Debian's packages, fetched with apt. What is done is said on standard error; nothing is installed on
 * this machine.
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
async function withFreshLists(lists: string, action: (more: string[]) => Promise<void>) {
  try {
    await action([]);
  } catch {
    console.error("apt-get update, into a directory of the tests");
    await Deno.mkdir(`${lists}/partial`, { recursive: true });
    const more = ["-o", `Dir::State::Lists=${lists}`];
    await aptGet(["update", ...more]);
    await action(more);
  }
}

/**
 * Fetches packages, and what they depend on and is not installed, into a directory.
 *
 * @returns the arguments by which apt-get installs them from there, without a network
 */
export async function fetchPackages(
  names: readonly string[],
  directory: string,
): Promise<string[]> {
  await Deno.mkdir(`${directory}/archives/partial`, { recursive: true });
  const install = ["install", "-y", "--no-install-recommends", "-o", `Dir::Cache=${directory}`];
  let found: string[] = [];
  console.error(`apt-get install --download-only --no-install-recommends ${names.join(" ")}`);
  await withFreshLists(`${directory}/lists`, async (more) => {
    found = [...install, ...more];
    await aptGet([...found, "--download-only", ...names]);
  });
  return ["-q", "-o", "DPkg::Options::=--force-unsafe-io", ...found, "--no-download", ...names];
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
  await withFreshLists(`${directory}/lists`, async (more) => {
    const { stdout } = await new Deno.Command("apt-cache", { args: [...more, "depends", name] })
      .output();
    const match = /^\s*Depends: ([^\s<>]+)$/m.exec(new TextDecoder().decode(stdout));
    if (match === null) throw new Error(`apt knows no package ${name}, or it depends on nothing`);
    dependency = match[1]!;
    console.error(`apt-get download ${dependency}`);
    await aptGet([...more, "download", dependency], directory);
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
