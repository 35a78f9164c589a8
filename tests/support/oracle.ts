/**
 * A throwaway network namespace, a connection into it, and iproute2 as the judge of what is there.
 *
 * @module
 */

import { assertEquals, assertThrows } from "@std/assert";
import { NetlinkConnection } from "../../lib/netlink/connection.ts";
import { NetlinkError } from "../../lib/netlink/errors.ts";
import { libc } from "../../lib/sys/libc.ts";
import { type Netns, newNetns, withNetns } from "../../lib/sys/netns.ts";

// Opened here, or Deno 2.5 counts it as a leak of the first test that needs it.
libc();

/** What `ip -j` and its like print: objects of whatever keys. */
// deno-lint-ignore no-explicit-any
export type JsonObject = Record<string, any>;

/** An anonymous network namespace with a netlink connection; gone with `using`. */
export class Sandbox implements Disposable {
  readonly netns: Netns = newNetns();
  readonly nl: NetlinkConnection = withNetns(this.netns, () => NetlinkConnection.open());

  /** Runs a program inside and returns what it printed. */
  run(program: string, ...args: string[]): string {
    const output = withNetns(this.netns, () => new Deno.Command(program, { args }).outputSync());
    const decoder = new TextDecoder();
    if (!output.success) {
      throw new Error(`${program} ${args.join(" ")}: ${decoder.decode(output.stderr)}`);
    }
    return decoder.decode(output.stdout);
  }

  /** Runs a command line that prints a JSON array of objects; iproute2 may leave some empty. */
  json(commandLine: string): JsonObject[] {
    const [program, ...args] = commandLine.split(" ");
    const objects = JSON.parse(this.run(program!, ...args) || "[]") as JsonObject[];
    return objects.filter((object) => Object.keys(object).length > 0);
  }

  [Symbol.dispose](): void {
    this.nl[Symbol.dispose]();
    this.netns[Symbol.dispose]();
  }
}

/** That the kernel refuses what `fn` asks of it with this code; returns the error. */
export function assertRefused(code: string, fn: () => unknown): NetlinkError {
  const error = assertThrows(fn, NetlinkError);
  assertEquals(error.code, code);
  return error;
}
