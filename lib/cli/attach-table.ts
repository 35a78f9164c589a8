/**
 * attach-vm's command line as a table.
 *
 * @module
 */

import type { AttachRequest } from "../vm/types.ts";
import type { Command, Flags, Option, Parsed } from "./args.ts";
import { HOST_OPTIONS } from "./cli.ts";

/** The flags about an attachment: only attaching accepts them, and they are the keys of `--from`. */
export const SHAPING = [
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
    name: "queues",
    metavar: "N",
    help: "let the VMM open so many queues of each TAP device, usually one for each processor of " +
      "the guest; not for Firecracker",
    default: "1",
  },
  {
    name: "network",
    alias: ["--net"],
    metavar: "NET",
    repeat: true,
    help: "put eth0, eth1, … on these CNI networks, or eth0 on this bridge network of Docker's",
    default: "the first one in the CNI directory; if there is none, the default network; " +
      "bridge with docker-bridge",
  },
  {
    name: "network-plugin",
    metavar: "PLUGIN",
    choices: ["cni", "docker-bridge"],
    help: "what makes the network of a new VM: cni, or docker-bridge, which is deprecated",
    default: "$TAPKIT_NETWORK_PLUGIN, then cni",
  },
  {
    name: "image",
    metavar: "IMAGE",
    help: "with docker-bridge, the image of the sandbox container; its program has to keep running",
    default: "an image that tapkit makes",
  },
  {
    name: "container",
    metavar: "ID",
    help: "with docker-bridge, give the VM the interface of this running container",
  },
  {
    name: "mode",
    metavar: "MODE",
    choices: ["auto", "tc-redirect", "dhcp-bridge"],
    help: "how frames pass between the TAP and eth0: tc-redirect, which leaves eth0 its address; " +
      "dhcp-bridge, with a bridge; or auto, the first one that the kernel supports",
    default: "auto",
  },
  {
    name: "isolated",
    help: "separate the guest from the other VMs and containers of its network; it still reaches " +
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
] as const satisfies readonly Option[];

/** The values of {@linkcode SHAPING}. */
export type ShapingFlags = Flags<typeof SHAPING>;

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
    complete: "vms",
  },
  rest: {
    metavar: "VMM ARG…",
    help:
      "run the VMM in the VM's namespace, and remove the attachment when it ends; {tap} {mac} " +
      "{ip} {gateway} {netmask} {mtu} {queues} {netns} {name} {cmdline} in its arguments are replaced, " +
      "and {eth1.tap} … of further interfaces",
  },
  groups: [
    {
      title: "every day",
      options: [
        ...["ports", "network", "output", "list", "check"],
        ...["remove", "all", "force", "dry-run", "restore"],
      ],
    },
    { title: "with -- VMM", options: ["user", "keep", "record-file"] },
    {
      title: "the VM's interfaces",
      options: [
        ...["ip", "mac", "mtu", "queues", "tap-owner", "bandwidth"],
        ...["mode", "netns", "network-plugin", "image", "container"],
      ],
    },
    {
      title: "what the guest may do, and who reaches it",
      options: [
        ...["isolated", "no-isolated", "deny-egress", "allow-egress", "reachable-from"],
        ...["open-firewall", "no-open-firewall", "max-connections", "new-connections"],
        ...["antispoof", "no-antispoof", "link-local"],
      ],
    },
    { title: "many VMs, and leftovers", options: ["from", "gc", "exclusive"] },
    {
      title: "how it is done",
      options: [
        ...["plugins", "capability", "cni-arg", "firewall"],
        ...["state-dir", "cni-conf-dir", "cni-bin-dir"],
      ],
    },
  ],
  options: [
    ...SHAPING,
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
      choices: [
        ...["json", "env", "cmdline", "dracut", "qemu"] as const,
        ...["cloud-hypervisor", "libvirt", "firecracker", "mmds", "cloud-init"] as const,
      ],
      help: "print the record as json, env (shell assignments), cmdline (the kernel's ip=), " +
        "dracut (arguments of its initramfs), arguments of qemu or cloud-hypervisor, libvirt " +
        "(interfaces of a domain), firecracker (a part of its configuration file), mmds (its " +
        "metadata) or cloud-init (network-config)",
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
      name: "dry-run",
      help: "print what attaching or --remove would do to each VM; change nothing",
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
    { does: "see what that would change", command: "attach-vm web --ports none --dry-run" },
    { does: "attach many VMs", command: "attach-vm --from vms.jsonl" },
    { does: "remove a VM", command: "attach-vm web --remove" },
  ],
  exitCodes: [
    ["3", "--check found a difference"],
    ["125–127", "with -- VMM: it was not started, cannot be executed, was not found"],
  ],
} as const satisfies Command;

/** attach-vm's table, or that of a command that takes some of its flags. */
export type AttachTable = Command & Pick<typeof ATTACH_VM, "options"> & {
  /** What its requests have unless the flags say otherwise. */
  readonly asks?: Partial<AttachRequest>;
};

/** The values of all flags. */
export type AttachFlags = Parsed<AttachTable>["flags"];
