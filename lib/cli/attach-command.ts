/**
 * attach-vm's command line: its table, its rules, and the requests that it stands for.
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

const NETWORK_PLUGINS = ["cni", "docker-bridge"] as const;

/** The command line of attach-vm. */
export const ATTACH_VM = {
  name: "attach-vm",
  summary: "attach virtual machines to CNI networks, each with a TAP device of its own",
  usage: [
    "NAME… [options] [-- VMM ARG…]",
    "--from FILE|-",
    "NAME… --check | --remove | --list [--output FORMAT]",
    "--check | --remove --all | --list",
    "--restore | --gc [--exclusive]",
  ],
  words: {
    metavar: "NAME",
    help: "1–63 characters of a-z A-Z 0-9 . _ -, beginning with a letter or digit",
  },
  rest: {
    metavar: "VMM ARG…",
    help:
      "run the VMM in the VM's namespace, and remove the attachment when it ends; {tap} {mac} " +
      "{ip} {gateway} {netmask} {mtu} {netns} {name} {cmdline} in its arguments are replaced",
  },
  options: [
    {
      name: "ports",
      alias: ["-p", "--publish", "--port"],
      metavar: "HOST:VM[/PROTO]",
      repeat: true,
      help: "publish a port: 8080:80, 8080:80/udp, 127.0.0.1:8080:80, [2001:db8::1]:8080:80, " +
        "9000-9009:9000-9009, or 0:80 for a free host port; none removes them",
    },
    { name: "ip", metavar: "ADDR[/LENGTH]", help: "ask the network for this address" },
    { name: "mac", metavar: "ADDR", help: "give the VM this MAC address" },
    {
      name: "netns",
      alias: ["--namespace"],
      metavar: "PATH",
      help: "use this network namespace, which is never deleted",
      default: "/run/netns/tapkit-NAME, which is created",
    },
    {
      name: "bandwidth",
      metavar: "RATE",
      help: "limit each interface in both directions, to 100mbit for example; needs the " +
        "bandwidth plugin in the network",
    },
    {
      name: "capability",
      metavar: "NAME=JSON",
      repeat: true,
      help: "pass the argument of a capability to the CNI plugins that declare it: " +
        `aliases='["web"]'`,
    },
    {
      name: "cni-arg",
      metavar: "KEY=VALUE",
      repeat: true,
      help: "pass this to the CNI plugins in CNI_ARGS: K8S_POD_NAME=web",
    },
    { name: "mtu", metavar: "BYTES", help: "give the VM's interfaces this MTU" },
    {
      name: "tap-owner",
      metavar: "USER[:GROUP]",
      help: "let this user open the TAP device without being root",
    },
    {
      name: "network",
      alias: ["--net"],
      metavar: "NET",
      repeat: true,
      help: "put eth0, eth1, … on these CNI networks",
      default: "the first one in the CNI directory; if there is none, the default network",
    },
    {
      name: "network-plugin",
      metavar: "PLUGIN",
      choices: NETWORK_PLUGINS,
      help: "what makes the network: cni; docker-bridge is not available yet",
      default: "$TAPKIT_NETWORK_PLUGIN, then cni",
    },
    {
      name: "mode",
      metavar: "MODE",
      choices: ["auto", "tc-redirect", "dhcp-bridge"],
      help:
        "how frames pass between the TAP and eth0: tc-redirect, which leaves eth0 its address; " +
        "dhcp-bridge, with a bridge; or auto, the first one that the kernel supports",
      default: "auto",
    },
    {
      name: "isolated",
      help:
        "separate the guest from the other VMs and containers of its network; it still reaches " +
        "the host and other networks",
    },
    { name: "no-isolated", help: "end --isolated (default)" },
    {
      name: "deny-egress",
      metavar: "CIDR",
      repeat: true,
      help: "drop the guest's new connections to this prefix, 169.254.169.254 for example; " +
        "addresses of the host count; none removes all prefixes, and exceptions",
    },
    {
      name: "allow-egress",
      metavar: "CIDR",
      repeat: true,
      help: "an exception to --deny-egress; the longest prefix decides; none removes them",
    },
    {
      name: "reachable-from",
      metavar: "CIDR",
      repeat: true,
      help: "for a LAN with a route to the guests: accept connections from this prefix to the " +
        "guest's own address, and do not masquerade connections to it; none removes them",
    },
    {
      name: "max-connections",
      metavar: "N",
      help:
        "limit the tracked connections that the guest opened, and those that were opened to it; " +
        "none for no limit, default for the default",
      default: "a quarter of nf_conntrack_max",
    },
    {
      name: "new-connections",
      metavar: "RATE",
      help: "limit the connections that the guest opens in a second, to 100/s for example, with " +
        "bursts of 16 seconds' worth; none or default",
      default: "nf_conntrack_max / 512",
    },
    {
      name: "no-antispoof",
      help: "let the guest send from other MACs and addresses",
    },
    { name: "antispoof", help: "let the guest send from its own MAC and addresses only (default)" },
    {
      name: "link-local",
      metavar: "ADDR",
      help: "the link-local IPv6 address of a guest that does not make it from its MAC, such as " +
        "Windows; any if it is not known",
      default: "eui64",
    },
    {
      name: "plugins",
      metavar: "HOW",
      choices: ["auto", "builtin", "exec"],
      help: "exec runs all CNI plugins from disk, builtin none; auto uses built-in ones for the " +
        "default network, and for plugins that are missing on disk",
      default: "auto",
    },
    {
      name: "firewall",
      metavar: "BACKEND",
      choices: ["nftables", "iptables"],
      help: "what to make rules with",
      default: "nftables if the kernel has it, otherwise iptables",
    },
    {
      name: "open-firewall",
      help: "open published ports to other machines under ufw and firewalld",
    },
    { name: "no-open-firewall", help: "leave published ports to ufw and firewalld (default)" },
    {
      name: "from",
      alias: ["-f", "--file"],
      metavar: "FILE|-",
      help: "attach one VM per line of JSON, with the names of these flags as keys: " +
        '{"name":"web","ports":["8080:80"]}',
    },
    {
      name: "output",
      alias: ["-o", "--format"],
      metavar: "FORMAT",
      choices: ["json", "env", "cmdline", "dracut", "qemu"],
      help: "print the record as json, env (shell assignments), cmdline (the kernel's ip=), " +
        "dracut (arguments of its initramfs) or qemu (arguments)",
      default: "json",
    },
    {
      name: "user",
      metavar: "USER[:GROUP]",
      help: "with -- VMM, run it as this user, who also owns the TAP device unless --tap-owner " +
        "says otherwise",
    },
    { name: "keep", help: "with -- VMM, leave the VM attached when it ends" },
    { name: "record-file", metavar: "FILE", help: "with -- VMM, write the record to this file" },
    {
      name: "list",
      alias: ["-l", "--ls", "--ps", "--show", "--inspect"],
      help: "print the records of the VMs, or of all VMs",
    },
    {
      name: "restore",
      help: "after a reboot, bring back every recorded VM with its addresses, MACs and ports",
    },
    {
      name: "gc",
      help: "remove attachments of tapkit whose namespace is gone, or that are incomplete",
    },
    {
      name: "exclusive",
      help: "with --gc, call the plugins' GC too; only for hosts on which nothing else attaches",
    },
    {
      name: "check",
      alias: ["--status"],
      help: "compare the records of the VMs, or of all VMs, with the kernel; change nothing",
    },
    {
      name: "remove",
      alias: ["--rm", "--delete", "--del"],
      help: "remove the VMs from their networks",
    },
    { name: "all", alias: ["-a"], help: "with --remove, every attached VM" },
    { name: "force", help: "with --remove, remove VMs even if attach-vm runs their VMM" },
    ...HOST_OPTIONS,
  ],
  examples: [
    {
      does: "attach a VM, and publish its port 80 as the host's port 8080",
      command: "attach-vm web --ports 8080:80",
    },
    {
      does: "run QEMU for it",
      command: "nsenter --net=/run/netns/tapkit-web qemu-system-x86_64 " +
        "$(attach-vm web --list --output qemu) …",
    },
    {
      does: "attach a VM, run its VMM, and remove the VM when the VMM ends",
      command: "attach-vm web --ports 8080:80 -- ./start-vm --tap {tap} --mac {mac}",
    },
    {
      does: "deny connections to cloud metadata and to other VMs",
      command: "attach-vm web --deny-egress 169.254.169.254 --isolated",
    },
    { does: "attach many VMs", command: "attach-vm --from vms.jsonl" },
    { does: "remove a VM", command: "attach-vm web --remove" },
  ],
  exitCodes: [
    ["3", "--check found a difference"],
    ["125–127", "with -- VMM: it was not started, cannot be executed, was not found"],
  ],
} as const satisfies Command;

type AttachFlags = Parsed<typeof ATTACH_VM>["flags"];

/** The flags about an attachment: only attaching accepts them, and they are the keys of `--from`. */
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

/** The library's options that some verbs take. */
export function flagOptions({ exclusive, force, keep, user, ...flags }: AttachFlags) {
  return { exclusive, force, keep, user, recordFile: flags["record-file"] };
}

/** Checks the flags, and reads `--from`. Throws {@linkcode InputError}. */
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
  throw new InputError(`${variable} is ${JSON.stringify(plugin)}, which is not a network plugin`, {
    mend: `set it to ${NETWORK_PLUGINS[0]}, or unset it`,
  });
}

/** Refuses network plugins that this version does not have. */
function refusePlugin(plugin: string | undefined): void {
  if (plugin === undefined || plugin === "cni") return;
  throw new InputError(`this version does not have the network plugin ${plugin}`, {
    mend: "use cni; it does not affect Docker",
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
