/**
 * Reads golden files: lines that begin with `#` say what made them, then hexadecimal digits,
 * a datagram to a paragraph.
 *
 * @module
 */

/** The datagrams of `tests/golden/FOLDER/NAME.hex`. */
export function readGolden(name: string, folder = "netlink"): Uint8Array<ArrayBuffer>[] {
  const text = Deno.readTextFileSync(new URL(`./${folder}/${name}.hex`, import.meta.url));
  return text.replaceAll(/^#.*\n/gm, "").trim().split("\n\n").map((paragraph) => {
    return Uint8Array.fromHex(paragraph.replaceAll(/\s/g, ""));
  });
}
