/**
 * install-default-cni: write the CNI configuration of the default network. See
 * `install-default-cni --help`.
 *
 * @module
 */

import { exclusive, wholeNumber } from "../lib/cli/args.ts";
import { EXIT, withoutUndefined } from "../lib/cli/cli.ts";
import { INSTALL_DEFAULT_CNI } from "../lib/cli/default-cni-table.ts";
import { runScript } from "../lib/cli/main.ts";

/** Runs install-default-cni with `args`; returns its exit code. */
export function main(args: readonly string[]): Promise<number> {
  return runScript(INSTALL_DEFAULT_CNI, args, async ({ flags }, cli) => {
    exclusive(flags, ["print", "check", "remove"]);
    const { subnet, bridge, ipv6, force, print, check, remove } = flags;
    const mtu = flags.mtu === undefined ? undefined : wholeNumber("--mtu", flags.mtu);
    const { installDefaultCni } = await import("../mod.ts");
    const { text, ...report } = await installDefaultCni({
      ...cli.hostOptions(flags),
      ...withoutUndefined({ subnet, bridge, ipv6, mtu }),
      ...{ force, print, check, remove },
    });
    if (text !== undefined) cli.text(text.trimEnd());
    else cli.json(report);
    return report.problems?.length ? EXIT.differs : EXIT.done;
  });
}

if (import.meta.main) Deno.exit(await main(Deno.args));
