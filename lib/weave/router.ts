/**
 * The control API of a Weave Net router. It listens on this host's loopback address only.
 *
 * @module
 */

import { describe, WeaveError } from "../errors.ts";
import { parseOwners, parseReport, type WeaveReport } from "./report.ts";

const HOSTNAME = "127.0.0.1";
const PORT = 6784;

/** How long the router may take to answer. It holds back answers that it has not got yet. */
const TIMEOUT_MS = 5000;

/** How to ask the router. */
export interface RouterOptions {
  /** In milliseconds; 5000 unless given. */
  readonly timeoutMs?: number;
  /** Aborted, it ends the wait; its reason is thrown. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * The router's state.
 *
 * Equivalent to: `curl -H 'Accept: application/json' http://127.0.0.1:6784/report`
 *
 * @throws {WeaveError} without a status when it does not answer
 */
export async function report(options: RouterOptions = {}): Promise<WeaveReport> {
  const text = await ask("GET", "/report", options);
  const read = parseReport(text);
  if (read !== undefined) return read;
  throw new WeaveError(`what answers at ${HOSTNAME}:${PORT} is not a Weave Net router`);
}

/**
 * Who owns addresses of this router: container ids, and `weave:expose` for the bridge. Addresses
 * are with their prefix lengths.
 *
 * Equivalent to: `curl http://127.0.0.1:6784/ip`
 *
 * @throws {WeaveError} without a status when it does not answer
 */
export async function ownerAddresses(
  options: RouterOptions = {},
): Promise<ReadonlyMap<string, readonly string[]>> {
  return parseOwners(await ask("GET", "/ip", options));
}

/**
 * Takes an address for a container, so that its next ADD gets that one. Twice is fine.
 *
 * Equivalent to: `curl -X PUT http://127.0.0.1:6784/ip/ID/ADDRESS/LENGTH`
 *
 * @param cidr with its prefix length: `"10.32.0.5/12"`
 * @throws {WeaveError} with status 400 when another one owns it, or it is not in the range; without a
 * status when the router does not answer
 */
export async function claimAddress(
  containerId: string,
  cidr: string,
  options: RouterOptions = {},
): Promise<void> {
  const path = `/ip/${encodeURIComponent(containerId)}/${cidr}`;
  if (await ask("PUT", path, options) === "cancelled") {
    throw new WeaveError(`Weave Net does not give out ${cidr}: it is leaving the network`);
  }
}

/**
 * Gives back all addresses of a container. One that has none is fine.
 *
 * Equivalent to: `curl -X DELETE http://127.0.0.1:6784/ip/ID`
 */
export async function releaseAddresses(
  containerId: string,
  options: RouterOptions = {},
): Promise<void> {
  try {
    await ask("DELETE", `/ip/${encodeURIComponent(containerId)}`, options);
  } catch (error) {
    // It answers so for a container that it does not know.
    if (!(error instanceof WeaveError && error.status === 400)) throw error;
  }
}

/**
 * Connects to these peers, and to those that they know, and to no others. The router remembers them.
 *
 * Equivalent to: `curl -d peer=ADDRESS -d replace=true http://127.0.0.1:6784/connect`
 */
export async function connect(
  peers: readonly string[],
  options: RouterOptions = {},
): Promise<void> {
  await ask("POST", "/connect", { ...options, form: form(peers, { replace: "true" }) });
}

/**
 * Does not connect to these peers any more. The connections that there are stay.
 *
 * Equivalent to: `curl -d peer=ADDRESS http://127.0.0.1:6784/forget`
 */
export async function forget(
  peers: readonly string[],
  options: RouterOptions = {},
): Promise<void> {
  await ask("POST", "/forget", { ...options, form: form(peers, {}) });
}

/**
 * Gives this router's part of the range to another peer. It gives out no address afterwards.
 *
 * Equivalent to: `curl -X DELETE http://127.0.0.1:6784/peer`
 */
export async function leave(options: RouterOptions = {}): Promise<void> {
  await ask("DELETE", "/peer", options);
}

function form(peers: readonly string[], more: Readonly<Record<string, string>>): string {
  const fields = [...peers.map((peer) => ["peer", peer]), ...Object.entries(more)];
  return new URLSearchParams(fields).toString();
}

/**
 * Sends one request and returns the answer's body.
 *
 * HTTP is spoken here, because fetch would go through the proxy that the environment names.
 */
async function ask(
  method: string,
  path: string,
  { timeoutMs = TIMEOUT_MS, signal, form = "" }: RouterOptions & { readonly form?: string },
): Promise<string> {
  signal?.throwIfAborted();
  const request = [
    `${method} ${path} HTTP/1.0`,
    `Host: ${HOSTNAME}:${PORT}`,
    "Accept: application/json",
    ...form === "" ? [] : ["Content-Type: application/x-www-form-urlencoded"],
    `Content-Length: ${form.length}`,
    "",
    form,
  ].join("\r\n");
  const answer = await exchange(request, timeoutMs, signal);
  const [head = "", ...rest] = answer.split("\r\n\r\n");
  const body = rest.join("\r\n\r\n").trim();
  const status = Number(/^HTTP\/1\.\d (\d{3})/.exec(head)?.[1] ?? 0);
  if (status >= 200 && status < 300) return body;
  if (status === 0) throw new WeaveError("Weave Net's router broke off its answer");
  throw new WeaveError(`Weave Net refuses: ${body === "" ? `status ${status}` : body}`, { status });
}

async function exchange(
  request: string,
  timeoutMs: number,
  signal: AbortSignal | undefined,
): Promise<string> {
  let connection: Deno.TcpConn;
  try {
    connection = await Deno.connect({ hostname: HOSTNAME, port: PORT });
  } catch (cause) {
    throw new WeaveError(
      `Weave Net's router does not answer at ${HOSTNAME}:${PORT}: ${describe(cause)}`,
      {
        mend: "start it: docker start weave, or setup-weave, whose --check says what it lacks",
        cause,
      },
    );
  }
  let late = false;
  const close = () => {
    try {
      connection.close();
    } catch {
      // It is closed already.
    }
  };
  const timer = setTimeout(() => (late = true, close()), timeoutMs);
  signal?.addEventListener("abort", close);
  try {
    const writer = connection.writable.getWriter();
    await writer.write(new TextEncoder().encode(request));
    return await new Response(connection.readable).text();
  } catch (cause) {
    signal?.throwIfAborted();
    const message = late
      ? `Weave Net's router has not answered within ${timeoutMs / 1000} s`
      : `Weave Net's router broke off: ${describe(cause)}`;
    throw new WeaveError(message, { mend: "see setup-weave --check", cause });
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", close);
    close();
  }
}
