/**
 * Loads the files that its arguments name, and runs nothing of them: see `warmCache`.
 *
 * @module
 */

for (const file of Deno.args) await import(file);
