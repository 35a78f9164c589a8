/**
 * Classic BPF: the instructions of socket filters and cls_bpf, and an assembler.
 *
 * @module
 */

/** One instruction, `struct sock_filter` of linux/filter.h. */
export interface BpfInstruction {
  /** Operation: a sum of {@linkcode Bpf} constants. */
  readonly code: number;
  /** How many instructions to skip if the comparison is true. */
  readonly jt: number;
  /** How many instructions to skip if it is false. */
  readonly jf: number;
  /** Operand. */
  readonly k: number;
}

/** linux/bpf_common.h. */
export const Bpf = {
  LD: 0x00,
  LDX: 0x01,
  ST: 0x02,
  STX: 0x03,
  ALU: 0x04,
  JMP: 0x05,
  RET: 0x06,
  MISC: 0x07,
  W: 0x00,
  H: 0x08,
  B: 0x10,
  IMM: 0x00,
  ABS: 0x20,
  IND: 0x40,
  MEM: 0x60,
  LEN: 0x80,
  MSH: 0xa0,
  ADD: 0x00,
  AND: 0x50,
  LSH: 0x60,
  JA: 0x00,
  JEQ: 0x10,
  JGT: 0x20,
  JGE: 0x30,
  JSET: 0x40,
  K: 0x00,
  X: 0x08,
  A: 0x10,
  TAX: 0x00,
  TXA: 0x80,
  /** Offset of ancillary data (`SKF_AD_OFF`, linux/filter.h) … */
  SKF_AD_OFF: -0x1000,
  /** … of the packet type: PACKET_HOST … PACKET_OUTGOING, */
  SKF_AD_PKTTYPE: 4,
  /** … of the packet's mark, */
  SKF_AD_MARK: 20,
  /** … and of the flag that a VLAN tag was removed from the frame. */
  SKF_AD_VLAN_TAG_PRESENT: 48,
} as const;

/** An instruction whose jumps name labels. A jump without a label goes to the next instruction. */
export interface BpfStep {
  readonly code: number;
  readonly k: number;
  readonly yes?: string | undefined;
  readonly no?: string | undefined;
}

/**
 * The steps of a program, with each label before its step. A label may occur several times: a jump
 * goes to the next one, because conditional jumps reach only 255 instructions ahead.
 */
export type BpfSource = readonly (BpfStep | string)[];

const step = (code: number, k: number): BpfStep => ({ code, k });
const jump = (code: number) => (k: number, yes?: string, no?: string): BpfStep => {
  return { code: Bpf.JMP | code, k, yes, no };
};

/** Steps by purpose. A is the accumulator, X the index register, M[n] the scratch memory. */
export const bpf = {
  loadByte: (k: number) => step(Bpf.LD | Bpf.B | Bpf.ABS, k),
  loadHalf: (k: number) => step(Bpf.LD | Bpf.H | Bpf.ABS, k),
  loadWord: (k: number) => step(Bpf.LD | Bpf.W | Bpf.ABS, k),
  loadByteAtX: (k: number) => step(Bpf.LD | Bpf.B | Bpf.IND, k),
  loadHalfAtX: (k: number) => step(Bpf.LD | Bpf.H | Bpf.IND, k),
  loadWordAtX: (k: number) => step(Bpf.LD | Bpf.W | Bpf.IND, k),
  loadAncillary: (k: number) => step(Bpf.LD | Bpf.W | Bpf.ABS, Bpf.SKF_AD_OFF + k),
  /** A = M[n], and M[n] = A. */
  recall: (n: number) => step(Bpf.LD | Bpf.W | Bpf.MEM, n),
  store: (n: number) => step(Bpf.ST, n),
  recallX: (n: number) => step(Bpf.LDX | Bpf.W | Bpf.MEM, n),
  storeX: (n: number) => step(Bpf.STX, n),
  setA: (k: number) => step(Bpf.LD | Bpf.W | Bpf.IMM, k),
  setX: (k: number) => step(Bpf.LDX | Bpf.W | Bpf.IMM, k),
  xFromLength: () => step(Bpf.LDX | Bpf.W | Bpf.LEN, 0),
  /** X = 4 × the low half of a byte: the length of an IPv4 header. */
  xFromHeaderLength: (k: number) => step(Bpf.LDX | Bpf.B | Bpf.MSH, k),
  xFromA: () => step(Bpf.MISC | Bpf.TAX, 0),
  aFromX: () => step(Bpf.MISC | Bpf.TXA, 0),
  add: (k: number) => step(Bpf.ALU | Bpf.ADD | Bpf.K, k),
  addX: () => step(Bpf.ALU | Bpf.ADD | Bpf.X, 0),
  and: (k: number) => step(Bpf.ALU | Bpf.AND | Bpf.K, k),
  shiftLeft: (k: number) => step(Bpf.ALU | Bpf.LSH | Bpf.K, k),
  ifEqual: jump(Bpf.JEQ | Bpf.K),
  ifAnyBit: jump(Bpf.JSET | Bpf.K),
  ifAtLeast: jump(Bpf.JGE | Bpf.K),
  ifAboveX: (yes?: string, no?: string) => jump(Bpf.JGT | Bpf.X)(0, yes, no),
  /** Jumps to a label at any distance. */
  goTo: (label: string) => jump(Bpf.JA)(0, label),
  ret: (k: number) => step(Bpf.RET | Bpf.K, k),
} as const;

