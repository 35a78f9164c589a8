/**
 * Classic BPF programs: the instructions that socket filters and cls_bpf are written in.
 *
 * @module
 */

/** One instruction, `struct sock_filter` of linux/filter.h. */
export interface BpfInstruction {
  /** Operation: a sum of {@linkcode Bpf} constants. */
  readonly code: number;
  /** How many instructions to skip when the comparison holds. */
  readonly jt: number;
  /** How many instructions to skip when it does not. */
  readonly jf: number;
  /** Operand. */
  readonly k: number;
}

/** linux/bpf_common.h. */
export const Bpf = {
  LD: 0x00,
  LDX: 0x01,
  ST: 0x02,
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
  SUB: 0x10,
  OR: 0x40,
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
  /** … of which this is the packet type: PACKET_HOST … PACKET_OUTGOING. */
  SKF_AD_PKTTYPE: 4,
  /** … and of which this says whether a VLAN tag was taken off the frame. */
  SKF_AD_VLAN_TAG_PRESENT: 48,
} as const;

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
 * @throws {RangeError} when the last instruction is cut
 */
export function decodeBpf(bytes: Uint8Array): BpfInstruction[] {
  if (bytes.length % BPF_INSTRUCTION_SIZE !== 0) {
    throw new RangeError(`a BPF program of ${bytes.length} bytes is cut`);
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
