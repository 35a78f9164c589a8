/**
 * Writes lib/install/hot.txt: the functions that attaching, changing, looking at and removing VMs
 * calls, as V8 tells of a bundle that does so on a throwaway host. `deno task hot`, as root.
 *
 * A function that is missing there is compiled when it is first called, in every process again; one
 * that is there for nothing is loaded with the bundle. Nothing else depends on it.
 */

import { makeBundle } from "../lib/install/bundle.ts";
import { declaredFunctions } from "../lib/install/eager.ts";
import { Host } from "./support/host.ts";

const COMMANDS = [
  "attach-vm --version",
  "attach-vm web --ports 8080:80",
  "attach-vm web",
  "attach-vm web --check",
  "attach-vm --list",
  "map-port web 8081:81",
  "attach-vm one two",
  "attach-vm one two --remove",
  "attach-vm web --remove",
];

const directory = await Deno.makeTempDir({ prefix: "tapkit-hot-" });
try {
  const bundle = `${directory}/scripts.js`;
  for (const name of ["scripts.js", "tapkit.js"]) {
    await makeBundle(name, `${directory}/${name}`, { hot: new Set(), named: true });
  }
  const declared = declaredFunctions(await Deno.readTextFile(bundle));
  const names = new Map(declared.map(({ name, end }) => [end, name]));
  await using host = await Host.create();
  await host.addLan();
  const hot = new Set<string>();
  for (const command of COMMANDS) {
    for (const end of await calledIn(host, directory, command)) {
      const name = names.get(end);
      if (name !== undefined) hot.add(name);
    }
  }
  const text = `${[...hot].sort().join("\n")}\n`;
  await Deno.writeTextFile(new URL("../lib/install/hot.txt", import.meta.url), text);
  console.log(`${hot.size} of ${declared.length} functions`);
} finally {
  await Deno.remove(directory, { recursive: true });
}

/** Where the functions end that a command calls, as offsets in the scripts. */
async function calledIn(host: Host, directory: string, command: string): Promise<number[]> {
  const log = "/tmp/v8.log";
  const flags = `--v8-flags=--log-function-events,--no-logfile-per-isolate,--logfile=${log}`;
  const words = [
    "run",
    "-A",
    "--no-config",
    flags,
    `${directory}/tapkit.js`,
    ...command.split(" "),
  ];
  await host.must(Deno.execPath(), words);
  const events = (await host.must("cat", [log])).split("\n").map((line) => line.split(","));
  const script = events.find(([event, , url]) =>
    event === "script-details" && url === `file://${directory}/scripts.js`
  );
  return events
    // V8 parses a function when it is first called.
    .filter(([event, what, id]) =>
      event === "function" && what === "parse-function" && id === script?.[1]
    )
    .map((event) => Number(event[4]));
}
