/**
 * What plugins of other makers change of the kernel's settings: it goes back with the last guest that
 * needs it, and what it would open stays closed.
 *
 * @module
 */

import type { Firewall } from "../firewall/firewall.ts";
import { findApart } from "../firewall/forwarding.ts";
import { Journal } from "../firewall/journal.ts";
import { adoptOpenLink, expectForwarding, FORWARDING, openLinks } from "../firewall/sysctls.ts";
import { readSysctl } from "../sys/sysctl.ts";
import type { Host } from "./session.ts";

/**
 * Does what executes plugins.
 *
 * @param publishes whether they publish ports, for which they open links to 127.0.0.0/8
 */
export async function watchPlugins<T>(
  { session: { nl } }: Host,
  { firewall, publishes }: { readonly firewall: Firewall; readonly publishes: boolean },
  run: () => Promise<T>,
): Promise<T> {
  const journal = new Journal();
  const known = journal.read();
  const off = FORWARDING.filter(({ path }) => readSysctl(path) === "0" && !(path in known));
  for (const { family, path } of off) {
    const apart = findApart(nl, family, []);
    expectForwarding(path, apart, journal);
    firewall.keepApart(family, apart);
  }
  const open = publishes ? openLinks() : undefined;
  try {
    return await run();
  } finally {
    for (const { family, path } of off.filter(({ path }) => readSysctl(path) === "0")) {
      firewall.keepApart(family, []);
      journal.forget(path);
    }
    const opened = open && openLinks().filter((link) => !open.includes(link));
    for (const link of opened ?? []) adoptOpenLink(nl, link, journal);
  }
}
