/**
 * All checks, in the order in which they are made: what others need comes first, and what repairs
 * VMs before what takes away leftovers.
 *
 * @module
 */

import { CAPACITY_CHECKS } from "./capacity.ts";
import type { Check } from "./check.ts";
import { DOCKER_CHECKS } from "./docker.ts";
import { FIREWALL_CHECKS } from "./firewalls.ts";
import { KERNEL_CHECKS } from "./kernel.ts";
import { LINK_CHECKS } from "./links.ts";
import { NETWORK_CHECKS } from "./networks.ts";
import { PROCESS_CHECKS } from "./process.ts";
import { RECORD_CHECKS } from "./records.ts";
import { RESIDENT_CHECKS } from "./resident.ts";
import { STALE_CHECKS } from "./stale.ts";

/** Every check. */
export const CHECKS: readonly Check[] = [
  ...PROCESS_CHECKS,
  ...KERNEL_CHECKS,
  ...NETWORK_CHECKS,
  ...DOCKER_CHECKS,
  ...RECORD_CHECKS,
  ...FIREWALL_CHECKS,
  ...CAPACITY_CHECKS,
  ...RESIDENT_CHECKS,
  ...STALE_CHECKS,
  ...LINK_CHECKS,
];
