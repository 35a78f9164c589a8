/**
 * The requests that a command line of attach-vm stands for.
 *
 * @module
 */

import { InputError, locating } from "../errors.ts";
import type { AttachRequest, OutputFormat } from "../vm/types.ts";
import { apart, type Parsed, wholeNumber } from "./args.ts";
import { type AttachVerb, refuseForSeveral, refuseUnlessPlain, verbOf } from "./attach-rules.ts";
import { listOrNone, pairs } from "./flag-values.ts";
import {
  ATTACH_VM,
  type AttachFlags,
  type AttachTable,
  SHAPING,
  type ShapingFlags,
} from "./attach-table.ts";
import { type Cli, withoutUndefined } from "./cli.ts";
import { refuseVerbs } from "./verbs.ts";

export { ATTACH_VM } from "./attach-table.ts";

/** A valid command line of attach-vm. */
export interface AttachCommand {
  readonly verb: AttachVerb;
  /** One per VM; for `check`, `remove` and `list` only the name is set. */
  readonly requests: readonly AttachRequest[];
  /** Whether it is for every attached VM instead of those in `requests`. */
  readonly all: boolean;
  readonly output: OutputFormat;
  /** The VMM's program and arguments, for `run`. */
  readonly vmm: readonly string[];
}

/** The library's options that some verbs take. */
export function flagOptions({ exclusive, force, keep, user, ...flags }: AttachFlags) {
  return { exclusive, force, keep, user, recordFile: flags["record-file"] };
}

/** Who calls, of what reading a command line needs. */
export type Reader = Pick<Cli, "caller" | "path">;

/** Checks the flags, and reads `--from`. Throws {@linkcode InputError}. */
export async function readAttachCommand(
  parsed: Parsed<AttachTable>,
  cli: Reader,
  { asks }: AttachTable = ATTACH_VM,
): Promise<AttachCommand> {
  const { flags, words, rest } = parsed;
  const verb = verbOf(flags, rest);
  const attaches = verb === "attach" || verb === "run";
  const output = flags.output ?? "json";
  refuseUnlessPlain(verb, flags, words);
  if (attaches) refuseVerbs(words);
  const requests = flags.from === undefined
    ? words.map((name) => ({ ...asks, ...requestOf(flags, cli), name }))
    : await readRequests(flags.from, { ...asks, ...requestOf(flags, cli) }, cli);
  const all = requests.length === 0;
  const names = requests.map(({ name }) => name);
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice !== undefined) {
    throw new InputError(`VM ${JSON.stringify(twice)} is named twice`, { mend: "name it once" });
  }
  if (words.length > 1 || flags.from !== undefined) {
    await refuseForSeveral(flags, rest, requests);
  }
  if (output === "env" && requests.length !== 1) {
    throw new InputError("--output env is for one VM: the variables of several would mix", {
      mend: verb === "attach" ? "attach them one by one" : "name one with --list",
    });
  }
  if (output === "firecracker" && requests.some(({ queues = 1 }) => queues > 1)) {
    throw new InputError("Firecracker opens no TAP that has several queues", {
      mend: "leave out --queues",
    });
  }
  return { verb, requests, all, output, vmm: rest ?? [] };
}

function requestOf(flags: ShapingFlags, cli: Reader): Omit<AttachRequest, "name"> {
  return withoutUndefined({
    networkPlugin: flags["network-plugin"],
    image: flags.image,
    container: flags.container,
    ports: listOrNone("ports", flags.ports),
    ip: flags.ip,
    mac: flags.mac,
    mtu: flags.mtu === undefined ? undefined : wholeNumber("--mtu", flags.mtu),
    netns: flags.netns === undefined ? undefined : cli.path(flags.netns),
    bandwidth: flags.bandwidth,
    capabilities: pairs("capability", flags.capability, (text): unknown => JSON.parse(text)),
    cniArgs: pairs("cni-arg", flags["cni-arg"], (text) => text),
    tapOwner: flags["tap-owner"],
    queues: flags.queues === undefined ? undefined : wholeNumber("--queues", flags.queues),
    plugins: flags.plugins,
    mode: flags.mode,
    antispoof: eitherOf(flags, "antispoof", "no-antispoof"),
    linkLocal: flags["link-local"],
    firewall: flags.firewall,
    isolated: eitherOf(flags, "isolated", "no-isolated"),
    denyEgress: listOrNone("deny-egress", flags["deny-egress"]),
    allowEgress: listOrNone("allow-egress", flags["allow-egress"]),
    reachableFrom: listOrNone("reachable-from", flags["reachable-from"]),
    maxConnections: limit("--max-connections", flags["max-connections"]),
    newConnections: limit(
      "--new-connections",
      flags["new-connections"]?.replace(/\/s(ec(ond)?)?$/, ""),
    ),
    openFirewall: eitherOf(flags, "open-firewall", "no-open-firewall"),
    networks: flags.network.length === 0 ? undefined : flags.network,
  });
}

function limit(flag: string, text: string | undefined): number | "none" | "default" | undefined {
  if (text === undefined || text === "none" || text === "default") return text;
  return wholeNumber(flag, text);
}

/** The value of two opposite flags; `undefined` if neither is given. */
function eitherOf<Yes extends keyof ShapingFlags, No extends keyof ShapingFlags>(
  flags: ShapingFlags,
  yes: Yes,
  no: No,
): boolean | undefined {
  if (flags[yes] && flags[no]) throw apart([`--${yes}`, `--${no}`]);
  return flags[yes] ? true : flags[no] ? false : undefined;
}

async function readRequests(
  path: string,
  defaults: Omit<AttachRequest, "name">,
  cli: Reader,
): Promise<AttachRequest[]> {
  const { readVmLines } = await import("./vm-lines.ts");
  return (await readVmLines(path, SHAPING, cli)).map(({ where, name, flags }) =>
    locating(where, () => {
      refuseVerbs([name]);
      return { name, ...defaults, ...requestOf(flags, cli) };
    })
  );
}
