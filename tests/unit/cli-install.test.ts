import { assert, assertEquals, assertMatch, assertStringIncludes, assertThrows } from "@std/assert";
import { basename, fromFileUrl } from "@std/path";
import { TapkitError } from "../../lib/errors.ts";
import { installPackages, refuseMusl } from "../../lib/install/packages.ts";
import { lastingDeno } from "../../lib/install/plan.ts";
import { SCRIPT_NAMES } from "../../lib/cli/tapkit-table.ts";

const INSTALL = fromFileUrl(new URL("../../install.ts", import.meta.url));

const NAMES = ["tapkit", ...SCRIPT_NAMES];

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
    const before = tree(directory);
    const args = ["--prefix", prefix, "--systemd"];

    const first = install(...args);
    assertEquals(first.code, 0, first.err);
    const { written } = JSON.parse(first.out);
    assertEquals(written, [...written].filter((path) => path.startsWith(`${prefix}/`)));
    for (const name of NAMES) {
      for (const path of [`bin/${name}`, `share/man/man8/${name}.8`]) {
        assert(written.includes(`${prefix}/${path}`), path);
      }
    }
    assertStringIncludes(run(`${prefix}/bin/attach-vm`, "--version").out, "attach-vm ");
    assertStringIncludes(run(`${prefix}/bin/tapkit`, "serve", "--help").out, "usage: serve");
    assertEquals(run(`${prefix}/bin/attach-vm`, "--nonsense").code, 2);
    assertEquals(JSON.parse(install("--prefix", prefix, "--check").out).problems, []);

    const installed = tree(directory);
    assertEquals(JSON.parse(install(...args).out).written, []);
    assertEquals(tree(directory), installed);

    // Without the units they go.
    assertEquals(install("--prefix", prefix).code, 0);
    const gone = installed.filter((path) => !tree(directory).includes(path));
    assertEquals(
      gone.filter((path) => /\.(conf|service)$/.test(path)).map((path) => basename(path)),
      [
        "99-tapkit.conf",
        "tapkit-restore.service",
        "tapkit-vm@.service",
        "tapkit.service",
      ],
    );

    assertEquals(install("--prefix", prefix, "--uninstall").code, 0);
    assertEquals(tree(directory), before);
    assertEquals(JSON.parse(install("--prefix", prefix, "--uninstall").out).removed, []);
  });
});

Deno.test("install.ts: the Deno of a cache of npm is copied, another is not", () => {
  inTempDir((directory) => {
    const cached = `${directory}/_npx/1/deno`;
    Deno.mkdirSync(`${directory}/_npx/1`, { recursive: true });
    Deno.symlinkSync(Deno.execPath(), cached);
    for (const path of ["/root/.npm/_npx/7a/node_modules/deno/deno", cached]) {
      assertEquals(lastingDeno("/opt/tapkit", path), "/opt/tapkit/lib/tapkit/deno");
    }
    for (const path of ["/usr/bin/deno", "/root/.deno/bin/deno"]) {
      assertEquals(lastingDeno("/opt/tapkit", path), path);
    }
    assertEquals(install("--prefix", `${directory}/usr`).code, 0);
    const launcher = Deno.readTextFileSync(`${directory}/usr/bin/attach-vm`);
    const deno = lastingDeno(`${directory}/usr`, Deno.execPath());
    assertStringIncludes(launcher, `exec '${deno}' run -A `);
    assertEquals(run(deno, "--version").code, 0);
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
    const removed = install("--prefix", directory, "--uninstall");
    assertStringIncludes(removed.err, "was changed since");
    assertEquals(tree(directory), [`${directory}/bin`, `${directory}/bin/attach-vm`]);
  });
});

