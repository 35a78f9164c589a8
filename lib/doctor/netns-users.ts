/**
 * Who uses a network namespace.
 *
 * @module
 */

import { namesIn } from "../files.ts";
import { openNetns } from "../sys/netns.ts";
import { type TapUser, tapUsers } from "../sys/tap-users.ts";

/** The directory of named namespaces, as for `ip netns`. */
export const NETNS_DIR = "/run/netns";

/** The processes that are in a namespace, or have one of its TAPs open. */
export function usersOf(path: string): TapUser[] {
  const isThat = sameAs(path);
  if (isThat === undefined) return [];
  const inside = namesIn("/proc").filter((name) => /^\d+$/.test(name)).flatMap((pid) =>
    unlessEnded(() =>
      isThat(`/proc/${pid}/ns/net`)
        ? [{ pid: Number(pid), name: Deno.readTextFileSync(`/proc/${pid}/comm`).trim() }]
        : []
    )
  );
  const opened = tapUsers(() => true, ({ fd }) => isThat(`/proc/self/fd/${fd}`));
  return [...inside, ...opened.filter(({ pid }) => !inside.some((one) => one.pid === pid))];
}

/** Whether another path leads to the same namespace; undefined where the path leads to none. */
function sameAs(path: string): ((other: string) => boolean) | undefined {
  try {
    using netns = openNetns(path);
    const { dev, ino } = Deno.statSync(`/proc/self/fd/${netns.fd}`);
    return (other) => {
      const found = Deno.statSync(other);
      return found.dev === dev && found.ino === ino;
    };
  } catch {
    // A crash left the file without a namespace.
    return undefined;
  }
}

function unlessEnded<T>(look: () => T[]): T[] {
  try {
    return look();
  } catch {
    return [];
  }
}
