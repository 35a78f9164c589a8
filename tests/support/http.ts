/** A small HTTP server in a machine, and reaching it from others. */

import type { Machine } from "./machine.ts";

/** Serves the machine's name on a port, until the machine ends. */
export async function serveName(machine: Machine, port = 80): Promise<void> {
  await machine.sh(
    `mkdir -p /tmp/www; echo ${machine.name} >/tmp/www/index.html
     busybox httpd -p ${port} -h /tmp/www`,
  );
}

/** The name that is served at an address, or `"closed"` when nobody answers within 1.5 seconds. */
export async function fetchName(from: Machine, address: string, port = 80): Promise<string> {
  const { code, stdout } = await from.run("timeout", [
    ...["1.5", "bash", "-c"],
    `exec 3<>/dev/tcp/${address}/${port} && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3`,
  ]);
  return code === 0 ? stdout.split("\r\n\r\n")[1]?.trim() ?? "" : "closed";
}
