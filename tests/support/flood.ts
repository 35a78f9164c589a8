/**
 * Many connections and datagrams, run inside a throwaway machine:
 * `serve PORT` accepts all connections, keeps them and answers each byte; `open ADDRESS PORT COUNT`
 * opens so many, each of which must be answered, and keeps them; `storm ADDRESS PORT` opens as many
 * as it can; `datagrams PREFIX` sends to the addresses of a prefix in turn, to another port each
 * time.
 *
 * Each prints `ready`, and ends with its standard input; `open` prints then how long it took.
 */

import process from "node:process";
import { bigIntToIp, ipToBigInt, ipToBytes, parseCidr } from "../../lib/inet/ip.ts";
import { Socket } from "../../lib/sys/socket.ts";

const [AF_INET, AF_INET6, SOCK_DGRAM] = [2, 10, 2];
const [mode, address = "", port = "", count = ""] = Deno.args;
const held: Deno.Conn[] = [];

process.stdin.on("end", () => Deno.exit(0));
process.stdin.resume();
if (mode === "serve") await serve(Number(address));
else if (mode === "open") await open(Number(count));
else if (mode === "storm") storm();
else if (mode === "datagrams") await datagrams(address);
else throw new Error(`unknown: ${mode}`);

async function serve(number: number): Promise<void> {
  const listener = Deno.listen({ hostname: "::", port: number });
  console.log("ready");
  for await (const connection of listener) echo(connection).catch(() => {});
}

async function echo(connection: Deno.Conn): Promise<void> {
  using _ = connection;
  const byte = new Uint8Array(1);
  while (await connection.read(byte) !== null) await connection.write(byte);
}

async function open(total: number): Promise<void> {
  console.log("ready");
  const started = performance.now();
  let next = 0;
  let slowest = 0;
  const one = async () => {
    while (next++ < total) {
      const began = performance.now();
      const connection = await Deno.connect({ hostname: address, port: Number(port) });
      held.push(connection);
      await connection.write(new Uint8Array(1));
      await connection.read(new Uint8Array(1));
      slowest = Math.max(slowest, performance.now() - began);
    }
  };
  await Promise.all(Array.from({ length: 100 }, one));
  const took = Math.round(performance.now() - started);
  console.log(`opened ${held.length} in ${took} ms, slowest ${Math.round(slowest)} ms`);
}

function storm(): void {
  console.log("ready");
  const one = async () => {
    while (true) {
      try {
        held.push(await Deno.connect({ hostname: address, port: Number(port) }));
      } catch {
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    }
  };
  // Those that are dropped wait for a second.
  for (let index = 0; index < 1000; index++) one();
}

async function datagrams(prefix: string): Promise<void> {
  const { family, network, prefixLength } = parseCidr(prefix);
  using socket = Socket.open(family === 4 ? AF_INET : AF_INET6, SOCK_DGRAM, 0, "udp socket");
  const first = ipToBigInt(network);
  const size = 1n << BigInt(Math.min(16, (family === 4 ? 32 : 128) - prefixLength));
  console.log("ready");
  for (let index = 0;; index++) {
    const to = new Uint8Array(family === 4 ? 16 : 28);
    const view = new DataView(to.buffer);
    view.setUint16(0, family === 4 ? AF_INET : AF_INET6, true);
    view.setUint16(2, 1 + index % 65_535);
    to.set(ipToBytes(bigIntToIp(first + BigInt(index) % size, family)), family === 4 ? 4 : 8);
    try {
      socket.send(new Uint8Array(1), to);
    } catch {
      // Unreachable, or the queue is full.
    }
    if (index % 256 === 0) await new Promise((resolve) => setTimeout(resolve, 1));
  }
}