Deno.test("install.ts: an installation that fails leaves what was there", () => {
  inTempDir((directory) => {
    // What is to be a directory is a file.
    Deno.mkdirSync(`${directory}/share`);
    Deno.writeTextFileSync(`${directory}/share/zsh`, "");
    const before = tree(directory);
    const failed = install("--prefix", directory);
    assertEquals(failed.code, 1, failed.out);
    assertEquals(tree(directory), before);

    Deno.removeSync(`${directory}/share/zsh`);
    assertEquals(install("--prefix", directory).code, 0);
    const installed = tree(directory);
    Deno.renameSync(`${directory}/share/zsh`, `${directory}/aside`);
    Deno.writeTextFileSync(`${directory}/share/zsh`, "");
    assertEquals(install("--prefix", directory, "--systemd").code, 1);
    Deno.removeSync(`${directory}/share/zsh`);
    Deno.renameSync(`${directory}/aside`, `${directory}/share/zsh`);
    assertEquals(tree(directory), installed);
    assertEquals(JSON.parse(install("--prefix", directory, "--check").out).problems, []);
  });
});

Deno.test("install.ts --check: names what is missing, changed or has another mode", () => {
  inTempDir((directory) => {
    const check = () => install("--prefix", directory, "--check");
    assertEquals(check().code, 3);
    assertEquals(install("--prefix", directory, "--systemd").code, 0);
    assertEquals(check().code, 0);
    const [bin, units] = [`${directory}/bin`, `${directory}/lib/systemd/system`];
    Deno.removeSync(`${bin}/map-port`);
    Deno.writeTextFileSync(`${units}/tapkit.service`, "[Unit]\n");
    Deno.chmodSync(`${bin}/serve`, 0o644);
    const before = tree(directory);
    const { code, out } = check();
    assertEquals(code, 3);
    assertEquals(JSON.parse(out).problems.toSorted(), [
      `${bin}/map-port is missing`,
      `${bin}/serve has mode 644, not 755`,
      `${units}/tapkit.service was changed since it was written`,
    ]);
    assertEquals(tree(directory), before);
    assertEquals(install("--prefix", directory, "--systemd").code, 0);
    assertEquals(check().code, 0);
  });
});

Deno.test("install.ts: --print writes nothing; flags that do not go together are refused", () => {
  inTempDir((directory) => {
    const printed = install("--prefix", directory, "--systemd", "--print");
    assertEquals(printed.code, 0);
    assertStringIncludes(printed.out, `# ${directory}/bin/attach-vm\n#!/bin/sh`);
    assertStringIncludes(printed.out, `# ${directory}/lib/systemd/system/tapkit.service\n[Unit]`);
    for (
      const [flags, said] of [
        [["--bundle", "--compile"], "--bundle and --compile do not go together"],
        [["--run", "--from-binary", "x"], "--run and --from-binary do not go together"],
        [["--check", "--uninstall"], "--check and --uninstall do not go together"],
        [["--check", "--systemd"], "--systemd does not go with --check"],
        [["--from-binary", `${directory}/none`], "there is no file"],
        [["--unit"], "did you mean --systemd?"],
      ] as const
    ) {
      const { code, err } = install("--prefix", directory, ...flags);
      assertEquals(code, 2, err);
      assertStringIncludes(err, said);
    }
    assertEquals(tree(directory), []);
  });
});

Deno.test("install.ts --from-binary: refuses what is not a binary of tapkit", () => {
  inTempDir((directory) => {
    const prefix = `${directory}/usr`;
    const script = `${directory}/script`;
    Deno.writeTextFileSync(script, "#!/bin/sh\necho tapkit 0.1.0\n", { mode: 0o755 });
    for (
      const [binary, said] of [
        [script, `is not a program for ${Deno.build.arch}`],
        ["/bin/true", "does not print its version"],
        ["/bin/false", "does not run"],
      ] as const
    ) {
      const { code, err } = install("--prefix", prefix, "--from-binary", binary);
      assertEquals(code, 1, err);
      assertStringIncludes(err, said);
    }
    assertEquals(tree(directory), [script]);
  });
});

/** A system in a directory, with these files. */
function withSystem(files: readonly string[], body: (root: string) => void): void {
  inTempDir((directory) => {
    for (const file of files) {
      Deno.mkdirSync(`${directory}/${file}`.replace(/\/[^/]*$/, ""), { recursive: true });
      Deno.writeTextFileSync(`${directory}/${file}`, "");
    }
    body(`${directory}/`);
  });
}

interface PackageCase {
  readonly files: readonly string[];
  readonly withCniPlugins?: boolean;
  readonly mayInstall?: boolean;
  /** The commands that fail. */
  readonly fails?: (command: string) => boolean;
  readonly packages?: readonly string[];
  readonly commands?: readonly RegExp[];
  readonly notes?: readonly RegExp[];
  readonly error?: RegExp;
}

