/**
 * Archives of the kernel's initramfs: cpio's "newc" format
 * (Documentation/driver-api/early-userspace/buffer-format.rst of Linux).
 */

/** An entry of an archive; parents come before what is in them. */
export type CpioEntry =
  | { readonly path: string; readonly kind: "directory" }
  | { readonly path: string; readonly kind: "file"; readonly data: Uint8Array; mode?: number }
  | { readonly path: string; readonly kind: "symlink"; readonly target: string }
  | { readonly path: string; readonly kind: "device"; readonly major: number; minor: number };

/** File types of a mode (linux/stat.h). */
const S_IFDIR = 0o040000;
const S_IFCHR = 0o020000;
const S_IFREG = 0o100000;
const S_IFLNK = 0o120000;

const encoder = new TextEncoder();

/** Writes an archive; everything in it belongs to root and has no date. */
export function writeCpio(entries: readonly CpioEntry[]): Uint8Array<ArrayBuffer> {
  const parts = entries.flatMap((entry, index) => member(entry, index + 1));
  parts.push(...header("TRAILER!!!", { ino: 0, mode: 0, size: 0 }));
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let offset = 0;
  for (const part of parts) {
    whole.set(part, offset);
    offset += part.length;
  }
  return whole;
}

function member(entry: CpioEntry, ino: number): Uint8Array[] {
  const { path } = entry;
  switch (entry.kind) {
    case "directory":
      return header(path, { ino, mode: S_IFDIR | 0o755, size: 0 });
    case "device": {
      const { major, minor } = entry;
      return header(path, { ino, mode: S_IFCHR | 0o600, size: 0, major, minor });
    }
    case "file": {
      const { data, mode = 0o755 } = entry;
      return [...header(path, { ino, mode: S_IFREG | mode, size: data.length }), ...padded(data)];
    }
    case "symlink": {
      const data = encoder.encode(entry.target);
      return [...header(path, { ino, mode: S_IFLNK | 0o777, size: data.length }), ...padded(data)];
    }
  }
}

interface Fields {
  readonly ino: number;
  readonly mode: number;
  readonly size: number;
  readonly major?: number;
  readonly minor?: number;
}

function header(path: string, { ino, mode, size, major = 0, minor = 0 }: Fields): Uint8Array[] {
  const name = encoder.encode(`${path}\0`);
  const [uid, gid, links, mtime, device, check] = [0, 0, 1, 0, 0, 0];
  const fields = [ino, mode, uid, gid, links, mtime, size, device, device, major, minor];
  const text = [...fields, name.length, check]
    .map((value) => value!.toString(16).toUpperCase().padStart(8, "0"));
  return padded(new Uint8Array([...encoder.encode(`070701${text.join("")}`), ...name]));
}

/** Everything in an archive begins at a multiple of four bytes. */
function padded(data: Uint8Array): Uint8Array[] {
  return [data, new Uint8Array((4 - data.length % 4) % 4)];
}
