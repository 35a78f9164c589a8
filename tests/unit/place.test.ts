import { assertEquals, assertThrows } from "@std/assert";
import { TapkitError, XtablesError } from "../../lib/errors.ts";
import { sentence } from "../../lib/finding.ts";
import {
  bring,
  byId,
  compare,
  type Entry,
  type Found,
  type Place,
  type PlaceChange,
} from "../../lib/firewall/place.ts";

const entry = (key: string, owner: string, value?: string): Entry => ({
  set: "ports",
  key: [key],
  owner,
  ...value === undefined ? {} : { value: [value] },
});

/** A place in memory. */
class FakePlace implements Place {
  readonly layer = "rules";
  readonly whole: boolean;
  entries: Entry[];
  lacking: Found<Entry>["lacking"] = [];
  /** What the next changes throw. */
  readonly failures: Error[] = [];
  readonly log: string[] = [];

  constructor(entries: Entry[], { whole = false } = {}) {
    this.entries = entries;
    this.whole = whole;
  }

  want(): Entry[] {
    return [];
  }

  read(): Found<Entry> {
    return { exists: true, lacking: this.lacking, entries: byId(this.entries) };
  }

  change({ remove, add, mend }: PlaceChange<Entry>): void {
    this.log.push(`${mend ? "mend " : ""}-${keys(remove)} +${keys(add)}`);
    const failure = this.failures.shift();
    if (failure !== undefined) throw failure;
    this.entries = [...this.entries.filter((one) => !remove.includes(one)), ...add];
    if (mend) this.lacking = [];
  }

  tidy(): void {
    this.log.push("tidy");
  }

  missing({ key }: Entry, other?: Entry) {
    const problem = other === undefined ? "is missing" : `is ${other.owner}'s`;
    return { object: `port ${key}`, problem };
  }

  extra({ key }: Entry) {
    return { object: `port ${key}`, problem: "is not wanted" };
  }

  explain(error: unknown): unknown {
    const refused = error instanceof Error && error.message === "refused";
    return refused ? error : new TapkitError("explained", { cause: error });
  }
}

const keys = (entries: readonly Entry[]) => entries.map(({ key }) => key[0]).join();

Deno.test("bring: removes what the owner had, adds what is missing, leaves the rest alone", () => {
  const place = new FakePlace([
    entry("1", "web", "a"),
    entry("2", "web", "a"),
    entry("3", "db", "b"),
  ]);
  const have = ["1", "2", "3", "4"].map((key) => entry(key, "web", "a"));
  const want = [entry("2", "web", "a"), entry("5", "web", "a")];
  const brought = bring(place, { owner: "web", have, want });
  assertEquals(place.log, ["-1 +5"]);
  assertEquals([brought.changed, brought.mended], [true, false]);
  const { stale, foreign, gone, added, replaced } = brought;
  assertEquals([stale, foreign, gone, added, replaced].map(keys), ["1", "3", "4", "5", ""]);
  assertEquals(bring(place, { owner: "web", have: want, want }).changed, false);
});

Deno.test("bring: replaces what leads elsewhere, unless that is refused", () => {
  const place = new FakePlace([entry("1", "web", "a")]);
  const wish = { owner: "db", have: [], want: [entry("1", "db", "b")] };
  assertThrows(
    () =>
      bring(place, wish, () => {
        throw new TapkitError("refused");
      }),
    TapkitError,
    "refused",
  );
  assertEquals(place.log, [], "nothing is changed before");
  assertEquals(keys(bring(place, wish).replaced), "1");
  assertEquals(place.entries, wish.want);
});

Deno.test('bring: "any" is all that has the owner\'s tag, duplicates too', () => {
  const place = new FakePlace([entry("1", "web"), entry("1", "web"), entry("2", "db")]);
  bring(place, { owner: "web", have: "any", want: [] });
  assertEquals(place.log, ["-1,1 +", "tidy"]);
  assertEquals(keys(place.entries), "2");
});

Deno.test("bring: mends what all need if something is wanted, and for nothing else", () => {
  const place = new FakePlace([entry("1", "web")]);
  place.lacking = [{ object: "the table", problem: "is missing" }];
  const have = [entry("1", "web")];
  assertEquals(bring(place, { owner: "web", have, want: have }).mended, true);
  place.lacking = [{ object: "the table", problem: "is missing" }];
  assertEquals(bring(place, { owner: "web", have, want: [] }).mended, false);
  assertEquals(place.log, ["mend - +", "-1 +", "tidy"]);
});

Deno.test("bring: a race is tried again, ten times at most; other errors are explained", () => {
  const raced = () => Object.assign(new TapkitError("raced"), { code: "EEXIST" });
  const wish = { owner: "web", have: [], want: [entry("1", "web")] };
  const place = new FakePlace([]);
  place.failures.push(raced(), new XtablesError("raced"));
  assertEquals(bring(place, wish).changed, true);
  assertEquals(place.log.length, 3);
  const busy = new FakePlace([]);
  busy.failures.push(...Array.from({ length: 10 }, raced));
  assertThrows(() => bring(busy, wish), TapkitError, "explained");
  assertEquals(busy.log.length, 10);
  const broken = new FakePlace([]);
  broken.failures.push(new TapkitError("broken"));
  assertThrows(() => bring(broken, wish), TapkitError, "explained");
  assertEquals(broken.log.length, 1);
});

Deno.test("compare: names what is missing, another's, and too many", () => {
  const present = [entry("1", "db"), entry("2", "web"), entry("4", "web")];
  const want = [entry("1", "web"), entry("2", "web"), entry("3", "web")];
  const lacking = [{ object: "the table", problem: "lacks a rule" }];
  const sentences = (place: FakePlace, wanted: Entry[]) =>
    compare(place, "web", wanted).map(sentence);
  const place = new FakePlace(present);
  place.lacking = lacking;
  const missing = ["the table lacks a rule", "port 1 is db's", "port 3 is missing"];
  assertEquals(sentences(place, want), missing);
  assertEquals(sentences(place, []), []);
  const whole = new FakePlace(present, { whole: true });
  whole.lacking = lacking;
  assertEquals(sentences(whole, want), [...missing, "port 4 is not wanted"]);
  assertEquals(sentences(whole, []), ["port 2 is not wanted", "port 4 is not wanted"]);
});
