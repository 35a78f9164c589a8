/**
 * SHA-256 (FIPS 180-4) of short texts. The platform's is asynchronous: another thread answers, and the
 * wait for it takes longer than all else that is computed to attach a VM.
 *
 * @module
 */

const BLOCK_SIZE = 64;
const LENGTH_SIZE = 8;

/** The fractional parts of the square roots of the first 8 primes: the hash to begin with. */
const INITIAL = words("6a09e667bb67ae853c6ef372a54ff53a510e527f9b05688c1f83d9ab5be0cd19");
/** The fractional parts of the cube roots of the first 64 primes: a constant for each round. */
const ROUNDS = words(
  "428a2f9871374491b5c0fbcfe9b5dba53956c25b59f111f1923f82a4ab1c5ed5" +
    "d807aa9812835b01243185be550c7dc372be5d7480deb1fe9bdc06a7c19bf174" +
    "e49b69c1efbe47860fc19dc6240ca1cc2de92c6f4a7484aa5cb0a9dc76f988da" +
    "983e5152a831c66db00327c8bf597fc7c6e00bf3d5a7914706ca635114292967" +
    "27b70a852e1b21384d2c6dfc53380d13650a7354766a0abb81c2c92e92722c85" +
    "a2bfe8a1a81a664bc24b8b70c76c51a3d192e819d6990624f40e3585106aa070" +
    "19a4c1161e376c082748774c34b0bcb5391c0cb34ed8aa4a5b9cca4f682e6ff3" +
    "748f82ee78a5636f84c878148cc7020890befffaa4506cebbef9a3f7c67178f2",
);

function words(hex: string): Int32Array {
  const view = new DataView(Uint8Array.fromHex(hex).buffer);
  return Int32Array.from({ length: view.byteLength / 4 }, (_, index) => view.getInt32(4 * index));
}

/** The SHA-256 of a text in UTF-8, as 64 hexadecimal digits. */
export function sha256(text: string): string {
  const bytes = new TextEncoder().encode(text);
  const blocks = Math.ceil((bytes.length + 1 + LENGTH_SIZE) / BLOCK_SIZE);
  const padded = new Uint8Array(blocks * BLOCK_SIZE);
  padded.set(bytes);
  padded[bytes.length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setBigUint64(padded.length - LENGTH_SIZE, 8n * BigInt(bytes.length));
  const hash = Int32Array.from(INITIAL);
  for (let at = 0; at < padded.length; at += BLOCK_SIZE) addBlock(hash, view, at);
  hash.forEach((word, index) => view.setInt32(4 * index, word));
  return padded.subarray(0, 4 * hash.length).toHex();
}

function addBlock(hash: Int32Array, view: DataView, at: number): void {
  const schedule = new Int32Array(ROUNDS.length);
  for (let t = 0; t < 16; t++) schedule[t] = view.getInt32(at + 4 * t);
  for (let t = 16; t < schedule.length; t++) {
    const [near, far] = [schedule[t - 2]!, schedule[t - 15]!];
    const sigma0 = rotate(far, 7) ^ rotate(far, 18) ^ (far >>> 3);
    const sigma1 = rotate(near, 17) ^ rotate(near, 19) ^ (near >>> 10);
    schedule[t] = schedule[t - 16]! + sigma0 + schedule[t - 7]! + sigma1;
  }
  let [a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0] = hash;
  for (let t = 0; t < schedule.length; t++) {
    const sum1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
    const choice = (e & f) ^ (~e & g);
    const one = h + sum1 + choice + ROUNDS[t]! + schedule[t]!;
    const sum0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
    const majority = (a & b) ^ (a & c) ^ (b & c);
    h = g;
    g = f;
    f = e;
    e = (d + one) | 0;
    d = c;
    c = b;
    b = a;
    a = (one + sum0 + majority) | 0;
  }
  [a, b, c, d, e, f, g, h].forEach((word, index) => hash[index] = hash[index]! + word);
}

function rotate(word: number, count: number): number {
  return (word >>> count) | (word << (32 - count));
}
