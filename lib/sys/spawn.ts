/**
 * Processes started without a copy of this one: `posix_spawn`, where `fork` would copy the page
 * tables of a whole Deno; and what no process that is started here inherits.
 *
 * @module
 */

import { SyscallError, TapkitError } from "../errors.ts";
import { cstr, errnoMend, errnoName, libc, O_RDONLY, O_RDWR } from "./libc.ts";

/** spawn.h of glibc, 64 bits: sizes of its opaque structures, which start as zeros. */
const Spawn = {
  ATTR_SIZE: 336,
  FILE_ACTIONS_SIZE: 80,
  /** In the first field of the attributes, a short. */
  POSIX_SPAWN_SETSID: 0x80,
} as const;

/** linux/close_range.h, and fcntl.h for kernels before 5.11. */
const CLOSE_RANGE_CLOEXEC = 4;
const F_SETFD = 2;
const FD_CLOEXEC = 1;
const STDERR = 2;

/**
 * Keeps descriptors that this process was given by its caller, a lock say, from those that it
 * starts: all but standard input, output and error are closed there. They stay open here.
 */
export function keepDescriptors(): void {
  try {
    if (libc().close_range(STDERR + 1, 0xffff_ffff, CLOSE_RANGE_CLOEXEC) === 0) return;
  } catch (error) {
    // A C library that has no such function.
    if (!(error instanceof TapkitError)) throw error;
  }
  for (const { name } of Deno.readDirSync("/proc/self/fd")) {
    if (Number(name) > STDERR) libc().fcntl(Number(name), F_SETFD, FD_CLOEXEC);
  }
}

/**
 * Starts a program, found by PATH, in a session of its own, with /dev/null as its standard input,
 * output and error, and no descriptor that is close-on-exec.
 *
 * The caller is not told of its end. One that ends before this process stays as a zombie until then.
 *
 * @returns its pid
 * @throws {SyscallError} ENOENT when there is no such program
 */
export function spawnSession(
  program: string,
  args: readonly string[],
  env: Readonly<Record<string, string>>,
): number {
  const attributes = new Uint8Array(Spawn.ATTR_SIZE);
  new DataView(attributes.buffer).setInt16(0, Spawn.POSIX_SPAWN_SETSID, true);
  const actions = new Uint8Array(Spawn.FILE_ACTIONS_SIZE);
  const check = (op: string, errno: number) => {
    if (errno === 0) return;
    const code = errnoName(errno);
    throw new SyscallError({ op, object: program, errno, code }, { mend: errnoMend(code) });
  };
  const device = cstr("/dev/null");
  for (const [fd, flags] of [[0, O_RDONLY], [1, O_RDWR], [2, O_RDWR]] as const) {
    const errno = libc().posix_spawn_file_actions_addopen(actions, fd, device, flags, 0);
    check("posix_spawn_file_actions_addopen", errno);
  }
  const environment = Object.entries(env).map(([name, value]) => `${name}=${value}`);
  const pid = new Int32Array(1);
  check(
    "posix_spawnp",
    libc().posix_spawnp(
      pid,
      cstr(program),
      actions,
      attributes,
      stringArray([program, ...args]),
      stringArray(environment),
    ),
  );
  return pid[0]!;
}

/** `char *const []` with its closing NULL, and behind it in the same memory what it points to. */
function stringArray(texts: readonly string[]): Uint8Array<ArrayBuffer> {
  const strings = texts.map(cstr);
  const POINTER_SIZE = 8;
  const table = (strings.length + 1) * POINTER_SIZE;
  // An ArrayBuffer made by itself does not move.
  const bytes = new Uint8Array(
    new ArrayBuffer(strings.reduce((sum, { length }) => sum + length, table)),
  );
  const address = Deno.UnsafePointer.value(Deno.UnsafePointer.of(bytes));
  const view = new DataView(bytes.buffer);
  let offset = table;
  for (const [index, string] of strings.entries()) {
    view.setBigUint64(index * POINTER_SIZE, BigInt(address) + BigInt(offset), true);
    bytes.set(string, offset);
    offset += string.length;
  }
  return bytes;
}
