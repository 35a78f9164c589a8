/**
 * What people are told while a verb works.
 *
 * @module
 */

import { sentence } from "../../finding.ts";
import type { Host } from "../session.ts";
import type { Difference, LayerName } from "../types.ts";

const PARTS: Readonly<Record<LayerName, string>> = {
  netns: "network",
  network: "network",
  wire: "TAP",
  guard: "guards",
  rules: "rules and settings",
  policy: "rules and settings",
  passes: "rules and settings",
  sysctls: "rules and settings",
  dhcp: "DHCP",
  record: "record",
};

/** Says in one line what is going to be repaired: the difference, or how many there are of what. */
export function noteRepairs(host: Host, vm: string, found: readonly Difference[]): void {
  const told = found.filter(({ ignored }) => !ignored);
  for (const conflict of told.filter(({ repair }) => repair === "none")) {
    host.note(`warning: ${sentence(conflict)}`);
  }
  const repaired = told.filter(({ repair }) => repair !== "none");
  if (repaired.length === 1) host.note(`repairing: ${sentence(repaired[0]!)}`);
  if (repaired.length < 2) return;
  const counts = [...Map.groupBy(repaired, ({ layer }) => PARTS[layer])]
    .map(([part, { length }]) => `its ${part} (${length})`);
  host.note(`repairing "${vm}": ${counts.join(", ")}; TAPKIT_DEBUG=1 names each difference`);
  for (const difference of repaired) host.detail(`repairing: ${sentence(difference)}`);
}
