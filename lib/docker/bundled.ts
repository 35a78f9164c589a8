/**
 * zx in a bundle: under Deno it looks for a file beside itself, which a bundle has not.
 *
 * @module
 */

const LOOKS_BESIDE = 'globalThis.Deno ? globalThis.require("./core.cjs") : ';

/** The text of a bundle, in which zx takes what the bundle has of it. */
export function withZx(bundle: string): string {
  return bundle.replace(LOOKS_BESIDE, "");
}
