import { assert, assertEquals } from "@std/assert";
import { decodeAddress } from "../../lib/netlink/address.ts";
import { DecodeError } from "../../lib/netlink/errors.ts";
import { decodeFilter } from "../../lib/netlink/filter.ts";
import { decodeLink } from "../../lib/netlink/link-message.ts";
import { decodeAcknowledgement, decodeMessages, NLMSG } from "../../lib/netlink/message.ts";
import { decodeQdisc } from "../../lib/netlink/qdisc.ts";
import { decodeRoute } from "../../lib/netlink/route.ts";
import { readGolden } from "../golden/read.ts";
import { Random } from "../support/random.ts";

const DECODERS: readonly [string, (payload: Uint8Array) => unknown, string][] = [
  ["decodeLink", decodeLink, "link-show"],
  ["decodeAddress", decodeAddress, "address-show"],
  ["decodeRoute", decodeRoute, "route-show"],
  ["decodeQdisc", decodeQdisc, "qdisc-show"],
  ["decodeFilter", decodeFilter, "filter-show"],
];

/** How many of the inputs a decoder takes; whatever it refuses, it does with the offset. */
function accepted(inputs: Iterable<Uint8Array>, decode: (bytes: Uint8Array) => unknown): number {
  let count = 0;
  for (const bytes of inputs) {
    try {
      decode(bytes);
      count++;
    } catch (error) {
      if (!(error instanceof DecodeError)) throw error;
      assert(error.offset >= 0 && error.offset <= bytes.length, `offset ${error.offset}`);
    }
  }
  return count;
}

function* noise(count: number, seed: number): Generator<Uint8Array> {
  const random = new Random(seed);
  for (let index = 0; index < count; index++) yield random.bytes(random.below(200));
}

/** Real payloads with a few bytes changed, or cut short. */
function* mutants(payloads: Uint8Array[], count: number, seed: number): Generator<Uint8Array> {
  const random = new Random(seed);
  for (let index = 0; index < count; index++) {
    yield random.damage(payloads[random.below(payloads.length)]!);
  }
}

for (const [name, decode, golden] of DECODERS) {
  Deno.test(`${name}: refuses malformed bytes with a DecodeError, and with nothing else`, () => {
    accepted(noise(2000, 1), decode);
    const payloads = readGolden(golden).flatMap(decodeMessages)
      .filter(({ type }) => type !== NLMSG.DONE).map(({ payload }) => payload);
    const taken = accepted(mutants(payloads, 4000, 2), decode);
    assert(taken > 0 && taken < 4000, `${taken} of 4000 mutants were taken`);
    assertEquals(accepted(payloads, decode), payloads.length);
  });
}

Deno.test("decodeMessages: refuses malformed bytes with a DecodeError, and with nothing else", () => {
  const decode = (bytes: Uint8Array) => decodeMessages(bytes).map(decodeAcknowledgement);
  accepted(noise(5000, 3), decode);
  accepted(mutants(readGolden("link-show"), 5000, 4), decode);
  accepted(mutants(readGolden("route-show"), 5000, 5), decode);
});
