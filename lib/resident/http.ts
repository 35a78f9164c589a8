/**
 * What every request and answer has in common: reading bodies within limits, and errors as answers.
 *
 * @module
 */

import { AddressHeldError } from "../cni/types.ts";
import {
  asError,
  ConflictError,
  describe,
  InputError,
  InterruptedError,
  TapkitError,
  type TapkitErrorOptions,
} from "../errors.ts";
import { PortConflictError } from "../inet/ports.ts";

/** The most bytes of a body, by its content type. */
export const BODY_LIMITS: Readonly<Record<string, number>> = {
  "application/json": 1024 * 1024,
  "application/jsonl": 16 * 1024 * 1024,
};

/**
 * So many bytes beyond the limit are read and dropped: a client that is still sending when the connection
 * is closed may not see the answer.
 */
const LINGER = 1024 * 1024;

/** An answer with a status of its own. Clients see a {@linkcode TapkitError}. */
export class HttpError extends TapkitError {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;

  constructor(
    status: number,
    message: string,
    { headers = {}, ...options }: TapkitErrorOptions & { headers?: Record<string, string> } = {},
  ) {
    super(message, options);
    this.status = status;
    this.headers = headers;
  }
}

/** The HTTP status for an error. */
export function statusOf(error: unknown): number {
  if (error instanceof HttpError) return error.status;
  if (error instanceof InputError) return 400;
  if (error instanceof InterruptedError) return 503;
  const conflict = error instanceof PortConflictError || error instanceof AddressHeldError ||
    error instanceof ConflictError;
  return conflict ? 409 : 500;
}

/** An error as it is sent. */
export interface Failure {
  /** `"PortConflictError"`. */
  readonly class: string;
  readonly message: string;
  readonly mend?: string;
  /** The VM or the route that it is about. */
  readonly object?: string;
  /** The class's own fields. */
  readonly fields?: Readonly<Record<string, unknown>>;
}

/** Fields that are sent elsewhere, or not at all. */
const OTHER_FIELDS = ["name", "mend", "message", "cause", "stack", "errors", "status", "headers"];

/** @param object the VM or the route that the error is about */
export function failureOf(thrown: unknown, object?: string): Failure {
  const error = asError(thrown);
  const ours = error instanceof TapkitError;
  const fields = ours
    ? Object.entries(error).filter(([name, value]) =>
      !OTHER_FIELDS.includes(name) && value !== undefined
    )
    : [];
  return {
    class: ours ? error.name : "Error",
    message: ours ? error.message : describe(error),
    ...ours && error.mend !== undefined ? { mend: error.mend } : {},
    ...object === undefined ? {} : { object },
    ...fields.length === 0 ? {} : { fields: Object.fromEntries(fields) },
  };
}

/** An error as an answer. */
export function errorResponse(error: unknown, object: string | undefined): Response {
  const status = statusOf(error);
  const headers = error instanceof HttpError ? error.headers : {};
  return Response.json({ error: failureOf(error, object) }, { status, headers });
}

/**
 * Reads a body.
 *
 * @throws {HttpError} 413 beyond the limit of its type, without reading the rest; 408 when it has not
 * arrived within `timeoutMs`
 */
export async function readBody(
  request: Request,
  type: string,
  { timeoutMs, signal }: { readonly timeoutMs: number; readonly signal: AbortSignal },
): Promise<string> {
  const limit = BODY_LIMITS[type]!;
  const close = { connection: "close" };
  const tooLarge = () =>
    new HttpError(413, `the body is larger than ${limit} bytes`, {
      mend: type === "application/json" ? undefined : "send several requests",
      headers: close,
    });
  if (Number(request.headers.get("content-length")) > limit + LINGER) throw tooLarge();
  if (request.body === null) return "";
  const reader = request.body.getReader();
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(() => {
    const message = `the body did not arrive within ${timeoutMs / 1000} seconds`;
    late.reject(new HttpError(408, message, { headers: close }));
  }, timeoutMs);
  const abort = () => late.reject(signal.reason);
  signal.addEventListener("abort", abort);
  late.promise.catch(() => {});
  const chunks: Uint8Array[] = [];
  let length = 0;
  try {
    while (true) {
      const { done, value } = await Promise.race([reader.read().catch(torn), late.promise]);
      if (done) break;
      length += value.length;
      if (length > limit + LINGER) break;
      if (length <= limit) chunks.push(value);
    }
    if (length > limit) throw tooLarge();
  } catch (error) {
    reader.cancel().catch(() => {});
    throw error;
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", abort);
  }
  return await new Blob(chunks as Uint8Array<ArrayBuffer>[]).text();
}

/** A body that is not what HTTP says, or whose client went away. */
function torn(cause: unknown): never {
  throw new InputError(`the body cannot be read: ${describe(cause)}`, { cause });
}

/** Parses JSON. `where` begins the message of the error. */
export function parseJson(text: string, where: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new InputError(`${where} is not JSON: ${describe(cause)}`, { cause });
  }
}