/**
 * Resolves the labels of a program.
 *
 * @throws {RangeError} when a label does not follow a jump to it, or is too far
 */
export function assembleBpf(source: BpfSource): BpfInstruction[] {
  const labels = new Map<string, number[]>();
  const steps: BpfStep[] = [];
  for (const item of source) {
    if (typeof item !== "string") steps.push(item);
    else if (labels.has(item)) labels.get(item)!.push(steps.length);
    else labels.set(item, [steps.length]);
  }
  return steps.map(({ code, k, yes, no }, index) => {
    const always = code === (Bpf.JMP | Bpf.JA);
    const distance = (label: string | undefined) => {
      if (label === undefined) return 0;
      const target = labels.get(label)?.find((position) => position > index) ?? -1;
      const skip = target - index - 1;
      if (skip < 0 || (skip > 0xff && !always)) {
        throw new RangeError(`BPF jump to "${label}" is not possible`);
      }
      return skip;
    };
    return always
      ? { code, jt: 0, jf: 0, k: distance(yes) }
      : { code, jt: distance(yes), jf: distance(no), k: k >>> 0 };
  });
}

/** Size of `struct sock_filter`. */
export const BPF_INSTRUCTION_SIZE = 8;

/** The bytes of a program: an array of `struct sock_filter` in host order. */
export function encodeBpf(program: readonly BpfInstruction[]): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(program.length * BPF_INSTRUCTION_SIZE);
  const view = new DataView(bytes.buffer);
  program.forEach(({ code, jt, jf, k }, index) => {
    const offset = index * BPF_INSTRUCTION_SIZE;
    view.setUint16(offset, code, true);
    view.setUint8(offset + 2, jt);
    view.setUint8(offset + 3, jf);
    view.setUint32(offset + 4, k, true);
  });
  return bytes;
}

/**
 * Reads an array of `struct sock_filter` in host order.
 *
 * @throws {RangeError} when the last instruction is truncated
 */
export function decodeBpf(bytes: Uint8Array): BpfInstruction[] {
  if (bytes.length % BPF_INSTRUCTION_SIZE !== 0) {
    throw new RangeError(`a BPF program of ${bytes.length} bytes is truncated`);
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const program: BpfInstruction[] = [];
  for (let offset = 0; offset < bytes.length; offset += BPF_INSTRUCTION_SIZE) {
    program.push({
      code: view.getUint16(offset, true),
      jt: view.getUint8(offset + 2),
      jf: view.getUint8(offset + 3),
      k: view.getUint32(offset + 4, true),
    });
  }
  return program;
}
