/**
 * Takes N addresses of a pool in a process of its own: `host-local-worker.ts CONFIG N`.
 *
 * @module
 */

import { allocate } from "../../lib/cni/plugins/host-local.ts";
import { parseHostLocal } from "../../lib/cni/plugins/host-local-config.ts";
import { UndoStack } from "../../lib/undo.ts";

const [text = "{}", count = "0"] = Deno.args;
const config = parseHostLocal(JSON.parse(text), {});
const given = Array.from({ length: Number(count) }, (_, index) => {
  const holder = { containerId: `ours${index}`, ifName: "eth0" };
  return allocate(config, holder, new UndoStack(), false).ips[0]!.address;
});
console.log(JSON.stringify(given));
