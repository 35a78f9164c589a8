/**
 * What this process has: capabilities, libraries, descriptors, a state directory.
 *
 * @module
 */

import { dirname } from "@std/path";
import { type Capability, missingCapabilities } from "../caller.ts";
import { Nftables } from "../firewall/libnftables.ts";
import { describe } from "../errors.ts";
import { isThere } from "../files.ts";
import { libc, requireWritable } from "../sys/libc.ts";
import { type Check, count, fine, type Problem, tried, verdict } from "./check.ts";

/** What each capability is needed for. */
const CAPABILITIES: Readonly<Record<Capability, string>> = {
  CAP_NET_ADMIN: "to make links, addresses and firewall rules",
  CAP_NET_RAW: "to answer DHCP",
  CAP_SYS_ADMIN: "to make and enter network namespaces",
};

const capabilities: Check = {
  name: "capabilities",
  run() {
    const needed = Object.keys(CAPABILITIES) as Capability[];
    return verdict(
      missingCapabilities(needed).map((name) => ({
        what: `this process lacks ${name}, which is needed ${CAPABILITIES[name]}`,
        mend: "run it as root",
      })),
      `this process has ${needed.join(", ")}`,
    );
  },
};

const libraries: Check = {
  name: "libraries",
  async run() {
    const problems = [
      ...await tried(() => libc().getpgrp(), {
        what: "libc.so.6",
        mend: "use a Linux with glibc, and Deno's --allow-ffi",
      }),
      ...await tried(() => Nftables.open()[Symbol.dispose](), {
        what: "libnftables.so.1",
        mend: "install libnftables1 (Debian, Ubuntu) or nftables (Fedora, Arch)",
      }),
    ];
    return verdict(problems, "libc.so.6 and libnftables.so.1 can be opened");
  },
};

/** Descriptors that the resident needs beside one for each guest. */
const DESCRIPTORS = 256;

const descriptors: Check = {
  name: "descriptors",
  async run({ interfaces, options }) {
    const pid = await residentPid(options.socket);
    const whose = pid === undefined ? "this process" : `the resident (pid ${pid})`;
    const [, soft = "", hard = ""] = /^Max open files +(\S+) +(\S+)/m
      .exec(Deno.readTextFileSync(`/proc/${pid ?? "self"}/limits`)) ?? [];
    const needed = DESCRIPTORS + interfaces;
    const limit = soft === "unlimited" ? Infinity : Number(soft);
    const detail = `${whose} may open ${soft} files (${hard} at most), and needs ${needed} ` +
      `for ${count(interfaces, "interface")} of VMs`;
    if (limit >= needed) return fine(detail);
    const mend = `raise the limit: LimitNOFILE=${2 * needed} in its systemd unit, or ` +
      `ulimit -n ${2 * needed} before it is started`;
    return { ok: false, detail, mend };
  },
};

async function residentPid(socket: string | undefined): Promise<number | undefined> {
  const { askHealth } = await import("./resident.ts");
  const health = await askHealth(socket).catch(() => undefined);
  // In another process namespace it has another number.
  return health !== undefined && isThere(`/proc/${health.pid}/limits`) ? health.pid : undefined;
}

/** Less free space than this, in bytes, is too little for records. */
const LEAST_SPACE = 1 << 20;

const storage: Check = {
  name: "state directory",
  async run({ host }) {
    const { stateDir } = host;
    const there = existing(stateDir);
    const problems: Problem[] = [];
    if (!Deno.statSync(there).isDirectory) {
      const mend = "move it away, or name another directory with --state-dir";
      return verdict([{ what: `${there} is not a directory`, mend }], "");
    }
    try {
      requireWritable(there);
    } catch (error) {
      problems.push({
        what: `${stateDir} cannot be written: ${describe(error)}`,
        mend: "run it as root, make its file system writable, or name another with --state-dir",
      });
    }
    // Deno loads a good deal for it.
    const { statfsSync } = await import("node:fs");
    const { bavail, bsize, ffree, files } = statfsSync(there);
    if (bavail * bsize < LEAST_SPACE || files > 0 && ffree === 0) {
      const what = `the file system of ${stateDir} is full`;
      problems.push({ what, mend: "free space on it: nothing can be attached or removed" });
    }
    return verdict(problems, `${stateDir} can be written`);
  },
};

/** The path, or the nearest one above that exists. */
function existing(path: string): string {
  return path === "/" || isThere(path) ? path : existing(dirname(path));
}

export const PROCESS_CHECKS: readonly Check[] = [capabilities, libraries, descriptors, storage];
