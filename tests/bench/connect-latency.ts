/**
 * How long it takes to connect: `connect-latency.ts ADDRESS PORT COUNT` prints the microseconds of
 * each `connect(2)`, IPv4 TCP, one a line. `connect-latency.ts serve PORT` accepts and closes.
 *
 * @module
 */

const AF_INET = 2; // linux/socket.h
const SOCK_STREAM = 1;

/** `struct sockaddr_in` (linux/in.h). */
function sockaddrIn(address: string, port: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, AF_INET, true);
  view.setUint16(2, port);
  bytes.set(address.split(".").map(Number), 4);
  return bytes;
}

function measure(address: string, port: number, count: number): number[] {
  const libc = Deno.dlopen("libc.so.6", {
    // int domain, int type, int protocol
    socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
    // int fd, const struct sockaddr *addr, socklen_t len
    connect: { parameters: ["i32", "buffer", "u32"], result: "i32" },
    // int fd
    close: { parameters: ["i32"], result: "i32" },
  });
  const target = sockaddrIn(address, port);
  return Array.from({ length: count }, () => {
    const fd = libc.symbols.socket(AF_INET, SOCK_STREAM, 0);
    const start = performance.now();
    const failed = libc.symbols.connect(fd, target, target.length);
    const us = 1000 * (performance.now() - start);
    libc.symbols.close(fd);
    if (failed !== 0) throw new Error(`${address}:${port} cannot be connected to`);
    return us;
  });
}

if (Deno.args[0] === "serve") {
  const listener = Deno.listen({ hostname: "0.0.0.0", port: Number(Deno.args[1]) });
  console.log("ready");
  for await (const connection of listener) connection.close();
} else {
  const [address = "", port = "", count = ""] = Deno.args;
  console.log(measure(address, Number(port), Number(count)).join("\n"));
}
