/** Heals the VMs of the machine that it runs on; its events are lines of JSON. `healer.ts [MODE]`. */

import { type HealMode, healVms } from "../../lib/vm/heal.ts";

const ended = new AbortController();
Deno.addSignalListener("SIGTERM", () => ended.abort());
console.log(JSON.stringify({ event: "ready" }));
await healVms({
  mode: (Deno.args[0] ?? "auto") as HealMode,
  signal: ended.signal,
  onEvent: (event) => console.log(JSON.stringify(event)),
});
