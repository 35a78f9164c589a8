/**
 * Runs a command where the tests run, with the packages that they need:
 * `deno run -A tests/support/on-layer.ts COMMAND ARG…`.
 */

import { ensureRequirements, NotHere } from "./requirements.ts";

try {
  await ensureRequirements("tests");
  const [command = "true", ...args] = Deno.args;
  Deno.exit((await new Deno.Command(command, { args }).spawn().status).code);
} catch (error) {
  if (!(error instanceof NotHere)) throw error;
  console.error(error.message);
  Deno.exit(1);
}
