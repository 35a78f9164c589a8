/**
 * Repairs by the verbs that there are, as far as they do no harm to a guest that runs.
 *
 * @module
 */

import { healVm, restoreVm } from "../vm/verbs/attach.ts";
import type { LayerName } from "../vm/types.ts";
import type { Fix } from "./check.ts";
import type { Examined } from "./host.ts";

/** Repairs layers of VMs while their guests run. */
export function healing(
  { records, options }: Examined,
  names: readonly string[],
  only?: readonly LayerName[],
): Fix {
  return async () => {
    const done: string[] = [];
    for (const { name, host: { stateDir } } of records.filter(({ name }) => names.includes(name))) {
      const how = { recreate: false, ...only === undefined ? {} : { only } };
      const healed = await healVm(name, how, { ...options, stateDir });
      if (healed !== undefined && healed.changes.length > 0) done.push(`repaired VM "${name}"`);
    }
    return done;
  };
}

/** Brings VMs back to their records, whose guests do not run. */
export function restoring({ records, options }: Examined, names: readonly string[]): Fix {
  return async () => {
    const done: string[] = [];
    for (const { name, host: { stateDir } } of records.filter(({ name }) => names.includes(name))) {
      const restored = await restoreVm(name, { ...options, stateDir });
      const what = restored === undefined ? "took away what was left of" : "restored";
      done.push(`${what} VM "${name}"`);
    }
    return done;
  };
}
