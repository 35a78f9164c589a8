/**
 * What the tests, the demo and the benchmark need of the machine they run on, and getting it: on Debian and its
 * kin packages are fetched with apt and installed beside the machine, elsewhere they are named.
 */

import { cacheDirectory } from "./guest-image.ts";
import { OUTSIDE_VARIABLE, packageLayer, runOnLayer } from "./layer.ts";

/** A program or file, the Debian package it is in, and what needs it. */
interface Requirement {
  /** A command, or the absolute path of a file. */
  readonly needs: string;
  readonly debian: string;
  /** Whether the demo needs it too, or the one of Weave Net alone. */
  readonly demo?: true | "weave";
}

const REQUIREMENTS: readonly Requirement[] = [
  { needs: "unshare", debian: "util-linux", demo: true },
  { needs: "nsenter", debian: "util-linux", demo: true },
  { needs: "mount", debian: "mount", demo: true },
  { needs: "ip", debian: "iproute2", demo: true },
  { needs: "tc", debian: "iproute2", demo: true },
  // Brings libnftables1, which is all that tapkit itself needs.
  { needs: "nft", debian: "nftables", demo: true },
  { needs: "busybox", debian: "busybox-static", demo: true },
  { needs: "qemu-system-x86_64", debian: "qemu-system-x86", demo: true },
  { needs: "xz", debian: "xz-utils", demo: true },
  { needs: "iptables", debian: "iptables", demo: "weave" },
  { needs: "conntrack", debian: "conntrack" },
  { needs: "strace", debian: "strace" },
  { needs: "tcpdump", debian: "tcpdump" },
  { needs: "ps", debian: "procps" },
  { needs: "dhclient", debian: "isc-dhcp-client" },
  { needs: "dhcpcd", debian: "dhcpcd-base" },
  { needs: "/usr/lib/cni/bridge", debian: "containernetworking-plugins" },
  { needs: "ufw", debian: "ufw" },
  { needs: "firewalld", debian: "firewalld" },
  { needs: "dbus-daemon", debian: "dbus-daemon" },
  { needs: "dockerd", debian: "docker.io", demo: "weave" },
  { needs: "perl", debian: "perl-base", demo: "weave" },
  // They read what --output prints for them.
  { needs: "cloud-init", debian: "cloud-init" },
  { needs: "netplan", debian: "netplan.io" },
  { needs: "/usr/lib/klibc/bin/ipconfig", debian: "klibc-utils" },
  { needs: "virsh", debian: "libvirt-clients" },
  { needs: "libvirtd", debian: "libvirt-daemon" },
  // Pages of docs/ call them.
  { needs: "jq", debian: "jq" },
  { needs: "genisoimage", debian: "genisoimage" },
  { needs: "mmdebstrap", debian: "mmdebstrap" },
  // The disk that README.md's commands boot.
  { needs: "syslinux", debian: "syslinux" },
  { needs: "mformat", debian: "mtools" },
  { needs: "qemu-img", debian: "qemu-utils" },
  { needs: "go", debian: "golang-go" },
  { needs: "qemu-system-aarch64", debian: "qemu-system-arm" },
  // The sandbox of arm64 runs on it.
  { needs: "qemu-aarch64", debian: "qemu-user" },
  // What reads the files that install.ts writes.
  { needs: "man", debian: "man-db" },
  { needs: "mandoc", debian: "mandoc" },
  { needs: "zsh", debian: "zsh" },
  { needs: "fish", debian: "fish" },
  { needs: "systemd-analyze", debian: "systemd" },
];

/** What the benchmark compares with; the C program is left out where there is no compiler. */
const BENCH_REQUIREMENTS: readonly Requirement[] = [
  ...["unshare", "nsenter", "mount", "ip", "tc", "nft"].map((name) =>
    REQUIREMENTS.find(({ needs }) => needs === name)!
  ),
  { needs: "xtables-nft-multi", debian: "iptables" },
  { needs: "xtables-legacy-multi", debian: "iptables" },
  { needs: "/usr/lib/cni/bridge", debian: "containernetworking-plugins" },
  { needs: "/usr/lib/podman/netavark", debian: "netavark" },
];

/** The end of a program that cannot do its work here; said in one line. */
export class NotHere extends Error {}

/**
 * Makes sure that the programs are there. Where they are missing and it can, this program runs again
 * on a layer that has them, and this process ends when that one does.
 *
 * @param purpose what they are for
 * @throws {NotHere} with what a person has to do
 */
export async function ensureRequirements(
  purpose: "tests" | "demo" | "weave demo" | "bench",
): Promise<void> {
  refuse(Deno.build.os !== "linux", "tapkit is for Linux");
  const wanted = purpose === "bench"
    ? BENCH_REQUIREMENTS
    : REQUIREMENTS.filter(({ demo }) =>
      purpose === "tests" || demo === true || purpose === "weave demo" && demo === "weave"
    );
  const missing = await missingOf(wanted);
  const packages = [...new Set(missing.map(({ debian }) => debian))];
  const list = packages.join(" ");
  const names = missing.map(({ needs }) => needs).join(", ");
  const root = Deno.uid() === 0;
  if (missing.length > 0) {
    refuse(!isDebian(), `missing: ${names}; install what Debian packages as: ${list}`);
    refuse(!root, `missing: ${names}; install them: sudo apt-get install ${list}`);
    refuse(Deno.env.has(OUTSIDE_VARIABLE), `still missing with ${list} installed: ${names}`);
    console.error(`missing: ${names}`);
    Deno.exit(await runOnLayer(await layerOf(packages)));
  }
  refuse(!root, `the ${purpose} cannot make network namespaces without root: use sudo`);
  refuse(
    !exists("/dev/net/tun"),
    "/dev/net/tun is missing: load the kernel's module (modprobe tun)",
  );
}

async function layerOf(packages: readonly string[]): Promise<string> {
  try {
    return await packageLayer(packages, cacheDirectory());
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new NotHere(`packages cannot be had: ${why}\ninstall them: ${packages.join(" ")}`);
  }
}

function refuse(condition: boolean, message: string): void {
  if (condition) throw new NotHere(message);
}

async function missingOf(wanted: readonly Requirement[]): Promise<Requirement[]> {
  const present = await Promise.all(wanted.map(isPresent));
  return wanted.filter((_, index) => !present[index]);
}

async function isPresent({ needs }: Requirement): Promise<boolean> {
  if (needs.startsWith("/")) return exists(needs);
  const directories = `${Deno.env.get("PATH") ?? ""}:/usr/sbin:/usr/bin:/sbin:/bin`.split(":");
  const path = directories.map((directory) => `${directory}/${needs}`).find(exists);
  if (path === undefined) return false;
  // Debian's plain busybox is linked dynamically and has no DHCP client: no guest can use it.
  if (needs !== "busybox") return true;
  const { stdout } = await new Deno.Command(path, { args: ["--list"] }).output();
  return /^udhcpc$/m.test(new TextDecoder().decode(stdout));
}

function isDebian(): boolean {
  return exists("/etc/debian_version") && exists("/usr/bin/apt-get");
}

function exists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch {
    return false;
  }
}
