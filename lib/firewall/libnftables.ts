/**
 * libnftables, the library behind `nft`, through FFI.
 *
 * @module
 */

import { NftablesError, TapkitError } from "../errors.ts";
import {
  cstr,
  F_GETFD,
  F_SETFD,
  FD_CLOEXEC,
  libc,
  openLibrary,
  type Symbols,
  syscall,
} from "../sys/libc.ts";

/** Each parameter's C type and name stand in a comment. */
const SYMBOLS = {
  // uint32_t flags
  nft_ctx_new: { parameters: ["u32"], result: "pointer" },
  // struct nft_ctx *ctx
  nft_ctx_free: { parameters: ["pointer"], result: "void" },
  // struct nft_ctx *ctx
  nft_ctx_buffer_output: { parameters: ["pointer"], result: "i32" },
  // struct nft_ctx *ctx
  nft_ctx_buffer_error: { parameters: ["pointer"], result: "i32" },
  // struct nft_ctx *ctx
  nft_ctx_get_output_buffer: { parameters: ["pointer"], result: "pointer" },
  // struct nft_ctx *ctx
  nft_ctx_get_error_buffer: { parameters: ["pointer"], result: "pointer" },
  // struct nft_ctx *ctx, unsigned int flags
  nft_ctx_output_set_flags: { parameters: ["pointer", "u32"], result: "void" },
  // struct nft_ctx *ctx, const char *buf
  nft_run_cmd_from_buffer: { parameters: ["pointer", "buffer"], result: "i32" },
} as const satisfies Deno.ForeignLibraryInterface;

/** nftables/libnftables.h. */
const Nft = {
  NFT_CTX_DEFAULT: 0,
  NFT_CTX_OUTPUT_JSON: 1 << 4,
  NFT_CTX_OUTPUT_NUMERIC_PROTO: 1 << 7,
} as const;

/** The texts strerror(3) gives for the errors that the kernel's nf_tables returns. */
const CODES: readonly (readonly [text: string, code: string])[] = [
  ["File exists", "EEXIST"],
  ["No such file or directory", "ENOENT"],
  ["Operation not permitted", "EPERM"],
  ["Device or resource busy", "EBUSY"],
  ["Operation not supported", "EOPNOTSUPP"],
  ["Protocol not supported", "EPROTONOSUPPORT"],
  ["Invalid argument", "EINVAL"],
  ["Cannot allocate memory", "ENOMEM"],
  ["No buffer space available", "ENOBUFS"],
  ["Message too long", "EMSGSIZE"],
  ["Too many open files", "EMFILE"],
];

const MENDS: Readonly<Record<string, string>> = {
  EPERM: "run as root, or with the capability CAP_NET_ADMIN",
  EOPNOTSUPP: "the kernel lacks a part of nf_tables: load nf_tables, nft_nat, nft_masq, nft_fib",
  EPROTONOSUPPORT: "the kernel lacks nf_tables: load the module nf_tables",
};

let symbols: Symbols<typeof SYMBOLS> | undefined;

function libnftables(): Symbols<typeof SYMBOLS> {
  return symbols ??= openLibrary("libnftables.so.1", SYMBOLS, {
    mend: "install libnftables1 (Debian, Ubuntu) or nftables (Fedora, Arch, Alpine)",
  });
}

function refusedBy(action: string, report: string): NftablesError {
  const first = report.split("\n", 1)[0]!.replace(/^.*?Error: /, "");
  const code = CODES.find(([text]) => first.includes(text))?.[1];
  const message = `nftables: cannot ${action}: ${first || "no reason given"}`;
  return new NftablesError(message, { code, report, mend: code && MENDS[code] });
}

/** How `run` prints. */
export type NftOutput = "text" | "json";

const OUTPUT_FLAGS: Readonly<Record<NftOutput, number>> = {
  text: Nft.NFT_CTX_OUTPUT_NUMERIC_PROTO,
  json: Nft.NFT_CTX_OUTPUT_NUMERIC_PROTO | Nft.NFT_CTX_OUTPUT_JSON,
};

/**
 * A libnftables context. Its netlink socket belongs to the network namespace in which the
 * context was opened, wherever the thread goes later.
 */
export class Nftables implements Disposable {
  #context: Deno.PointerValue;

  private constructor(context: Deno.PointerValue) {
    this.#context = context;
  }

  /**
   * Opens a context in the current network namespace.
   *
   * @throws {TapkitError} when libnftables is not installed
   */
  static open(): Nftables {
    const library = libnftables();
    const context = library.nft_ctx_new(Nft.NFT_CTX_DEFAULT);
    if (context === null) throw new TapkitError("libnftables gave no context");
    // The library opens its socket without SOCK_CLOEXEC.
    closeSocketsOnExec();
    library.nft_ctx_buffer_output(context);
    library.nft_ctx_buffer_error(context);
    return new Nftables(context);
  }

  /**
   * Runs commands as one transaction: all of them take effect, or none.
   *
   * Equivalent to: `nft -f -`, with `-j` for `json`
   *
   * @param commands in nft's language, built from validated values only
   * @param action what errors say was attempted: `"add the rules of web/eth0"`
   * @returns what the commands print
   * @throws {NftablesError}
   */
  run(commands: string, action: string, output: NftOutput = "text"): string {
    const library = libnftables();
    library.nft_ctx_output_set_flags(this.#context, OUTPUT_FLAGS[output]);
    const failed = library.nft_run_cmd_from_buffer(this.#context, cstr(commands)) !== 0;
    // Reading a buffer empties it.
    const report = text(library.nft_ctx_get_error_buffer(this.#context));
    const printed = text(library.nft_ctx_get_output_buffer(this.#context));
    if (failed) throw refusedBy(action, report);
    return printed;
  }

  [Symbol.dispose](): void {
    if (this.#context === null) return;
    libnftables().nft_ctx_free(this.#context);
    this.#context = null;
  }
}

function text(pointer: Deno.PointerValue): string {
  return pointer === null ? "" : new Deno.UnsafePointerView(pointer).getCString();
}

/** Keeps sockets from children, whoever opened them; standard input, output and error apart. */
function closeSocketsOnExec(): void {
  for (const { name } of Deno.readDirSync("/proc/self/fd")) {
    const fd = Number(name);
    // The descriptor that the directory was read by is listed too, and closed by now.
    const flags = libc().fcntl(fd, F_GETFD, 0);
    if (fd <= 2 || flags === -1 || (flags & FD_CLOEXEC) !== 0) continue;
    if (!Deno.readLinkSync(`/proc/self/fd/${fd}`).startsWith("socket:")) continue;
    syscall("fcntl", `descriptor ${fd}`, () => libc().fcntl(fd, F_SETFD, FD_CLOEXEC));
  }
}
