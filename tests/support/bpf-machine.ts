/** Runs classic BPF as the kernel does: what a program returns for a frame. */

import { Bpf, type BpfInstruction } from "../../lib/sys/bpf.ts";

/** What the kernel knows about a frame beside its bytes. */
export interface Metadata {
  readonly packetType?: number;
  readonly vlanTag?: boolean;
}

const CLASS_MASK = 0x07;
const SIZE_MASK = 0x18;
const MODE_MASK = 0xe0;
const OPERATION_MASK = 0xf0;

export function runBpf(
  program: readonly BpfInstruction[],
  frame: Uint8Array,
  metadata: Metadata = {},
): number {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
  const memory = new Uint32Array(16);
  let [a, x] = [0, 0];
  const load = (size: number, offset: number): number | undefined => {
    if (offset === Bpf.SKF_AD_OFF + Bpf.SKF_AD_PKTTYPE) return metadata.packetType ?? 0;
    if (offset === Bpf.SKF_AD_OFF + Bpf.SKF_AD_VLAN_TAG_PRESENT) return metadata.vlanTag ? 1 : 0;
    const width = size === Bpf.B ? 1 : size === Bpf.H ? 2 : 4;
    if (offset < 0 || offset + width > frame.length) return undefined;
    if (width === 1) return view.getUint8(offset);
    return width === 2 ? view.getUint16(offset, false) : view.getUint32(offset, false);
  };
  for (let pc = 0; pc < program.length; pc++) {
    const { code, jt, jf, k } = program[pc]!;
    const [size, mode, operation] = [code & SIZE_MASK, code & MODE_MASK, code & OPERATION_MASK];
    const operand = (code & Bpf.X) !== 0 ? x : k;
    switch (code & CLASS_MASK) {
      case Bpf.LD: {
        const loaded = mode === Bpf.MEM
          ? memory[k]!
          : mode === Bpf.IMM
          ? k
          : load(size, mode === Bpf.IND ? (x + k) | 0 : k | 0);
        if (loaded === undefined) return 0;
        a = loaded;
        break;
      }
      case Bpf.LDX: {
        if (mode === Bpf.IMM) x = k;
        else if (mode === Bpf.MEM) x = memory[k]!;
        else if (mode === Bpf.LEN) x = frame.length;
        else if (mode !== Bpf.MSH) throw new RangeError(`LDX mode ${mode}`);
        else {
          const byte = load(Bpf.B, k);
          if (byte === undefined) return 0;
          x = (byte & 0x0f) * 4;
        }
        break;
      }
      case Bpf.ST:
        memory[k] = a;
        break;
      case Bpf.STX:
        memory[k] = x;
        break;
      case Bpf.ALU:
        if (operation === Bpf.ADD) a = (a + operand) >>> 0;
        else if (operation === Bpf.AND) a = (a & operand) >>> 0;
        else if (operation === Bpf.LSH) a = (a << operand) >>> 0;
        else throw new RangeError(`ALU operation ${operation}`);
        break;
      case Bpf.JMP: {
        if (operation === Bpf.JA) pc += k;
        else pc += compares(operation, a, operand) ? jt : jf;
        break;
      }
      case Bpf.MISC:
        if ((code & 0xf8) === Bpf.TXA) a = x;
        else x = a;
        break;
      case Bpf.RET:
        return k | 0;
    }
  }
  throw new RangeError("the program does not end");
}

function compares(operation: number, a: number, operand: number): boolean {
  if (operation === Bpf.JEQ) return a === operand;
  if (operation === Bpf.JGT) return a > operand;
  if (operation === Bpf.JGE) return a >= operand;
  if (operation === Bpf.JSET) return (a & operand) !== 0;
  throw new RangeError(`jump ${operation}`);
}
