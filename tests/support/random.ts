/** Pseudo-random numbers that are the same in every run: xorshift, 32 bits. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed | 1;
  }

  /** A whole number from 0 to below the limit. */
  below(limit: number): number {
    this.#state ^= this.#state << 13;
    this.#state ^= this.#state >>> 17;
    this.#state ^= this.#state << 5;
    return (this.#state >>> 0) % limit;
  }

  bytes(length: number): Uint8Array<ArrayBuffer> {
    return Uint8Array.from({ length }, () => this.below(256));
  }

  /** The same bytes, with a few of them changed and perhaps the end cut off. */
  damage(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
    const length = this.below(4) === 0 ? this.below(bytes.length + 1) : bytes.length;
    const damaged = bytes.slice(0, length);
    for (let count = this.below(8); count > 0 && length > 0; count--) {
      damaged[this.below(length)] = this.below(256);
    }
    return damaged as Uint8Array<ArrayBuffer>;
  }
}
