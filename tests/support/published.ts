/**
 * What VMMs accept, by the descriptions that they publish: tests/fixtures/vmm-api.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { Ajv2020 } from "ajv";
import { ROOT } from "./machine.ts";

/** Returns what throws for a value that a VMM would refuse. */
export async function published(
  name: "firecracker" | "cloud-hypervisor",
): Promise<(value: unknown) => void> {
  const schema = JSON.parse(
    await Deno.readTextFile(`${ROOT}/tests/fixtures/vmm-api/${name}.json`),
  );
  const validate = new Ajv2020().compile(schema);
  return (value) => assertEquals([validate(value), validate.errors], [true, null]);
}

/** A value of Cloud Hypervisor's `--net`: its keys are those of the API. */
export function netConfig(text: string): Record<string, string | number> {
  const numbers = ["mtu", "num_queues", "queue_size"];
  return Object.fromEntries(
    text.split(",").map((pair) => {
      const [key = "", value = ""] = pair.split("=");
      return [key, numbers.includes(key) ? Number(value) : value];
    }),
  );
}
