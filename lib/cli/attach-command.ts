/**
 * attach-vm's command line: its table, which flags go together, and the requests it stands for.
 *
 * @module
 */

import { InputError } from "../errors.ts";
import type { AttachRequest, OutputFormat } from "../vm/types.ts";
import { apart, type Command, type Parsed, wholeNumber } from "./args.ts";
import { type AttachVerb, refuseForSeveral, refuseUnlessPlain, verbOf } from "./attach-rules.ts";
import { listOrNone, pairs } from "./flag-values.ts";
import { HOST_OPTIONS, withoutUndefined } from "./main.ts";
import { refuseVerbs } from "./verbs.ts";

/** A command line of attach-vm that makes sense. */
export interface AttachCommand {
  readonly verb: AttachVerb;
  /** One per VM; for `check`, `remove` and `list` they hold the name alone. */
  readonly requests: readonly AttachRequest[];
  /** Whether it is for every attached VM instead of those in `requests`. */
  readonly all: boolean;
  readonly output: OutputFormat;
  /** The VMM's program and arguments, for `run`. */
  readonly vmm: readonly string[];
}

const NETWORK_PLUGINS = ["cni", "docker-bridge"] as const;

/** The command line of attach-vm. */
export const ATTACH_VM = {
  name: "attach-vm",
  summary: "put virtual machines on CNI networks, each behind a TAP device of its own",
  usage: [
    "NAME… [options] [-- VMM ARG…]",
    "--from FILE|-",
    "NAME… --check | --remove | --list [--output FORMAT]",
    "--check | --remove --all | --list",
    "--restore | --gc [--exclusive]",
  ],
  words: { metavar: "NAME", help: "1–63 of a-z A-Z 0-9 . _ -, beginning with a letter or digit" },
  rest: {
    metavar: "VMM ARG…",
    help: "run the VMM inside the VM's namespace and remove the attachment when it ends; {tap} " +
      "{mac} {ip} {gateway} {netmask} {mtu} {netns} {name} {cmdline} in its arguments are replaced",
  },
  options: [
    {
      name: "ports",
      alias: ["-p", "--publish", "--port"],
      metavar: "HOST:VM[/PROTO]",
      repeat: true,
      help: "publish a port: 8080:80, 8080:80/udp, 127.0.0.1:8080:80, [2001:db8::1]:8080:80, " +
        "9000-9009:9000-9009, or 0:80 for a host port chosen here; none clears them",
    },
    { name: "ip", metavar: "ADDR[/LENGTH]", help: "ask the network for this address" },
    { name: "mac", metavar: "ADDR", help: "give the VM this MAC address" },
    {
      name: "netns",
      alias: ["--namespace"],
      metavar: "PATH",
      help: "use this network namespace, which is never deleted",
      default: "/run/netns/tapkit-NAME, made here",
    },
    {
      name: "bandwidth",
      metavar: "RATE",
      help:
        "limit each interface to 100mbit, say, either way; the network needs the bandwidth plugin",
    },
    {
      name: "capability",
      metavar: "NAME=JSON",
      repeat: true,
      help: "give the CNI plugins that declare this capability its argument: " +
        `aliases='["web"]'`,
    },
    {
      name: "cni-arg",
      metavar: "KEY=VALUE",
      repeat: true,
      help: "give the CNI plugins this in CNI_ARGS: K8S_POD_NAME=web",
    },
    { name: "mtu", metavar: "BYTES", help: "give the VM's interfaces this MTU" },
    {
      name: "tap-owner",
      metavar: "USER[:GROUP]",
      help: "who may open the TAP device without being root",
    },
    {
      name: "network",
      alias: ["--net"],
      metavar: "NET",
      repeat: true,
      help: "put eth0, eth1, … on these CNI networks",
      default: "the first configuration of the CNI directory; the default network, if it is empty",
    },
    {
      name: "network-plugin",
      metavar: "PLUGIN",
      choices: NETWORK_PLUGINS,
      help: "who makes the network: cni; docker-bridge is not there yet",
      default: "$TAPKIT_NETWORK_PLUGIN, then cni",
    },
    {
      name: "mode",
      metavar: "MODE",
      choices: ["auto", "tc-redirect", "dhcp-bridge"],
      help:
        "how frames get between the TAP and eth0: tc-redirect, which leaves eth0 its address; " +
        "dhcp-bridge, by a bridge; or auto, the first that the kernel has the means for",
      default: "auto",
    },
    {
      name: "isolated",
      help: "let nothing pass between the guest and the other VMs and containers of its network; " +
        "the host, and what is routed, stay",
    },
    { name: "no-isolated", help: "let it pass again (default)" },
    {
      name: "deny-egress",
      metavar: "CIDR",
      repeat: true,
      help: "drop the guest's new connections to there by way of the host, whose own addresses " +
        "count: 169.254.169.254, where clouds keep secrets; none clears them and exceptions",
    },
    {
      name: "allow-egress",
      metavar: "CIDR",
      repeat: true,
      help: "an exception of --deny-egress; the longest prefix decides; none clears them",
    },
    {
      name: "reachable-from",
      metavar: "CIDR",
      repeat: true,
      help: "let connections from there in to the guest's own address, and leave its own towards " +
        "there unmasqueraded: a LAN that has a route to the guests; none clears them",
    },
    {
      name: "max-connections",
      metavar: "N",
      help:
        "how many connections of the guest's own the host tracks, and as many that others open " +
        "to it; none for no limit, default for the default again",
      default: "a quarter of nf_conntrack_max",
    },
    {
      name: "new-connections",
      metavar: "RATE",
      help:
        "how many connections the guest may open a second, 100/s say, 16 seconds' worth of them " +
        "at once; none or default",
      default: "nf_conntrack_max / 512",
    },
    {
      name: "no-antispoof",
      help: "let the guest send in the name of other MACs and addresses",
    },
    { name: "antispoof", help: "hold the guest to its own MAC and addresses (default)" },
    {
      name: "link-local",
      metavar: "ADDR",
      help: "the link-local IPv6 address of a guest that does not make it of its MAC, as Windows " +
        "and stable-privacy ones do; any where it is not known",
      default: "eui64",
    },
    {
      name: "plugins",
      metavar: "HOW",
      choices: ["auto", "builtin", "exec"],
      help:
        "exec runs every CNI plugin from disk, builtin none; auto runs those that are configured, " +
        "but not for the default network, nor where one is missing that is built in",
      default: "auto",
    },
    {
      name: "firewall",
      metavar: "BACKEND",
      choices: ["nftables", "iptables"],
      help: "what rules are made by",
      default: "nftables where the kernel has it, else iptables",
    },
    {
      name: "open-firewall",
      help: "open published ports also where ufw or firewalld denies what is not allowed; " +
        "no-open-firewall closes them again",
    },
    { name: "no-open-firewall", help: "leave them to ufw and firewalld (default)" },
    {
      name: "from",
      alias: ["-f", "--file"],
      metavar: "FILE|-",
      help: "attach one VM per line of JSON, with these flags' names as keys: " +
        '{"name":"web","ports":["8080:80"]}',
    },
    {
      name: "output",
      alias: ["-o", "--format"],
      metavar: "FORMAT",
      choices: ["json", "env", "cmdline", "dracut", "qemu"],
      help: "print the record as json, env (shell assignments), cmdline (the kernel's ip=), " +
        "dracut (its initramfs's arguments) or qemu (arguments)",
      default: "json",
    },
    {
      name: "user",
      metavar: "USER[:GROUP]",
      help:
        "with -- VMM, run it as that user, who may open the TAP device unless --tap-owner says " +
        "otherwise",
    },
    { name: "keep", help: "with -- VMM, leave the VM attached when it ends" },
    { name: "record-file", metavar: "FILE", help: "with -- VMM, write the record there" },
    {
      name: "list",
      alias: ["-l", "--ls", "--ps", "--show", "--inspect"],
      help: "print the records of the VMs, of all where none is named",
    },
    {
      name: "restore",
      help: "after a reboot: bring every recorded VM back with its addresses, MACs and ports",
    },
    {
      name: "gc",
      help: "remove attachments whose namespace is gone or that were left half made; no one else's",
    },
    {
      name: "exclusive",
      help:
        "with --gc, on a host where only tapkit attaches: the plugins collect what they have too",
    },
    {
      name: "check",
      alias: ["--status"],
      help: "compare records and kernel, of all VMs where none is named; change nothing",
    },
    {
      name: "remove",
      alias: ["--rm", "--delete", "--del"],
      help: "take the VMs off their networks",
    },
    { name: "all", alias: ["-a"], help: "with --remove: every attached VM" },
    { name: "force", help: "with --remove, also from under a VMM that -- VMM runs" },
    ...HOST_OPTIONS,
  ],
  examples: [
    {
      does: "a VM on the default network, its port 80 published as the host's 8080",
      command: "attach-vm web --ports 8080:80",
    },
    {
      does: "QEMU for it",
      command: "nsenter --net=/run/netns/tapkit-web qemu-system-x86_64 " +
        "$(attach-vm web --list --output qemu) …",
    },
    {
      does: "attach, run, remove when the VMM ends",
      command: "attach-vm web --ports 8080:80 -- ./start-vm --tap {tap} --mac {mac}",
    },
    {
      does: "no connections to the cloud's metadata, nor to other VMs",
      command: "attach-vm web --deny-egress 169.254.169.254 --isolated",
    },
    { does: "many at once", command: "attach-vm --from vms.jsonl" },
    { does: "take it away", command: "attach-vm web --remove" },
  ],
  exitCodes: [
    ["3", "--check found a difference"],
    ["125–127", "with -- VMM: it was not started, cannot be executed, was not found"],
  ],
} as const satisfies Command;

