/** The records of VMs, read again only where they changed. */

import { assert, assertEquals, assertStrictEquals } from "@std/assert";
import { replaceFile } from "../../lib/files.ts";
import { eachRecord } from "../../lib/vm/record/memory.ts";
import {
  type HostPaths,
  hostPaths,
  inDirectory,
  recordPath,
  vmsDir,
} from "../../lib/vm/record/paths.ts";
import { deleteVm } from "../../lib/vm/record/store.ts";
import { OpenSession } from "../../lib/vm/session.ts";
import { RECORD } from "../support/fuzz.ts";

function write(host: HostPaths, vm: string, netns: string): void {
  const text = JSON.stringify({ ...JSON.parse(RECORD), vm, netns });
  inDirectory(vmsDir(host), () => replaceFile(recordPath(host, vm), text));
}

Deno.test({
  name: "eachRecord: an unchanged record is the same object, a changed one is read again",
  // libc's functions are looked up once and stay.
  sanitizeResources: false,
  fn: async () => {
    const stateDir = `${await Deno.makeTempDir()}/tapkit`;
    using session = new OpenSession();
    const host = { ...hostPaths({ stateDir }), session };
    const notes: string[] = [];
    const read = () => new Map(eachRecord(host, { note: (text) => notes.push(text) }));
    assertEquals([...read().keys()], []);
    write(host, "a", "/1");
    write(host, "b", "/1");
    const first = read();
    assertEquals([...first.keys()].sort(), ["a", "b"]);
    // From the second time on that there are records, inotify tells of changes.
    const second = read();
    write(host, "b", "/2");
    const third = read();
    assertStrictEquals(third.get("a"), second.get("a"));
    assertEquals(JSON.stringify(third.get("b")).includes('"/2"'), true);
    // What cannot be read is told each time, and read when it can be.
    await Deno.writeTextFile(`${stateDir}/vms/b.json`, "{");
    assertEquals([...read().keys()], ["a"]);
    assertEquals([...read().keys()], ["a"]);
    assertEquals(notes.length, 2, notes.join());
    assert(notes.every((text) => text.includes("b.json is not JSON")));
    write(host, "b", "/3");
    assertEquals([...read().keys()].sort(), ["a", "b"]);
    // Who stops early gets the rest later.
    write(host, "c", "/1");
    write(host, "d", "/1");
    for (const _ of eachRecord(host)) break;
    assertEquals([...read().keys()].sort(), ["a", "b", "c", "d"]);
    assertEquals([...new Map(eachRecord(host, { except: "b" })).keys()].sort(), ["a", "c", "d"]);
    deleteVm(host, "a");
    assertEquals([...read().keys()].sort(), ["b", "c", "d"]);
    // The directory goes with the last VM, and comes again with another.
    await Deno.remove(stateDir, { recursive: true });
    assertEquals([...read().keys()], []);
    write(host, "a", "/4");
    assertEquals([...read().keys()], ["a"]);
    await Deno.remove(stateDir.slice(0, -"/tapkit".length), { recursive: true });
  },
});
