/**
 * Calling the library on a throwaway host.
 *
 * @module
 */

import { type Machine, ROOT } from "./machine.ts";

/**
 * Runs the body of an asynchronous function on a machine; returns what that returns.
 *
 * @param module a file of the library, below lib; the body sees it as `library`
 * @param body also sees `root`, the checkout's directory
 */
export async function callLibrary<T>(
  machine: Machine,
  module: string,
  body: string,
): Promise<T> {
  const script = `
    const root = ${JSON.stringify(`file://${ROOT}`)};
    const library = await import(root + ${JSON.stringify(`/lib/${module}`)});
    const act = async () => { ${body} };
    console.log(JSON.stringify(await act() ?? null));`;
  const config = ["--config", `${ROOT}/deno.json`];
  const printed = await machine.must(Deno.execPath(), ["eval", ...config, "--ext=ts", script]);
  return JSON.parse(printed.trim().split("\n").at(-1)!);
}