type AttachFlags = Parsed<typeof ATTACH_VM>["flags"];

/** The flags that shape an attachment, and so go with no other verb, and are the keys of `--from`. */
const SHAPING = [
  "ports",
  "ip",
  "mac",
  "netns",
  "mtu",
  "bandwidth",
  "capability",
  "cni-arg",
  "tap-owner",
  "network-plugin",
  "network",
  "mode",
  "no-antispoof",
  "antispoof",
  "link-local",
  "isolated",
  "no-isolated",
  "deny-egress",
  "allow-egress",
  "reachable-from",
  "max-connections",
  "new-connections",
  "plugins",
  "firewall",
  "open-firewall",
  "no-open-firewall",
] as const satisfies readonly (keyof AttachFlags)[];

type ShapingFlags = Pick<AttachFlags, (typeof SHAPING)[number]>;

/** The library's options that one verb or another takes. */
export function flagOptions({ exclusive, force, keep, user, ...flags }: AttachFlags) {
  return { exclusive, force, keep, user, recordFile: flags["record-file"] };
}

/** Checks which flags go together and reads `--from`. Throws {@linkcode InputError}. */
export async function readAttachCommand(parsed: Parsed<typeof ATTACH_VM>): Promise<AttachCommand> {
  const { flags, words, rest } = parsed;
  const verb = verbOf(flags, rest);
  const attaches = verb === "attach" || verb === "run";
  const output = flags.output ?? "json";
  refuseUnlessPlain(verb, flags, words, SHAPING);
  if (attaches) {
    refuseVerbs(words);
    if (flags["network-plugin"] === undefined) refusePlugin(pluginOfEnvironment());
  }
  const requests = flags.from === undefined
    ? words.map((name) => ({ name, ...shape(flags) }))
    : await readRequests(flags.from, shape(flags));
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
  return { verb, requests, all, output, vmm: rest ?? [] };
}

