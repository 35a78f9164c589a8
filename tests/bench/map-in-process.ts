/**
 * Mappings added one by one by a process that lives on: prints as JSON the milliseconds of each
 * call of the library, and of what of it is the firewall's.
 *
 * @module
 */

import { Firewall } from "../../lib/firewall/firewall.ts";
import { mapPorts, openSession } from "../../mod.ts";

const COUNT = 300;
/** The first ones run code that is not compiled yet. */
const WARM_UP = 200;

const firewall: number[] = [];
const change = Firewall.prototype.change;
Firewall.prototype.change = function (...args): boolean {
  const start = performance.now();
  try {
    return change.apply(this, args);
  } finally {
    firewall.push(performance.now() - start);
  }
};

using session = await openSession(1);
const call: number[] = [];
for (let port = 40_000; port < 40_000 + COUNT; port++) {
  const start = performance.now();
  await mapPorts("web", [`${port}:80`], { session });
  call.push(performance.now() - start);
}
console.log(JSON.stringify({ call: call.slice(WARM_UP), firewall: firewall.slice(WARM_UP) }));
