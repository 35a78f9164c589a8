/**
 * The real machine's own state before and after the tests: none of it may change.
 */

/** The variable by which a process is known to come from this run of the tests. */
export const RUN_VARIABLE = "TAPKIT_TEST_RUN";

const decoder = new TextDecoder();

/** Paths that tapkit uses on a host; tests use them on throwaway hosts only. */
const PATHS = ["/etc/cni", "/var/lib/cni", "/var/lib/tapkit", "/run/tapkit", "/run/netns"];

/** The machine's links, rules, firewall, mounts and files that a stray test would touch. */
export function ownMachine(): string[] {
  const links: { ifname: string }[] = JSON.parse(output("ip", "-j", "link") || "[]");
  return [
    ...links.map(({ ifname }) => `link ${ifname}`),
    ...lines("route", output("ip", "route", "show", "table", "all")),
    ...lines("rule", output("ip", "rule")),
    ...lines("nft", output("nft", "-s", "list", "ruleset")),
    ...lines("ip_forward", Deno.readTextFileSync("/proc/sys/net/ipv4/ip_forward")),
    ...lines("mount", Deno.readTextFileSync("/proc/self/mounts")),
    ...PATHS.flatMap((path) => files(path)),
  ];
}

/** What came and what went between two states. */
export function differences(before: readonly string[], after: readonly string[]): string[] {
  return [
    ...before.filter((line) => !after.includes(line)).map((line) => `- ${line}`),
    ...after.filter((line) => !before.includes(line)).map((line) => `+ ${line}`),
  ];
}

/** Processes, other than this one, that descend from a run of the tests: `PID COMMAND`. */
export function processesOf(run: string): string[] {
  const found: string[] = [];
  for (const { name } of Deno.readDirSync("/proc")) {
    if (!/^\d+$/.test(name) || Number(name) === Deno.pid) continue;
    try {
      const environment = Deno.readTextFileSync(`/proc/${name}/environ`);
      if (!environment.split("\0").includes(`${RUN_VARIABLE}=${run}`)) continue;
      const command = Deno.readTextFileSync(`/proc/${name}/cmdline`);
      if (command !== "") found.push(`${name} ${command.replaceAll("\0", " ").trim()}`);
    } catch {
      // It has just ended.
    }
  }
  return found;
}

function files(path: string): string[] {
  try {
    const { isDirectory } = Deno.lstatSync(path);
    const below = isDirectory
      ? [...Deno.readDirSync(path)].flatMap(({ name }) => files(`${path}/${name}`))
      : [];
    return [`path ${path}`, ...below];
  } catch {
    return [];
  }
}

function output(command: string, ...args: string[]): string {
  return decoder.decode(new Deno.Command(command, { args }).outputSync().stdout);
}

function lines(name: string, text: string): string[] {
  return text.split("\n").filter((line) => line.trim() !== "").map((line) => `${name} ${line}`);
}
