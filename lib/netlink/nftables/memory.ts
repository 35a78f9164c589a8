/**
 * What was read of nf_tables, for as long as the kernel says that nothing of it has changed.
 *
 * @module
 */

import { failedWith } from "../../sys/libc.ts";
import type { NetlinkConnection } from "../connection.ts";
import type { Subject } from "../errors.ts";
import { AF } from "../message.ts";
import { nfgenmsg, NFGENMSG_LEN } from "../nfnetlink.ts";
import type { BatchedRequest } from "../requests.ts";
import { Decoder } from "../wire.ts";
import { NFTA_GEN } from "./constants.ts";
import type { NftSet } from "./elements.ts";
import { commit, lookUp, readAttributes } from "./objects.ts";

/**
 * Remembers what was read of the nf_tables of one network namespace.
 *
 * The kernel counts the transactions of a namespace; the count is its generation. A transaction of
 * {@linkcode change} happens in the generation that is remembered or not at all, so what it does not
 * concern is as remembered afterwards too.
 */
export class NftMemory {
  readonly nl: NetlinkConnection;
  #generation: number | undefined;
  readonly #known = new Map<string, unknown>();

  /** @param nl its caller closes it */
  constructor(nl: NetlinkConnection) {
    this.nl = nl;
  }

  /** Asks the kernel for the generation, and forgets what is of an earlier one. */
  refresh(): void {
    const generation = readGeneration(this.nl);
    if (generation === undefined || generation !== this.#generation) this.forget();
    this.#generation = generation;
  }

  forget(): void {
    this.#generation = undefined;
    this.#known.clear();
  }

  /** What `read` returned in this generation, as of the last {@linkcode refresh}. */
  recall<T>(key: string, read: () => T): T {
    if (this.#known.has(key)) return this.#known.get(key) as T;
    const value = read();
    if (this.#generation !== undefined) this.#known.set(key, value);
    return value;
  }

  /**
   * Makes changes, all of them or none.
   *
   * @param concerned the keys of what they change
   * @throws {NetlinkError} ERESTART when another transaction came first
   */
  change(
    requests: readonly BatchedRequest[],
    concerned: readonly string[],
    subject: Subject,
  ): void {
    if (requests.length === 0) return;
    const generation = this.#generation;
    try {
      commit(this.nl, requests, subject, generation);
    } catch (error) {
      if (failedWith(error, "ERESTART")) this.forget();
      throw error;
    }
    for (const key of concerned) this.#known.delete(key);
    // The kernel counts from 1, and on from 0 too.
    if (generation !== undefined) this.#generation = (generation + 1) % 2 ** 32 || 1;
  }
}

/** The key by which all elements of a set are remembered. */
export function setKey({ family, table, name }: NftSet): string {
  return `elements of ${family} ${table} ${name}`;
}

/** The kernel's count of transactions; undefined where it has no nf_tables. */
function readGeneration(nl: NetlinkConnection): number | undefined {
  const everywhere = nfgenmsg(AF.UNSPEC).finish();
  const found = lookUp(nl, "GETGEN", everywhere, "the generation of nf_tables");
  if (found === undefined) return undefined;
  return readAttributes(new Decoder(found.payload).skip(NFGENMSG_LEN))(NFTA_GEN.ID)?.asU32be();
}
