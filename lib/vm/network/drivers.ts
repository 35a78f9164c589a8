/**
 * Which network driver a VM has.
 *
 * @module
 */

import type { Both } from "../record/attachment.ts";
import { cni } from "./cni.ts";
import type { NetworkDriver } from "./driver.ts";

/** The driver of a VM's networks. That of Docker is loaded when a VM has it. */
export async function driverOf({ spec }: Pick<Both, "spec">): Promise<NetworkDriver> {
  return spec.docker === undefined ? cni : (await import("./docker.ts")).docker;
}
