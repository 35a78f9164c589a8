/**
 * The kernel settings that guests' rules need beside the rules, in the current network namespace.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import { isIp, isLoopback } from "../inet/ip.ts";
import { isWildcard, type PortMapping } from "../inet/ports.ts";
import { readSysctl, writeSysctl } from "../sys/sysctl.ts";
import type { GuestRules } from "./model.ts";

/** A setting by its path below /proc/sys, and the value it needs. */
interface Sysctl {
  readonly path: string;
  readonly value: string;
}

/** What else is to be known of a guest. */
export interface SysctlOptions {
  /**
   * Whether the guest may answer by another link than it was asked by: it has several, and is not
   * held to its own addresses on each. A strict reverse path filter would drop the answers.
   */
  readonly asymmetric?: boolean;
}

/** What the rules need, whatever the kernel has. */
export function neededSysctls(
  rules: GuestRules,
  { asymmetric = false }: SysctlOptions = {},
): Sysctl[] {
  const { addresses, link, ports } = rules;
  const needed: Sysctl[] = [];
  // Whose network asks nothing of the firewall is nothing to the host's forwarding either.
  if (link === "" && ports.length === 0) return needed;
  if (addresses.some((address) => isIp(address) === 4)) {
    needed.push({ path: "net/ipv4/ip_forward", value: "1" });
    // Packets from 127.0.0.1 leave by this link, and their answers come back by it.
    if (link !== "" && ports.some(listensOnLoopback)) {
      needed.push({ path: `net/ipv4/conf/${link}/route_localnet`, value: "1" });
    }
    if (link !== "" && asymmetric) {
      needed.push({ path: `net/ipv4/conf/${link}/rp_filter`, value: "2" });
    }
  }
  if (addresses.some((address) => isIp(address) === 6)) {
    needed.push({ path: "net/ipv6/conf/all/forwarding", value: "1" });
  }
  return needed;
}

function listensOnLoopback({ hostIP }: PortMapping): boolean {
  return hostIP === "::" ? false : isWildcard(hostIP) || isLoopback(hostIP);
}

/**
 * Sets what the rules need and the kernel has not. With IPv6 forwarding, interfaces that took
 * router advertisements go on taking them, the guests' own link excepted.
 *
 * Equivalent to: `sysctl -w net.ipv4.ip_forward=1 net.ipv4.conf.LINK.route_localnet=1 …`
 *
 * @returns the settings changed: `"net.ipv4.ip_forward=1"`
 * @throws {TapkitError} when one cannot be written
 */
export function ensureSysctls(rules: GuestRules, options?: SysctlOptions): string[] {
  const missing = neededSysctls(rules, options).filter((sysctl) => !isSet(sysctl));
  const changes = missing.flatMap((sysctl) =>
    sysctl.path === "net/ipv6/conf/all/forwarding"
      ? [...keepRouterAdvertisements(rules.link), sysctl]
      : [sysctl]
  );
  for (const change of changes) write(change);
  return changes.map(describeSysctl);
}

/** A sentence for each setting that the rules need and the kernel has not. */
export function checkSysctls(rules: GuestRules, options?: SysctlOptions): string[] {
  return neededSysctls(rules, options).filter((sysctl) => !isSet(sysctl))
    .map((sysctl) => `the sysctl ${describeSysctl(sysctl)} is not set`);
}

/** accept_ra 1 means "unless forwarding", 2 "also then". */
function keepRouterAdvertisements(guestLink: string): Sysctl[] {
  const sysctls: Sysctl[] = [];
  for (const { name } of Deno.readDirSync("/proc/sys/net/ipv6/conf")) {
    if (["all", "default", "lo", guestLink].includes(name)) continue;
    const path = `net/ipv6/conf/${name}`;
    if (readSysctl(`${path}/accept_ra`) !== "1" || readSysctl(`${path}/forwarding`) !== "0") {
      continue;
    }
    sysctls.push({ path: `${path}/accept_ra`, value: "2" });
  }
  return sysctls;
}

function isSet({ path, value }: Sysctl): boolean {
  const STRICT = "1";
  if (!path.endsWith("/rp_filter")) return readSysctl(path) === value;
  // The kernel takes the greater of a link's own and that of all; 0 is no filter, 2 a loose one.
  const effective = [readSysctl(path), readSysctl("net/ipv4/conf/all/rp_filter")].sort().at(-1);
  return effective !== STRICT;
}

function describeSysctl({ path, value }: Sysctl): string {
  // sysctl(8) writes a dot within a link's name as a slash.
  const parts = path.split("/").map((part) => part.replaceAll(".", "/"));
  return `${parts.join(".")}=${value}`;
}

function write(sysctl: Sysctl): void {
  if (writeSysctl(sysctl.path, sysctl.value)) return;
  throw new TapkitError(`the sysctl ${describeSysctl(sysctl)} cannot be set`, {
    mend: sysctl.path.startsWith("net/ipv6")
      ? "use a kernel with IPv6, or a network without IPv6 addresses"
      : "check that the link is there",
  });
}
