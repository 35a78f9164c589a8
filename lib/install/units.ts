/**
 * What systemd is given: units, and settings of the kernel.
 *
 * None of the units has an option that gives it mounts of its own (PrivateTmp, ProtectSystem and
 * many more): a namespace that it mounted at /run/netns would be hidden from the host then.
 *
 * @module
 */

import { RESIDENT_V8_FLAGS } from "../exec.ts";

/** Where units and settings go, below the prefix: systemd looks there below /usr/local and /usr. */
export const UNIT_DIR = "lib/systemd/system";
export const SYSCTL_DIR = "lib/sysctl.d";

/** What is enabled when it is installed; the template waits for the name of a VM. */
export const ENABLED = ["tapkit.service", "tapkit-restore.service"] as const;
export const TEMPLATE = "tapkit-vm@.service";

/** The directory of the files that name what the units of VMs run. */
export const VM_SETTINGS_DIR = "/etc/tapkit";

/** What changing the host's networks and the plugins of others takes. */
const CAPABILITIES = [
  // Links, rules, settings of the kernel.
  "CAP_NET_ADMIN",
  // To hear what changes in the namespaces of VMs: NETLINK_LISTEN_ALL_NSID.
  "CAP_NET_BROADCAST",
  // Sockets that take DHCP from a TAP.
  "CAP_NET_RAW",
  // Ports below 1024, which are held while they are published.
  "CAP_NET_BIND_SERVICE",
  // Network namespaces, and their mounts at /run/netns.
  "CAP_SYS_ADMIN",
  // Who has a TAP or a namespace open, whoever runs it.
  "CAP_SYS_PTRACE",
  // Files of other users: the state of plugins.
  "CAP_DAC_OVERRIDE",
  "CAP_CHOWN",
  "CAP_FOWNER",
  // To end a plugin that takes too long.
  "CAP_KILL",
];

/** What running a VMM takes beside that: being another user, memory that is not swapped. */
const VMM_CAPABILITIES = [
  ...CAPABILITIES,
  "CAP_SETUID",
  "CAP_SETGID",
  "CAP_SETPCAP",
  "CAP_SYS_RESOURCE",
  "CAP_IPC_LOCK",
  "CAP_SYS_NICE",
  "CAP_SYS_CHROOT",
  "CAP_MKNOD",
];

/** What has to be there before VMs come back: firewalls that would flush, networks, resolvers. */
const BEFORE_RESTORE = [
  ["network-online.target", "nss-lookup.target", "systemd-sysctl.service"],
  ["systemd-resolved.service", "nftables.service", "iptables.service", "ip6tables.service"],
  ["netfilter-persistent.service", "ufw.service", "firewalld.service", "docker.service"],
].flat();

/** The text of each unit, by its name. */
export function units(bin: string): Readonly<Record<string, string>> {
  return {
    "tapkit.service": `[Unit]
Description=DHCP, healing and requests for virtual machines (tapkit)
Documentation=man:serve(8)
After=network.target local-fs.target

[Service]
Environment=DENO_NO_UPDATE_CHECK=1 DENO_V8_FLAGS=${RESIDENT_V8_FLAGS}
ExecStart=${path(bin)}/serve
Restart=always
RestartSec=1
KillMode=mixed
LimitNOFILE=65536
${capabilities(CAPABILITIES)}
[Install]
WantedBy=multi-user.target
`,
    "tapkit-restore.service": `[Unit]
Description=Bring back attached virtual machines (tapkit)
Documentation=man:attach-vm(8)
Wants=network-online.target tapkit.service
After=tapkit.service ${BEFORE_RESTORE.join(" ")}

[Service]
Type=oneshot
RemainAfterExit=yes
Environment=DENO_NO_UPDATE_CHECK=1
ExecStart=${path(bin)}/attach-vm --restore
TimeoutStartSec=15min
${capabilities(CAPABILITIES)}
[Install]
WantedBy=multi-user.target
`,
    [TEMPLATE]: `[Unit]
Description=Virtual machine %i (tapkit)
Documentation=man:attach-vm(8)
Wants=tapkit.service
After=tapkit.service tapkit-restore.service
ConditionPathExists=${VM_SETTINGS_DIR}/%i.conf

[Service]
# ATTACH, the flags of attach-vm, and VMM, the program with its arguments.
Environment=DENO_NO_UPDATE_CHECK=1 ATTACH=
EnvironmentFile=${VM_SETTINGS_DIR}/%i.conf
ExecStart=${path(bin)}/attach-vm %i --keep $ATTACH -- $VMM
Restart=on-failure
RestartSec=2
KillMode=mixed
TimeoutStopSec=90
SuccessExitStatus=143
${capabilities(VMM_CAPABILITIES)}
[Install]
WantedBy=multi-user.target
`,
  };
}

/** The name and the text of the settings for systemd-sysctl. */
export const SYSCTLS = {
  name: "99-tapkit.conf",
  text:
    `# What tapkit's links need. systemd-sysctl reads this at boot, and udev whenever a link comes: an
# entry for all links in another file, such as net.ipv4.conf.*.arp_ignore, gives way to these.
-net.ipv4.conf.ignite0.forwarding = 1
-net.ipv4.conf.ignite0.arp_ignore = 0
-net.ipv6.conf.ignite0.disable_ipv6 = 0

# Room for the neighbours that many VMs are.
net.ipv4.neigh.default.gc_thresh2 = 8192
net.ipv4.neigh.default.gc_thresh3 = 16384
-net.ipv6.neigh.default.gc_thresh2 = 8192
-net.ipv6.neigh.default.gc_thresh3 = 16384

# net.ipv4.ip_forward is not here: tapkit turns it on with the first VM, and keeps networks apart that
# the host did not join before. The service tapkit sets it again if another file sets it to 0.
`,
} as const;

function capabilities(names: readonly string[]): string {
  return `CapabilityBoundingSet=${names.join(" ")}\n`;
}

/** A program's path in ExecStart. */
function path(directory: string): string {
  return /^[\w./@+-]+$/.test(directory)
    ? directory
    : directory.replaceAll("%", "%%").replaceAll(/["\\ ]/g, (found) =>
      `\\x${found.charCodeAt(0).toString(16)}`);
}
