/**
 * The state of a throwaway host as sorted lines of text, so that two of them can be compared.
 */

import { type Machine, OVERLAYS } from "./machine.ts";

/** Forwarding, and what the kernel derives from it: it stays where others rely on it by then. */
export const FORWARDING: readonly RegExp[] = [
  /^sysctl ipv4\/ip_forward /,
  /^sysctl ipv[46]\/conf\/[^/]+\/forwarding /,
  /^sysctl ipv4\/conf\/(all|default)\/accept_redirects /,
];

/**
 * What stays on a host after the last removal, on purpose: the conflist, host-local's counter with its
 * lock, until the reboot the ports and addresses whose connections may still be tracked. Directories hold no state of their own. The directory of namespaces stays mounted, as
 * `ip netns` leaves it.
 */
const KEPT: readonly RegExp[] = [
  /^file \/etc\/cni\/net\.d\/10-ignite\.conflist /,
  /^file \/var\/lib\/cni\/networks\/[^/]+\/(last_reserved_ip\.\d+|lock) /,
  /^(directory|deleted) \/(etc\/cni|var\/lib\/cni|var\/lib\/tapkit|run\/tapkit)(\/| |$)/,
  /^file \/run\/tapkit\/gone-\d+\.jsonl /,
  /^mount \/run\/netns /,
  // mount(8), and reboot.ts
  /^directory \/run\/mount /,
  /^mount \/proc\/sys\/kernel\/random\/boot_id /,
];

/** What a comparison leaves out. */
export interface SnapshotOptions {
  /** Lines that may differ, beyond those that stay on every host. */
  readonly except?: readonly RegExp[];
  /** Whether also what stays on purpose must be the same. */
  readonly strict?: boolean;
  /** Whether some of it may be gone. */
  readonly less?: boolean;
}

/** Asserts that two snapshots are the same; the error lists what came and what went. */
export function assertSameSnapshot(
  before: string,
  after: string,
  { except = [], strict = false, less = false }: SnapshotOptions = {},
): void {
  const allowed = strict ? except : [...KEPT, ...except];
  const matters = (line: string) => line !== "" && !allowed.some((pattern) => pattern.test(line));
  const [old, now] = [before, after].map((text) => text.split("\n").filter(matters));
  const differences = [
    ...(less ? [] : minus(old!, now!)).map((line) => `- ${line}`),
    ...minus(now!, old!).map((line) => `+ ${line}`),
  ];
  if (differences.length > 0) {
    throw new Error(`the host is not as it was (- before, + after):\n${differences.join("\n")}`);
  }
}

/** Lines of `a` beyond those in `b`, counting repeated ones. */
function minus(a: readonly string[], b: readonly string[]): string[] {
  const counts = new Map<string, number>();
  for (const line of b) counts.set(line, (counts.get(line) ?? 0) + 1);
  return a.filter((line) => {
    const left = counts.get(line) ?? 0;
    counts.set(line, left - 1);
    return left <= 0;
  });
}

const MARK = "@@";

/** Sysctls of a network namespace that a program for VMs might turn. */
const SYSCTLS = [
  "ipv4/ip_forward",
  "ipv4/conf/*/{forwarding,route_localnet,rp_filter,accept_local,accept_redirects,proxy_arp}",
  "ipv4/conf/*/{arp_announce,arp_ignore,arp_notify,send_redirects}",
  "ipv6/conf/*/{forwarding,disable_ipv6,accept_ra,accept_dad,addr_gen_mode,proxy_ndp}",
  "bridge/*",
].join(" ");

/** Prints what is to be known of the network namespace it runs in. */
const INSPECT = `
part() { echo "${MARK} $1"; shift; "$@" 2>/dev/null || :; }
part link ip -j -d address
part route ip -j -4 route show table all
part route ip -j -6 route show table all
part rule ip -j -4 rule
part rule ip -j -6 rule
part qdisc tc -j qdisc show
ruleset=$(nft -s list ruleset 2>/dev/null) || :
part nft echo "$ruleset"
# Each of these programs has something to say of tables of its own only.
for family in ip ip6; do
  [[ $ruleset != *"table $family "* ]] || part \${family}tables-nft-save \${family}tables-nft-save
  ! { read -r _ </proc/net/\${family}_tables_names; } 2>/dev/null ||
    part \${family}tables-legacy-save \${family}tables-legacy-save
done
shopt -s nullglob
cd /proc/sys/net && part sysctl grep -H . ${SYSCTLS}
`;

