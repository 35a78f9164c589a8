/**
 * A machine's programs, in one process started inside the machine's network namespace: servers
 * that answer with their name and the client's address, and clients. Commands come as JSON lines
 * on standard input, each is answered by one JSON line; `peer.ts` is the other end.
 */

import type { Buffer } from "node:buffer";
import dgram from "node:dgram";
import net from "node:net";
import { createInterface } from "node:readline";
import process from "node:process";

interface Command {
  readonly id: number;
  readonly op: "serve" | "connect" | "say" | "send" | "close";
  readonly protocol?: "tcp" | "udp";
  readonly host?: string;
  readonly port?: number;
  /** Names a connection or a datagram socket that stays. */
  readonly handle?: string;
  readonly timeout?: number;
}

const name = process.argv[2] ?? "peer";
const connections = new Map<string, net.Socket>();
const datagramSockets = new Map<string, dgram.Socket>();

const answer = (address = "", port = 0) =>
  JSON.stringify({ server: name, client: address.replace(/^::ffff:/, ""), clientPort: port });

function serve({ protocol, host, port }: Command): Promise<string> {
  return new Promise((resolve, reject) => {
    if (protocol === "udp") {
      const type = host?.includes(":") ? "udp6" : "udp4";
      const socket = dgram.createSocket(type);
      socket.on("error", reject);
      socket.on("message", (_message, from) => {
        socket.send(answer(from.address, from.port), from.port, from.address);
      });
      socket.bind({ port: port!, address: host! }, () => resolve("listening"));
      return;
    }
    const server = net.createServer((socket) => {
      socket.on("error", () => socket.destroy());
      socket.write(`${answer(socket.remoteAddress, socket.remotePort)}\n`);
      socket.on("data", () => socket.write(`${answer(socket.remoteAddress, socket.remotePort)}\n`));
    });
    server.on("error", reject);
    server.listen({ port: port!, host: host! }, () => resolve("listening"));
  });
}

/** The next line of a connection, which may come in pieces. */
function nextLine(socket: net.Socket): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = "";
    const take = (data: Buffer) => {
      text += data.toString();
      if (!text.includes("\n")) return;
      socket.off("data", take);
      resolve(text.trim());
    };
    socket.once("error", reject);
    socket.on("data", take);
  });
}

async function connect({ host, port, handle }: Command): Promise<string> {
  const socket = net.connect({ host: host!, port: port! });
  socket.on("error", () => {});
  const line = await nextLine(socket);
  if (handle === undefined) socket.destroy();
  else connections.set(handle, socket);
  return line;
}

function say({ handle }: Command): Promise<string> {
  const socket = connections.get(handle!)!;
  const line = nextLine(socket);
  socket.write("again\n");
  return line;
}

function send({ host, port, handle = crypto.randomUUID() }: Command): Promise<string> {
  return new Promise((resolve, reject) => {
    let socket = datagramSockets.get(handle);
    if (socket === undefined) {
      socket = dgram.createSocket(host!.includes(":") ? "udp6" : "udp4");
      datagramSockets.set(handle, socket);
    }
    socket.removeAllListeners("message");
    socket.once("error", reject);
    socket.once("message", (data: Buffer) => resolve(data.toString()));
    socket.send("hello", port!, host!);
  });
}

function close({ handle }: Command): Promise<string> {
  connections.get(handle!)?.destroy();
  return Promise.resolve("closed");
}

const operations = { serve, connect, say, send, close };

async function run(command: Command): Promise<void> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const timeout = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error("timeout")), command.timeout ?? 5000);
  });
  try {
    const result = await Promise.race([operations[command.op](command), timeout]);
    console.log(JSON.stringify({ id: command.id, result }));
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    console.log(JSON.stringify({ id: command.id, error: code ?? message }));
  } finally {
    clearTimeout(timer);
  }
}

process.on("uncaughtException", () => {});
createInterface({ input: process.stdin })
  .on("line", (line) => void run(JSON.parse(line)))
  .on("close", () => process.exit(0));
console.log(JSON.stringify({ id: 0, result: "ready" }));