function shape(flags: ShapingFlags): Omit<AttachRequest, "name"> {
  refusePlugin(flags["network-plugin"]);
  return withoutUndefined({
    ports: listOrNone("ports", flags.ports),
    ip: flags.ip,
    mac: flags.mac,
    mtu: flags.mtu === undefined ? undefined : wholeNumber("--mtu", flags.mtu),
    netns: flags.netns,
    bandwidth: flags.bandwidth,
    capabilities: pairs("capability", flags.capability, (text): unknown => JSON.parse(text)),
    cniArgs: pairs("cni-arg", flags["cni-arg"], (text) => text),
    tapOwner: flags["tap-owner"],
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

function pluginOfEnvironment(): string | undefined {
  const variable = "TAPKIT_NETWORK_PLUGIN";
  const plugin = Deno.env.get(variable) || undefined;
  if (plugin === undefined || NETWORK_PLUGINS.some((name) => name === plugin)) return plugin;
  throw new InputError(`${variable} is ${JSON.stringify(plugin)}, which is no network plugin`, {
    mend: `set it to ${NETWORK_PLUGINS[0]}, or unset it`,
  });
}

/** Refuses what this version cannot make networks by. */
function refusePlugin(plugin: string | undefined): void {
  if (plugin === undefined || plugin === "cni") return;
  throw new InputError(`the network plugin ${plugin} is not offered by this version`, {
    mend: "use cni, beside which Docker goes on undisturbed",
  });
}

function limit(flag: string, text: string | undefined): number | "none" | "default" | undefined {
  if (text === undefined || text === "none" || text === "default") return text;
  return wholeNumber(flag, text);
}

/** True or false by two flags of opposite meaning; `undefined` without either. */
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
): Promise<AttachRequest[]> {
  const { readVmLines } = await import("./vm-lines.ts");
  const known: readonly string[] = SHAPING;
  const options = ATTACH_VM.options.filter(({ name }) => known.includes(name));
  return (await readVmLines(path, options)).map(({ where, name, flags }) => {
    try {
      refuseVerbs([name]);
      return { name, ...defaults, ...shape(flags) };
    } catch (error) {
      throw error instanceof InputError
        ? new InputError(`${where}: ${error.message}`, { mend: error.mend, cause: error })
        : error;
    }
  });
}
