/**
 * What a program and the kernel say to each other over netlink, by strace.
 *
 * @module
 */

/** A datagram: which way it went, and its bytes in hexadecimal. */
export interface Datagram {
  readonly sent: boolean;
  readonly hex: string;
}

/** Runs a program to its end and returns what it printed. */
export function run(command: string, args: readonly string[]): string {
  const { success, stdout, stderr } = new Deno.Command(command, { args: [...args] }).outputSync();
  const decoder = new TextDecoder();
  if (!success) throw new Error(`${command} ${args.join(" ")}: ${decoder.decode(stderr)}`);
  return decoder.decode(stdout).trim();
}

/** The datagrams of a command in a throwaway namespace, after a shell script prepared it. */
export function trace(setup: string, command: string): Datagram[] {
  const file = Deno.makeTempFileSync();
  try {
    const strace =
      `strace -o ${file} -e trace=sendmsg,recvmsg,sendto,recvfrom -e read=all -e write=all`;
    run("unshare", [
      "--net",
      "--mount",
      "sh",
      "-ec",
      `mount -t tmpfs none /run; ${setup}; ${strace} ${command} > /dev/null`,
    ]);
    return datagrams(Deno.readTextFileSync(file));
  } finally {
    Deno.removeSync(file);
  }
}

/** The datagrams in strace's hex dumps, each with its direction. */
function datagrams(trace: string): Datagram[] {
  const found: { sent: boolean; hex: string }[] = [];
  let sent = false;
  for (const line of trace.split("\n")) {
    if (/^(send|recv)/.test(line)) sent = line.startsWith("send");
    const dump = /^ \| ([0-9a-f]{5}) {2}((?:[0-9a-f]{2} {1,2}){1,16})/.exec(line);
    if (dump === null) continue;
    if (dump[1] === "00000") found.push({ sent, hex: "" });
    found.at(-1)!.hex += dump[2]!.replaceAll(" ", "");
  }
  return found;
}
