import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { fromFileUrl } from "@std/path";

const INSTALL = fromFileUrl(new URL("../../install.ts", import.meta.url));

interface Ran {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

function run(program: string, ...args: string[]): Ran {
  const { code, stdout, stderr } = new Deno.Command(program, { args }).outputSync();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code, out: text(stdout), err: text(stderr) };
}

const install = (...args: string[]) => run(Deno.execPath(), "run", "-A", INSTALL, ...args);

function tree(directory: string): string[] {
  return [...Deno.readDirSync(directory)].flatMap(({ name, isDirectory }) => {
    const path = `${directory}/${name}`;
    return isDirectory ? [path, ...tree(path)] : [path];
  }).sort();
}

function inTempDir(body: (directory: string) => void): void {
  const directory = Deno.makeTempDirSync({ prefix: "tapkit install " });
  try {
    body(directory);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
}

Deno.test("install.ts: installs commands that run, twice the same, and removes them", () => {
  inTempDir((directory) => {
    const prefix = `${directory}/usr`;
    const units = `${directory}/units`;
    Deno.mkdirSync(units);
    const before = tree(directory);
    const args = ["--prefix", prefix, "--unit", "--unit-dir", units];

    const first = install(...args);
    assertEquals(first.code, 0, first.err);
    assertEquals(JSON.parse(first.out).written, [
      `${prefix}/bin/tapkit`,
      `${prefix}/bin/attach-vm`,
      `${prefix}/bin/bridge-legacy`,
      `${prefix}/bin/install-default-cni`,
      `${prefix}/bin/map-port`,
      `${prefix}/bin/serve`,
      `${prefix}/bin/serve-dhcp`,
      `${prefix}/bin/setup-weave`,
      `${units}/tapkit-dhcp.service`,
    ]);
    assertStringIncludes(run(`${prefix}/bin/attach-vm`, "--version").out, "attach-vm ");
    assertStringIncludes(
      run(`${prefix}/bin/tapkit`, "serve-dhcp", "--help").out,
      "usage: serve-dhcp",
    );
    assertEquals(run(`${prefix}/bin/attach-vm`, "--nonsense").code, 2);

    const installed = tree(directory);
    assertEquals(JSON.parse(install(...args).out).written, []);
    assertEquals(tree(directory), installed);

    assertEquals(install("--prefix", prefix, "--remove").code, 0);
    assertEquals(tree(directory), before);
    assertEquals(JSON.parse(install("--prefix", prefix, "--remove").out).removed, []);
  });
});

Deno.test("install.ts: touches no file that it did not write", () => {
  inTempDir((directory) => {
    Deno.mkdirSync(`${directory}/bin`);
    Deno.writeTextFileSync(`${directory}/bin/attach-vm`, "mine");
    const refused = install("--prefix", directory);
    assertEquals(refused.code, 1);
    assertStringIncludes(refused.err, "/bin/attach-vm exists and was not written by tapkit");
    assertEquals(tree(directory), [`${directory}/bin`, `${directory}/bin/attach-vm`]);

    Deno.removeSync(`${directory}/bin/attach-vm`);
    assertEquals(install("--prefix", directory).code, 0);
    Deno.writeTextFileSync(`${directory}/bin/attach-vm`, "changed");
    const removed = install("--prefix", directory, "--remove");
    assertStringIncludes(removed.err, "was changed since");
    assertEquals(tree(directory), [`${directory}/bin`, `${directory}/bin/attach-vm`]);
  });
});

Deno.test("install.ts: --print writes nothing; --unit needs its directory", () => {
  inTempDir((directory) => {
    const printed = install("--prefix", directory, "--unit", "--print");
    assertEquals(printed.code, 0);
    assertStringIncludes(printed.out, `${directory}/bin/attach-vm`);
    assertStringIncludes(printed.out, "/etc/systemd/system/tapkit-dhcp.service");
    const missing = install("--prefix", directory, "--unit", "--unit-dir", `${directory}/none`);
    assertEquals(missing.code, 1);
    assert(missing.err.split("\n").length === 2, missing.err);
    assertEquals(tree(directory), []);
  });
});