/** The machine's own parts, then one of {@linkcode INSPECT} for each of its namespaces. */
const SNAPSHOT = `
{
inspect() { ${INSPECT} }
echo "${MARK} mount"
while read -r _ _ _ _ target _; do echo "$target"; done </proc/self/mountinfo | sort -u
echo "${MARK} process"
for directory in /proc/[0-9]*; do
  pid=\${directory#/proc/}
  [ "$pid" = 1 ] || [ "$pid" = $$ ] || [ ! -r $directory/stat ] && continue
  read -r stat <$directory/stat 2>/dev/null || continue
  case "\${stat##*) }" in Z*) continue ;; esac
  { tr '\\0' ' ' <$directory/cmdline; echo; } 2>/dev/null || :
done
inspect
for name in $(ls /run/netns); do
  echo "${MARK}${MARK} $name"
  nsenter --net=/run/netns/$name bash -c "$INSPECT" 2>/dev/null || echo "${MARK} broken"
done
}
`;

/** Takes a snapshot of a machine. */
export async function takeSnapshot(machine: Machine): Promise<string> {
  const [printed, files] = await Promise.all([
    machine.sh(SNAPSHOT, { env: { INSPECT } }),
    listFiles(machine),
  ]);
  const lines = [...files];
  let prefix = "";
  let part = "";
  let body: string[] = [];
  const flush = () => {
    if (part !== "") lines.push(...describePart(part, body.join("\n")).map((l) => prefix + l));
    body = [];
  };
  for (const line of printed.split("\n")) {
    const mark = /^(@@|@@@@) (.*)$/.exec(line);
    if (mark === null) {
      body.push(line);
      continue;
    }
    flush();
    if (mark[1] === MARK) part = mark[2]!;
    else {
      part = "";
      lines.push(`netns ${mark[2]}`);
      prefix = `netns ${mark[2]}: `;
    }
  }
  flush();
  return lines.sort().join("\n") + "\n";
}

function describePart(part: string, body: string): string[] {
  switch (part) {
    case "link":
    case "route":
    case "rule":
    case "qdisc":
      return describeJson(part, body);
    case "nft":
      return describeNft(body);
    case "sysctl":
      return body.split("\n").filter((line) => line !== "")
        .map((line) => `sysctl ${line.replace(":", " ")}`);
    default:
      return body.split("\n").map((line) => line.trim())
        .filter((line) => line !== "" && !line.startsWith("#"))
        .map((line) => `${part} ${line.replace(/\[\d+:\d+\]/g, "").trim()}${suffix(part)}`);
  }
}

/** A mount line ends in a space, so that a pattern can tell a path from those below it. */
function suffix(part: string): string {
  return part === "mount" ? " " : "";
}

// deno-lint-ignore no-explicit-any
type Json = any;

function describeJson(part: string, body: string): string[] {
  const items: Json[] = body.trim() === "" ? [] : JSON.parse(body);
  if (part === "link") {
    return items.flatMap((link) => [
      describeLink(link),
      ...(link.addr_info as Json[] ?? []).map((a) =>
        `address ${link.ifname} ${a.local}/${a.prefixlen} scope ${a.scope}`
      ),
    ]);
  }
  const drop = new Set(["expires", "flags", "handle", "refcnt", "age"]);
  return items.map((item) => {
    const fields = Object.entries(item as Record<string, unknown>)
      .filter(([key]) => !drop.has(key))
      .map(([key, value]) => `${key} ${typeof value === "string" ? value : JSON.stringify(value)}`);
    return `${part} ${fields.join(" ")}`;
  });
}