const PACKAGE_CASES: Readonly<Record<string, PackageCase>> = {
  "nothing is missing": { files: ["usr/lib/x86_64-linux-gnu/libnftables.so.1", "usr/bin/apt-get"] },
  "apt": {
    files: ["usr/bin/apt-get"],
    withCniPlugins: true,
    packages: ["libnftables1", "containernetworking-plugins"],
    commands: [
      /^apt-get .* install -y --no-install-recommends libnftables1$/,
      / containernetworking-plugins$/,
    ],
    notes: [/installing libnftables1 with apt-get/, /installing container/],
  },
  "apt has no lists": {
    files: ["usr/bin/apt-get"],
    fails: (() => {
      let updated = false;
      return (command: string) => !(updated ||= command.endsWith(" update"));
    })(),
    packages: ["libnftables1"],
    commands: [/libnftables1$/, / update$/, /libnftables1$/],
    notes: [/installing/],
  },
  "dnf": {
    files: ["usr/bin/dnf", "usr/libexec/cni/bridge"],
    withCniPlugins: true,
    packages: ["libnftables.so.1()(64bit)"],
    commands: [/^dnf install -y .* libnftables\.so\.1\(\)\(64bit\)$/],
    notes: [/installing/],
  },
  "zypper": {
    files: ["usr/bin/zypper", "usr/lib64/libnftables.so.1"],
    withCniPlugins: true,
    packages: ["cni-plugins"],
    commands: [/^zypper --non-interactive install --no-recommends cni-plugins$/],
    notes: [/installing/],
  },
  "no network: libnftables is not needed for all": {
    files: ["usr/bin/dnf"],
    fails: () => true,
    commands: [/^dnf /],
    notes: [/installing/, /could not be installed: .*: when .*, run dnf install 'libnftables/],
  },
  "no network, and CNI's plugins were asked for": {
    files: ["usr/bin/dnf", "usr/lib64/libnftables.so.1"],
    withCniPlugins: true,
    fails: () => true,
    commands: [/^dnf /],
    notes: [/installing/],
    error: /CNI plugins is missing, and containernetworking-plugins could not be installed/,
  },
  "another package manager": { files: [], notes: [/there is no apt, dnf or zypper/] },
  "below a prefix they are named": {
    files: ["usr/bin/apt-get"],
    mayInstall: false,
    notes: [/libnftables\.so\.1 is missing.*run apt-get install libnftables1$/],
  },
};

for (const [name, wanted] of Object.entries(PACKAGE_CASES)) {
  Deno.test(`install.ts: missing packages: ${name}`, () => {
    withSystem(wanted.files, (root) => {
      const commands: string[] = [];
      const notes: string[] = [];
      const { withCniPlugins = false, mayInstall = true, packages = [] } = wanted;
      const act = () =>
        installPackages({
          ...{ root, withCniPlugins, withDocker: false, mayInstall },
          note: (text) => notes.push(text),
          run: (program, args) => {
            const command = [program, ...args].join(" ");
            commands.push(command);
            if (wanted.fails?.(command)) throw new TapkitError("no network");
            return "";
          },
        });
      if (wanted.error) assertMatch(assertThrows(act, TapkitError).message, wanted.error);
      else assertEquals(act(), packages);
      for (
        const [said, patterns] of [[commands, wanted.commands], [notes, wanted.notes]] as const
      ) {
        assertEquals(said.length, patterns?.length ?? 0, said.join("\n"));
        patterns?.forEach((pattern, index) => assertMatch(said[index]!, pattern));
      }
    });
  });
}

Deno.test("install.ts: refuses musl, and says why", () => {
  withSystem(["lib/ld-musl-x86_64.so.1"], (root) => {
    const error = assertThrows(() => refuseMusl(root), TapkitError);
    assertStringIncludes(error.message, "C library is musl");
  });
  // A Debian with the package musl.
  withSystem(["lib/ld-musl-x86_64.so.1", "lib64/ld-linux-x86-64.so.2"], refuseMusl);
});
