/**
 * The image of a sandbox: a container that does nothing but keep its network namespace. It is made
 * here, of one file, so that no registry is needed.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import { docker, type DockerRun, type Engine, inspect } from "./docker.ts";

/** The image's name. Another program has another version. */
export const SANDBOX_IMAGE = "tapkit-sandbox:1";
/** The program in it. */
export const SANDBOX_PROGRAM = "/wait";

/** What the program does, in machine code: it waits for signals, for ever. */
const CODE: Readonly<Record<string, { readonly machine: number; readonly code: Uint8Array }>> = {
  amd64: {
    machine: 62, // EM_X86_64
    code: bytes(
      "b8 22 00 00 00", // mov  eax, 34      pause
      "0f 05", //          syscall
      "eb f7", //          jmp  -9           again
    ),
  },
  arm64: {
    machine: 183, // EM_AARCH64
    code: bytes(
      "00 00 80 d2", // mov  x0, #0        ppoll(NULL, 0, NULL, NULL): no descriptors,
      "01 00 80 d2", // mov  x1, #0
      "02 00 80 d2", // mov  x2, #0        no end
      "03 00 80 d2", // mov  x3, #0
      "28 09 80 d2", // mov  x8, #73       ppoll; there is no pause
      "01 00 00 d4", // svc  #0
      "fa ff ff 17", // b    -24           again
    ),
  },
};

const EHDR_SIZE = 64; // Elf64_Ehdr
const PHDR_SIZE = 56; // Elf64_Phdr
const BASE = 0x400000n;

/**
 * A static program that waits for ever, as an ELF file of some 150 bytes: a header, one segment that is
 * the whole file, and the code.
 *
 * @param arch as Go names it: `"amd64"`, `"arm64"`
 * @throws {TapkitError} for another one
 */
export function sandboxProgram(arch: string): Uint8Array<ArrayBuffer> {
  const { machine, code } = CODE[arch] ?? {};
  if (machine === undefined || code === undefined) {
    throw new TapkitError(`tapkit has no sandbox image for the architecture ${arch}`, {
      mend: "name an image whose program keeps running with --image",
    });
  }
  const headers = EHDR_SIZE + PHDR_SIZE;
  const file = new Uint8Array(headers + code.length);
  const view = new DataView(file.buffer);
  const size = BigInt(file.length);
  // e_ident: magic, 64 bits, little-endian, version 1, System V.
  file.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setUint16(16, 2, true); // e_type: ET_EXEC
  view.setUint16(18, machine, true); // e_machine
  view.setUint32(20, 1, true); // e_version
  view.setBigUint64(24, BASE + BigInt(headers), true); // e_entry
  view.setBigUint64(32, BigInt(EHDR_SIZE), true); // e_phoff
  view.setUint16(52, EHDR_SIZE, true); // e_ehsize
  view.setUint16(54, PHDR_SIZE, true); // e_phentsize
  view.setUint16(56, 1, true); // e_phnum
  view.setUint32(64, 1, true); // p_type: PT_LOAD
  view.setUint32(68, 5, true); // p_flags: readable, executable
  view.setBigUint64(80, BASE, true); // p_vaddr
  view.setBigUint64(88, BASE, true); // p_paddr
  view.setBigUint64(96, size, true); // p_filesz
  view.setBigUint64(104, size, true); // p_memsz
  view.setBigUint64(112, 0x1000n, true); // p_align
  file.set(code, headers);
  return file;
}

/**
 * Makes sure that the engine has the sandbox's image.
 *
 * Equivalent to: `tar -c wait | docker import - tapkit-sandbox:1`
 */
export async function ensureSandboxImage({ arch }: Engine, run: DockerRun): Promise<void> {
  if (await inspect("image", SANDBOX_IMAGE, run) !== undefined) return;
  const input = tarOf(SANDBOX_PROGRAM.slice(1), sandboxProgram(arch));
  await docker(["import", "--message", "tapkit's sandbox", "-", SANDBOX_IMAGE], { ...run, input });
}

const TAR_BLOCK = 512;

/** A tar archive of one executable file (POSIX ustar). */
function tarOf(name: string, content: Uint8Array): Uint8Array {
  const blocks = 1 + Math.ceil(content.length / TAR_BLOCK);
  // Two empty blocks end an archive.
  const archive = new Uint8Array((blocks + 2) * TAR_BLOCK);
  const octal = (value: number, width: number) => value.toString(8).padStart(width, "0");
  const put = (offset: number, text: string) => archive.set(new TextEncoder().encode(text), offset);
  put(0, name);
  put(100, octal(0o755, 7)); // mode
  put(108, octal(0, 7)); // uid
  put(116, octal(0, 7)); // gid
  put(124, octal(content.length, 11)); // size
  put(136, octal(0, 11)); // mtime
  put(148, " ".repeat(8)); // the checksum is taken with spaces in its place
  put(156, "0"); // a regular file
  put(257, "ustar\0" + "00");
  const sum = archive.subarray(0, TAR_BLOCK).reduce((total, byte) => total + byte, 0);
  put(148, `${octal(sum, 6)}\0 `);
  archive.set(content, TAR_BLOCK);
  return archive;
}

function bytes(...lines: readonly string[]): Uint8Array {
  return Uint8Array.fromHex(lines.join("").replaceAll(" ", ""));
}
