/** Settings of the kernel in a test's namespace, with a journal that the machine knows nothing of. */

import { sentence } from "../../lib/finding.ts";
import { Journal } from "../../lib/firewall/journal.ts";
import type { GuestRules } from "../../lib/firewall/model.ts";
import {
  type ChangeOptions,
  checkNeeded,
  neededSysctls,
  setSysctls,
  type SysctlOptions,
} from "../../lib/firewall/sysctls.ts";
import { NetlinkConnection } from "../../lib/netlink/connection.ts";
import { type Netns, withNetns } from "../../lib/sys/netns.ts";

/** Sets what rules need, in the current namespace; returns what was set. */
export function ensureSysctls(nl: NetlinkConnection, rules: GuestRules, options: ChangeOptions) {
  return setSysctls(nl, neededSysctls(rules, options), options);
}

/** Sets what rules need; returns what was set. */
export function ensureInside(
  netns: Netns,
  rules: GuestRules,
  options: SysctlOptions = {},
): string[] {
  const directory = Deno.makeTempDirSync();
  try {
    return withNetns(netns, () => {
      using nl = NetlinkConnection.open();
      return ensureSysctls(nl, rules, { ...options, journal: new Journal(`${directory}/run`) });
    });
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
}

/** What of them is not set. */
export function checkInside(
  netns: Netns,
  rules: GuestRules,
  options: SysctlOptions = {},
): string[] {
  return withNetns(netns, () => {
    using nl = NetlinkConnection.open();
    return checkNeeded(nl, neededSysctls(rules, options)).map(sentence);
  });
}
