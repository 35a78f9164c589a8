/**
 * Carries frames between a VM's TAP and a TAP that is the network card of a namespace, as a VMM
 * does between the TAP and its guest. Run by guest-netns.ts:
 * `carrier.ts VM-NETNS-PATH VM-TAP GUEST-NETNS-PATH GUEST-TAP`
 *
 * Prints `ready`. Lines of standard input: `send HEX` puts a frame on the VM's TAP as if the
 * guest had sent it; `sniff on` and `sniff off` have every frame printed as `from-guest HEX` or
 * `to-guest HEX`. It ends with its standard input.
 */

import { createInterface } from "node:readline";
import process from "node:process";
import { Epoll } from "../../lib/sys/epoll.ts";
import { closeFd, failedWith, readFd, writeFd } from "../../lib/sys/libc.ts";
import { openNetns, withNetns } from "../../lib/sys/netns.ts";
import { openTap } from "../../lib/sys/tap.ts";
import { SyscallError } from "../../lib/errors.ts";

/** Longer than any frame of the largest MTU a TAP takes. */
const FRAME_SIZE = 65_600;

const [vmNetns, vmTap, guestNetns, guestTap] = Deno.args;
if (guestTap === undefined) throw new Error("four arguments are needed");

const vm = open(vmNetns!, vmTap!);
const guest = open(guestNetns!, guestTap);
const buffer = new Uint8Array(FRAME_SIZE);
let sniffing = false;

using epoll = new Epoll();
epoll.add(vm);
epoll.add(guest);
let over = false;

const input = createInterface({ input: process.stdin });
input.on("line", (line) => {
  const [word, rest = ""] = line.split(" ");
  if (word === "send") deliver(vm, Uint8Array.fromHex(rest), "from-guest");
  else if (word === "sniff") sniffing = rest === "on";
  else throw new Error(`unknown: ${line}`);
  console.log(`done ${line.slice(0, 40)}`);
});
input.on("close", () => {
  over = true;
  epoll.wake();
});
console.log("ready");

while (!over) {
  for (const fd of await epoll.wait(-1)) {
    const [to, direction] = fd === vm ? [guest, "to-guest"] : [vm, "from-guest"];
    carry(fd, to as number, direction as string);
  }
}
closeFd(vm);
closeFd(guest);

function open(netnsPath: string, name: string): number {
  using netns = openNetns(netnsPath);
  return withNetns(netns, () => openTap({ name }));
}

/** Carries what is there now. */
function carry(from: number, to: number, direction: string): void {
  while (true) {
    let length: number;
    try {
      length = readFd(from, buffer);
    } catch (error) {
      if (failedWith(error, "EAGAIN")) return;
      // The TAP was deleted (EBADFD, EIO) under the VMM, as a removal does.
      if (error instanceof SyscallError) return void epoll.remove(from);
      throw error;
    }
    deliver(to, buffer.slice(0, length), direction);
  }
}

function deliver(to: number, frame: Uint8Array<ArrayBuffer>, direction: string): void {
  if (sniffing) console.log(`${direction} ${frame.toHex()}`);
  try {
    writeFd(to, frame);
  } catch (error) {
    // A link that is down, full or gone drops frames.
    if (!(error instanceof SyscallError)) throw error;
  }
}
