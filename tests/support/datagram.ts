/**
 * Datagrams for the tests, run inside a throwaway machine:
 * `serve PORT TEXT` answers each with TEXT and the sender; `ask ADDRESS PORT` sends each line of
 * its standard input from one socket and prints what comes back, but for late answers to earlier lines.
 */

import { createSocket } from "node:dgram";
import { createInterface } from "node:readline";
import process from "node:process";

const [mode, ...args] = Deno.args;
if (mode === "serve") serve(Number(args[0]), args[1] ?? "");
else if (mode === "ask") ask(args[0] ?? "", Number(args[1]));
else throw new Error("serve PORT TEXT, or ask ADDRESS PORT");

function serve(port: number, text: string): void {
  const socket = createSocket({ type: ipv6() ? "udp6" : "udp4" });
  socket.on("message", (data, from) => {
    const address = from.address.replace(/^::ffff:/, "");
    const [, number = ""] = data.toString().split("\n");
    socket.send(`${text} ${address} ${from.port}\n${number}`, from.port, from.address);
  });
  socket.bind(port, () => console.log("ready"));
}

function ask(address: string, port: number): void {
  const socket = createSocket({ type: address.includes(":") ? "udp6" : "udp4" });
  let asked = 0;
  socket.on("message", (data) => {
    const [text, number] = data.toString().split("\n");
    if (number === String(asked)) console.log(text);
  });
  // ECONNREFUSED by ICMP: no answer, which is what the asker sees anyway.
  socket.on("error", () => {});
  socket.bind(0, () => console.log("ready"));
  createInterface({ input: process.stdin })
    .on("line", (line) => socket.send(`${line}\n${++asked}`, port, address))
    .on("close", () => Deno.exit(0));
}

function ipv6(): boolean {
  try {
    return Deno.readTextFileSync("/proc/sys/net/ipv6/conf/all/disable_ipv6").trim() === "0";
  } catch {
    return false;
  }
}
