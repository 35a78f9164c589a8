/**
 * How long a guest waits for serve-dhcp: opens the TAP of an attached VM as a VMM does, sends
 * DISCOVERs and prints, in microseconds and one a line, when each OFFER came.
 *
 * Arguments: the path of the VM's namespace, its TAP, its MAC, how many.
 */

import { buildUdpFrame } from "../../lib/dhcp/frame.ts";
import { DhcpOption, DhcpType } from "../../lib/dhcp/options.ts";
import { BootpOp, encodeDhcp } from "../../lib/dhcp/packet.ts";
import { parseMac } from "../../lib/inet/mac.ts";
import { Epoll } from "../../lib/sys/epoll.ts";
import { readFd, tolerate, writeFd } from "../../lib/sys/libc.ts";
import { openNetns, withNetns } from "../../lib/sys/netns.ts";
import { openTap } from "../../lib/sys/tap.ts";

const BOOTPS = 67;
const BOOTPC = 68;
/** Where the transaction is in a frame: Ethernet, IPv4 and UDP headers, then 4 bytes. */
const XID_OFFSET = 14 + 20 + 8 + 4;
const PATIENCE_MS = 2000;

function discover(mac: string, xid: number): Uint8Array<ArrayBuffer> {
  const none = "0.0.0.0";
  return buildUdpFrame({
    sourceMac: parseMac(mac),
    destinationMac: new Uint8Array(6).fill(0xff),
    sourceIp: none,
    destinationIp: "255.255.255.255",
    sourcePort: BOOTPC,
    destinationPort: BOOTPS,
    payload: encodeDhcp({
      op: BootpOp.REQUEST,
      xid,
      secs: 0,
      hops: 0,
      broadcast: false,
      ciaddr: none,
      yiaddr: none,
      siaddr: none,
      giaddr: none,
      chaddr: mac,
      sname: "",
      file: "",
      options: new Map([[DhcpOption.MESSAGE_TYPE, Uint8Array.of(DhcpType.DISCOVER)]]),
    }),
  });
}

/**
 * Waits for the answer to a transaction; returns whether it came. It sleeps meanwhile, as a guest does: who
 * waits awake keeps a processor from who answers.
 */
async function awaitOffer(fd: number, xid: number, until: number): Promise<boolean> {
  const buffer = new Uint8Array(2048);
  while (performance.now() < until) {
    const size = tolerate(["EAGAIN"], () => readFd(fd, buffer));
    if (size === undefined) await epoll.wait(Math.ceil(until - performance.now()));
    else if (size > XID_OFFSET + 4 && new DataView(buffer.buffer).getUint32(XID_OFFSET) === xid) {
      return true;
    }
  }
  return false;
}

const [path = "", tap = "", mac = "", count = "0"] = Deno.args;
const fd = withNetns(openNetns(path), () => openTap({ name: tap }));
using epoll = new Epoll();
epoll.add(fd);
for (let xid = 1; xid <= Number(count); xid++) {
  const frame = discover(mac, xid);
  const start = performance.now();
  writeFd(fd, frame);
  if (!await awaitOffer(fd, xid, start + PATIENCE_MS)) continue;
  console.log(((performance.now() - start) * 1000).toFixed(0));
  await new Promise((resolve) => setTimeout(resolve, 2));
}
