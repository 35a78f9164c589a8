/**
 * CNI plugins made up for a test: each writes down what it is given, and behaves as it is told.
 */

/** One call of a plugin. */
export interface Recorded {
  readonly plugin: string;
  readonly verb: string;
  /** The CNI_ variables of its environment. */
  readonly env: Readonly<Record<string, string>>;
  // deno-lint-ignore no-explicit-any -- whatever was on its standard input.
  readonly stdin: any;
}

/** A directory of such plugins. */
export class RecordingPlugins implements Disposable {
  readonly root: string = Deno.makeTempDirSync();
  readonly binDir: string = `${this.root}/bin`;
  readonly stateDir: string = `${this.root}/state`;

  constructor(...names: string[]) {
    for (const directory of ["bin", "calls", "behave"]) Deno.mkdirSync(`${this.root}/${directory}`);
    for (const name of names) this.add(name);
  }

  /** Adds a plugin that does nothing; ADD prints an empty result. */
  add(name: string): void {
    const path = `${this.binDir}/${name}`;
    Deno.writeTextFileSync(
      path,
      `#!/bin/sh
call=${this.root}/calls/$(date +%s%N)-${name}-$CNI_COMMAND
env | grep ^CNI_ > $call.env
cat > $call.stdin
behave=${this.root}/behave/${name}-$CNI_COMMAND
if [ -e $behave ]; then . $behave; elif [ $CNI_COMMAND = ADD ]; then echo '{}'; fi
`,
    );
    Deno.chmodSync(path, 0o755);
  }

  /** What a plugin is to do at a verb, as shell commands. */
  behave(name: string, verb: string, script: string): void {
    Deno.writeTextFileSync(`${this.root}/behave/${name}-${verb}`, `${script}\n`);
  }

  /**
   * The calls since the last look, in order.
   *
   * @param root where they were written, as seen from here
   */
  calls(root = this.root): Recorded[] {
    const directory = `${root}/calls`;
    const names = [...Deno.readDirSync(directory)].map(({ name }) => name)
      .filter((name) => name.endsWith(".env")).sort();
    return names.map((name) => {
      const base = `${directory}/${name.slice(0, -".env".length)}`;
      const env = Deno.readTextFileSync(`${base}.env`).trim().split("\n").map((line) => {
        const at = line.indexOf("=");
        return [line.slice(0, at), line.slice(at + 1)];
      });
      const stdin = JSON.parse(Deno.readTextFileSync(`${base}.stdin`));
      for (const file of [".env", ".stdin"]) Deno.removeSync(base + file);
      const [, plugin = "", verb = ""] = base.slice(directory.length + 1).split("-");
      return { plugin, verb, env: Object.fromEntries(env), stdin };
    });
  }

  /** The names of the results that are kept. */
  cached(): string[] {
    try {
      return [...Deno.readDirSync(`${this.stateDir}/cni/results`)].map(({ name }) => name).sort();
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return [];
      throw error;
    }
  }

  [Symbol.dispose](): void {
    Deno.removeSync(this.root, { recursive: true });
  }
}
