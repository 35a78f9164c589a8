/**
 * Pages of docs/ that are run: their blocks of code, and a host that has tapkit's commands installed.
 *
 * @module
 */

import { assert } from "@std/assert";
import { TEMPLATE, units, VM_SETTINGS_DIR } from "../../lib/install/units.ts";
import { scriptWords } from "./bundle.ts";
import { ROOT } from "./machine.ts";
import type { Host } from "./host.ts";
import type { Running } from "./running.ts";

/** The blocks of a page in a language, in their order; at least one. */
export function pageBlocks(page: string, language: string): string[] {
  const text = Deno.readTextFileSync(`${ROOT}/docs/${page}`);
  const found = [...text.matchAll(/^```(\w*)\n([^]*?)^```$/gm)];
  const blocks = found.filter(([, name]) => name === language).map(([, , code]) => code!);
  assert(blocks.length > 0, `docs/${page} has no block in "${language}"`);
  return blocks;
}

/** Where {@linkcode installCommands} puts the commands. */
const COMMANDS = "/run/commands";

/**
 * Puts tapkit's commands, and programs that a test has instead of others, on a PATH of the host.
 *
 * @param standIns texts of scripts by the names of the programs that they stand for
 * @returns what to run a page's blocks with
 */
export async function installCommands(
  host: Host,
  standIns: Readonly<Record<string, string>> = {},
): Promise<{ env: Record<string, string> }> {
  const commands = ["attach-vm", "map-port", "serve"].map((name) =>
    [name, `#!/bin/sh\nexec ${[Deno.execPath(), ...scriptWords(name)].join(" ")} "$@"\n`] as const
  );
  await host.sh(`mkdir -p ${COMMANDS}`);
  for (const [name, text] of [...commands, ...Object.entries(standIns)]) {
    await host.writeFile(`${COMMANDS}/${name}`, text, 0o755);
  }
  return {
    env: { PATH: `${COMMANDS}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin` },
  };
}

/** Hides /dev/kvm: guests do not boot by the KVM of every machine that has one. */
export async function withoutKvm(host: Host): Promise<void> {
  await host.sh("[ ! -e /dev/kvm ] || mount --bind /dev/null /dev/kvm");
}

/**
 * Starts a VM as systemd starts its instance of the unit tapkit-vm@.service: ExecStart, with the words and
 * the environment of the VM's settings.
 *
 * @param page what {@linkcode installCommands} returned
 */
export async function startUnit(
  host: Host,
  vm: string,
  page: { readonly env: Record<string, string> },
): Promise<Running> {
  const settings = await host.readFile(`${VM_SETTINGS_DIR}/${vm}.conf`);
  const entries = [...settings.matchAll(/^(\w+)=(.*)$/gm)].map(([, key, value]) => [key!, value!]);
  const env: Record<string, string> = { ATTACH: "", ...Object.fromEntries(entries), ...page.env };
  const [, line = ""] = /^ExecStart=(.*)$/m.exec(units(COMMANDS)[TEMPLATE]!)!;
  const [program = "", ...args] = line.replaceAll("%i", vm).split(" ").flatMap((word) =>
    word.startsWith("$") ? env[word.slice(1)]!.split(" ").filter((part) => part !== "") : [word]
  );
  return host.spawn(program, args, { env });
}
