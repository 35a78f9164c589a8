import { assertEquals, assertThrows } from "@std/assert";
import { SyscallError } from "../../lib/errors.ts";
import { attempt, Errno, libc } from "../../lib/sys/libc.ts";
import { Inotify } from "../../lib/sys/inotify.ts";

Deno.test({
  name: "attempt: EAGAIN of a call that cannot fail with it is doubted, that of another is not",
  // libc's functions are looked up once and stay.
  sanitizeResources: false,
  fn: () => {
    using nothing = new Inotify();
    let calls = 0;
    /** Fails with EAGAIN so often, as a read where there is nothing does. */
    const failing = (times: number) => () =>
      ++calls <= times ? libc().read(nothing.fd, new Uint8Array(64), 64n) : 7;
    assertEquals(attempt("open", "a file", [Errno.ENOENT], failing(2)), 7);
    calls = 0;
    const always = () => attempt("open", "a file", [Errno.ENOENT], failing(Infinity));
    assertEquals(assertThrows(always, SyscallError).code, "EAGAIN");
    calls = 0;
    assertEquals(attempt("read", "a socket", [Errno.EAGAIN], failing(1)), undefined);
    assertEquals(calls, 1);
  },
});
