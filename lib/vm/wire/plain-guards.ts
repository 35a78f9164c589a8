/**
 * Guards of guests without a policy. Those of guests with as many addresses differ in these addresses
 * and the MAC alone, so they are assembled once and filled in for each guest.
 *
 * @module
 */

import { bytesToIp, isIp } from "../../inet/ip.ts";
import { ETH_ALEN, formatMac, parseMac } from "../../inet/mac.ts";
import type { BpfInstruction } from "../../sys/bpf.ts";
import { wireGuard } from "./guard.ts";
import { type GuestIdentity, linkLocalOf, tapGuard, words } from "./guest-guard.ts";

/** The programs of the TAP and of the interface. */
type Guards = readonly [tap: readonly BpfInstruction[], link: readonly BpfInstruction[]];

/** A program, and which of a guest's numbers belongs into which of its instructions. */
interface Template {
  readonly program: readonly BpfInstruction[];
  /** By the instruction's position: which number; undefined for one that is the same for all. */
  readonly places: readonly (number | undefined)[];
}

/**
 * By the kinds of a guest's addresses. The first guest of a kind, which may be the only one, is served
 * without: a template takes as long as four programs.
 */
const templates = new Map<string, readonly [Template, Template] | "seen once">();

/** What `tapGuard` and `wireGuard` return for a guest without a policy. */
export function plainGuards(guest: GuestIdentity, leased: boolean): Guards {
  const kind = kindOf(guest, leased);
  const known = templates.get(kind);
  if (known === undefined) {
    templates.set(kind, "seen once");
    return assemble(guest, leased);
  }
  const made = known === "seen once" ? makeTemplates(guest, leased) : known;
  if (made !== known) templates.set(kind, made);
  const numbers = numbersOf(guest);
  return [fillIn(made[0], numbers), fillIn(made[1], numbers)];
}

function assemble(guest: GuestIdentity, leased: boolean): Guards {
  return [tapGuard(guest), wireGuard(guest.mac, { leased })];
}

function kindOf({ addresses, linkLocal = "", foreign = [] }: GuestIdentity, leased: boolean) {
  const given = linkLocal === "any" ? linkLocal : isIp(linkLocal);
  return [addresses.map(isIp).join(), given, foreign.map(isIp).join(), leased].join(" ");
}

/** The words that tell a guest from another, in a fixed order. */
function numbersOf({ mac, addresses, linkLocal = "", foreign = [] }: GuestIdentity): number[] {
  const view = new DataView(parseMac(mac).buffer);
  const named = isIp(linkLocal) === 0 ? [] : [linkLocal];
  return [
    view.getUint32(0, false),
    view.getUint16(4, false),
    ...[linkLocalOf(mac), ...named, ...addresses, ...foreign].flatMap(words),
  ];
}

/** Two guests of the kind, whose numbers are nobody's, show where each number stands. */
function makeTemplates(guest: GuestIdentity, leased: boolean): readonly [Template, Template] {
  const [one, other] = [standIn(guest, 0x52), standIn(guest, 0x54)];
  const [first, second] = [assemble(one, leased), assemble(other, leased)];
  const [numbers, others] = [numbersOf(one), numbersOf(other)];
  const template = (program: readonly BpfInstruction[], same: readonly BpfInstruction[]) => ({
    program,
    places: program.map(({ k }, position) => {
      const { k: otherK } = same[position]!;
      if (k === otherK) return undefined;
      return numbers.findIndex((number, index) => number === k && others[index] === otherK);
    }),
  });
  return [template(first[0], second[0]), template(first[1], second[1])];
}

/** A guest of the same kind with other numbers, all of which differ. */
function standIn(
  { addresses, linkLocal = "", foreign = [] }: GuestIdentity,
  salt: number,
): GuestIdentity {
  let count = 0;
  const bytes = (length: number) => {
    const view = new DataView(new ArrayBuffer(length));
    for (let at = 0; at < length; at += 2) view.setUint16(at, at % 4 === 0 ? salt << 8 : ++count);
    return new Uint8Array(view.buffer);
  };
  const other = (text: string) => bytesToIp(bytes(isIp(text) === 6 ? 16 : 4));
  return {
    mac: formatMac(bytes(ETH_ALEN)),
    addresses: addresses.map(other),
    linkLocal: isIp(linkLocal) === 0 ? linkLocal : other(linkLocal),
    foreign: foreign.map(other),
  };
}

function fillIn({ program, places }: Template, numbers: readonly number[]): BpfInstruction[] {
  return program.map((instruction, position) => {
    const place = places[position];
    return place === undefined ? instruction : { ...instruction, k: numbers[place]! };
  });
}