function describeLink(link: Json): string {
  const { ifname, mtu, address, master, ifalias, promiscuity, linkinfo, flags, group } = link;
  return [
    `link ${ifname} kind ${linkinfo?.info_kind ?? "-"} mac ${address ?? "-"} mtu ${mtu}`,
    (flags as string[]).filter((flag) => !["LOWER_UP", "NO-CARRIER"].includes(flag)).join(","),
    ...(master === undefined ? [] : [`master ${master}`]),
    ...(ifalias === undefined ? [] : [`alias ${ifalias}`]),
    ...(promiscuity === 0 ? [] : [`promiscuity ${promiscuity}`]),
    ...(group === "default" ? [] : [`group ${group}`]),
  ].join(" ");
}

/** Each line with the blocks around it, so that the order of tables does not matter. */
function describeNft(body: string): string[] {
  const blocks: string[] = [];
  const lines: string[] = [];
  for (const line of body.split("\n").map((text) => text.trim())) {
    if (line === "" || line.startsWith("#")) continue;
    if (line === "}") blocks.pop();
    else if (/^(table|chain|map|set|ct|counter|limit|flowtable)\b.*\{$/.test(line)) {
      blocks.push(line.replace(/\s*\{$/, ""));
      lines.push(`nft ${blocks.join(" / ")}`);
    } else lines.push(`nft ${blocks.join(" / ")} / ${line}`);
  }
  return lines;
}

async function listFiles(machine: Machine): Promise<string[]> {
  const lines: string[] = [];
  for (const overlay of OVERLAYS) {
    await walk(machine.upperPath(overlay), `/${overlay}`, lines, () => false);
  }
  await walk(machine.path("/run"), "/run", lines, (path) => path.startsWith("/run/netns/"));
  return lines;
}

async function walk(
  directory: string,
  shown: string,
  lines: string[],
  skip: (shown: string) => boolean,
): Promise<void> {
  const entries = await Array.fromAsync(Deno.readDir(directory)).catch(() => []);
  for (const entry of entries) {
    const [path, name] = [`${directory}/${entry.name}`, `${shown}/${entry.name}`];
    if (skip(name)) continue;
    const info = await Deno.lstat(path).catch(() => undefined);
    if (info === undefined) continue;
    const mode = modeOf(info);
    if (info.isDirectory) {
      if (!await isSame(name, info, mode)) lines.push(`directory ${name} mode ${mode}`);
      await walk(path, name, lines, skip);
    } else if (await isSame(name, info, mode, path)) continue;
    else if (info.isSymlink) {
      // It may go just now, as any file.
      const target = await Deno.readLink(path).catch(() => undefined);
      if (target !== undefined) lines.push(`symlink ${name} to ${target}`);
    } else if (info.isFile) lines.push(`file ${name} mode ${mode} ${await digest(path)}`);
    // An overlay marks a file that was deleted by a character device of number 0.
    else if (info.isCharDevice) lines.push(`deleted ${name}`);
    else lines.push(`${info.isSocket ? "socket" : "special"} ${name}`);
  }
}

/** Whether an overlay's copy equals what the real machine has there: nothing was changed. */
async function isSame(
  real: string,
  info: Deno.FileInfo,
  mode: string,
  copy?: string,
): Promise<boolean> {
  const original = await Deno.lstat(real).catch(() => undefined);
  if (original === undefined || real.startsWith("/run/")) return false;
  if (modeOf(original) !== mode || original.isDirectory !== info.isDirectory) return false;
  if (copy === undefined) return true;
  return info.isFile && original.isFile && await digest(copy) === await digest(real);
}

function modeOf(info: Deno.FileInfo): string {
  return ((info.mode ?? 0) & 0o7777).toString(8).padStart(4, "0");
}

async function digest(path: string): Promise<string> {
  const bytes = await Deno.readFile(path).catch(() => undefined);
  if (bytes === undefined) return "unreadable";
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return `${bytes.length} bytes, sha256 ${hash.slice(0, 8).toHex()}`;
}
