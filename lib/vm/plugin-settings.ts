/**
 * Kernel settings that executed plugins change. They are restored with the last guest that needs
 * them, and the host does not forward for others meanwhile.
 *
 * @module
 */

import type { FirewallKind } from "../firewall/store.ts";
import { findApart } from "../firewall/forwarding.ts";
import { Journal } from "../firewall/journal.ts";
import {
  adoptOpened,
  expectForwarding,
  expectOpen,
  FORWARDING,
  openLinks,
} from "../firewall/sysctls.ts";
import { readSysctl } from "../sys/sysctl.ts";
import type { Host } from "./session.ts";

/**
 * Runs `run`, which executes plugins, and records the settings that they change.
 *
 * @param publishes whether they publish ports: then they set route_localnet on links
 */
export async function watchPlugins<T>(
  { session }: Host,
  { firewall: kind, publishes }: { readonly firewall: FirewallKind; readonly publishes: boolean },
  run: () => Promise<T>,
): Promise<T> {
  const { nl } = session;
  const firewall = await session.firewall(kind);
  const journal = new Journal();
  const off = FORWARDING.filter(({ path }) => readSysctl(path) === "0");
  const expect = ({ family, path }: (typeof off)[number]) => {
    const apart = findApart(nl, family, []);
    expectForwarding(path, apart, journal);
    firewall.keepApart(family, apart);
  };
  const known = journal.read();
  const expected = off.filter(({ path }) => !(path in known));
  expected.forEach(expect);
  const open = publishes ? openLinks() : undefined;
  if (open !== undefined) expectOpen(open, journal);
  try {
    return await run();
  } finally {
    for (const setting of off) {
      const isKnown = setting.path in journal.read();
      if (readSysctl(setting.path) === "1") {
        // Another call expected it too, ended first, and deleted the entry.
        if (!isKnown) expect(setting);
      } else if (expected.includes(setting) && isKnown) {
        firewall.keepApart(setting.family, []);
        journal.forget(setting.path);
      }
    }
    if (open !== undefined) adoptOpened(nl, open, journal);
  }
}
