/** What a release is made of: the package as it would be published, and the files beside it. */

import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import deno from "../../deno.json" with { type: "json" };
import { SCRIPT_NAMES } from "../../lib/cli/tapkit-table.ts";
import { ROOT } from "../support/machine.ts";

async function run(args: readonly string[], cwd: string, command = Deno.execPath()) {
  const { code, stdout, stderr } = await new Deno.Command(command, {
    args: [...args],
    cwd,
    env: { NO_COLOR: "1" },
  }).output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code, stdout: text(stdout), stderr: text(stderr) };
}

Deno.test("deno.json: names each script beside the library", async () => {
  const { ".": library, ...scripts } = deno.exports;
  assertEquals(library, "./mod.ts");
  const names = ["tapkit", ...SCRIPT_NAMES.filter((name) => name !== "serve-dhcp")];
  assertEquals(
    scripts,
    Object.fromEntries(names.sort().map((name) => [`./${name}`, `./scripts/${name}.ts`])) as never,
  );
  for (const path of Object.values(deno.exports)) await Deno.stat(`${ROOT}/${path}`);
});

Deno.test("deno publish: would publish the package, without slow types", async () => {
  const { code, stderr } = await run(["publish", "--dry-run", "--allow-dirty"], ROOT);
  assertEquals(code, 0, stderr);
  assertStringIncludes(stderr, `${deno.name}@${deno.version}`);
  for (const file of ["lib/resident/openapi.json", "lib/install/hot.txt", "scripts/attach-vm.ts"]) {
    assertStringIncludes(stderr, file);
  }
  assertEquals(/\btests\//.exec(stderr), null);
});

Deno.test("mod.ts: `deno doc --lint` finds nothing: all that is public is described", async () => {
  const { code, stderr } = await run(["doc", "--lint", "mod.ts"], ROOT);
  assertEquals(code, 0, stderr);
});

Deno.test({
  name: "release.ts: an archive of the sources, checksums and notes; refuses what is not released",
  // It archives what git has.
  ignore: !await Deno.stat(`${ROOT}/.git`).then(() => true, () => false),
  fn: async () => {
    const directory = await Deno.makeTempDir();
    try {
      const output = `${directory}/out`;
      const clone = await run(["clone", "-q", ROOT, `${directory}/tapkit`], directory, "git");
      assertEquals(clone.code, 0, clone.stderr);
      const release = (...args: string[]) =>
        run(["run", "-A", "release.ts", "--output", output, ...args], `${directory}/tapkit`);
      const draft = await release("--draft");
      assertEquals(draft.code, 0, draft.stderr);
      const { version, files } = JSON.parse(draft.stdout);
      assertEquals(version, deno.version);
      const sums = await run(["-c", "SHA256SUMS"], output, "sha256sum");
      assertEquals([sums.code, sums.stdout], [0, `tapkit-${version}.tar.gz: OK\n`]);
      const listed = await run(["tzf", files[0]], output, "tar");
      assertStringIncludes(listed.stdout, `\ntapkit-${version}/mod.ts\n`);
      const changelog = `${directory}/tapkit/CHANGELOG.md`;
      const text = await Deno.readTextFile(changelog);
      const notes = await Deno.readTextFile(`${output}/NOTES.md`);
      assert(text.includes(notes.trim()) && notes.length > 100);

      await Deno.writeTextFile(changelog, text.replace(/^(## \S+) .*$/m, "$1 (unreleased)"));
      assertMatch((await release()).stderr, /^release\.ts: CHANGELOG\.md calls \S+ unreleased: /);
      await Deno.writeTextFile(changelog, text.replace(/^(## \S+) .*$/m, "$1 (2026-01-01)"));
      assertMatch((await release()).stderr, /^release\.ts: something is not committed: /);
      await Deno.writeTextFile(changelog, "# Changelog\n");
      const unknown = await release("--draft");
      assertEquals(unknown.code, 1);
      assertMatch(unknown.stderr, /^release\.ts: CHANGELOG\.md says nothing of /);
    } finally {
      await Deno.remove(directory, { recursive: true });
    }
  },
});
