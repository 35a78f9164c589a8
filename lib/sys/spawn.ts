/**
 * Starts processes with `posix_spawn`, because `fork` would copy the page tables of all of Deno.
 * Also keeps descriptors from started processes.
 *
 * @module
 */

import { SyscallError, TapkitError } from "../errors.ts";
import { cstr, errnoMend, errnoName, F_SETFD, FD_CLOEXEC, libc, O_RDONLY, O_RDWR } from "./libc.ts";

/** spawn.h of glibc, 64 bits: sizes of its opaque structures, which start as zeros. */
const Spawn = {
  ATTR_SIZE: 336,
  FILE_ACTIONS_SIZE: 80,
  /** In the first field of the attributes, a short. */
  POSIX_SPAWN_SETSID: 0x80,
} as const;

/** linux/close_range.h; fcntl(2) is for kernels before 5.11. */
const CLOSE_RANGE_CLOEXEC = 4;
const STDERR = 2;

/**
 * Keeps descriptors that this process got from its caller, such as a lock, from the processes that
 * it starts: these have standard input, output and error only. The descriptors stay open here.
 */
export function keepDescriptors(): void {
  try {
    if (libc().close_range(STDERR + 1, 0xffff_ffff, CLOSE_RANGE_CLOEXEC) === 0) return;
  } catch (error) {
    // The C library has no such function.
    if (!(error instanceof TapkitError)) throw error;
  }
  for (const { name } of Deno.readDirSync("/proc/self/fd")) {
    if (Number(name) > STDERR) libc().fcntl(Number(name), F_SETFD, FD_CLOEXEC);
  }
}

/**
 * Starts a program from PATH in a session of its own, with /dev/null as standard input, output and
 * error, and without descriptors that are close-on-exec.
 *
 * The caller does not learn of its end. If it ends before this process, it stays a zombie until
 * then.
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

/** `char *const []` with its final NULL. The strings follow it in the same memory. */
function stringArray(texts: readonly string[]): Uint8Array<ArrayBuffer> {
  const strings = texts.map(cstr);
  const POINTER_SIZE = 8;
  const table = (strings.length + 1) * POINTER_SIZE;
  // An ArrayBuffer that is allocated explicitly does not move.
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
