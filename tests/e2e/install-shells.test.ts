/**
 * The files that install.ts writes for people, read by the programs that they are for: completion by
 * bash, zsh and fish, manual pages by man and mandoc.
 *
 * @module
 */

import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { helpText } from "../../lib/cli/args.ts";
import { ATTACH_VM } from "../../lib/cli/attach-table.ts";
import { MAP_PORT } from "../../lib/cli/map-command.ts";
import { SCRIPT_NAMES } from "../../lib/cli/tapkit-table.ts";
import { ROOT } from "../support/machine.ts";

/** An installation, a state directory with two VMs, a CNI directory with two networks. */
interface Scene {
  readonly prefix: string;
  run(program: string, ...args: string[]): Promise<string>;
}

async function withScene(body: (scene: Scene) => Promise<void>): Promise<void> {
  const directory = await Deno.makeTempDir({ prefix: "tapkit-shells-" });
  const prefix = `${directory}/usr`;
  const env = {
    TAPKIT_STATE_DIR: `${directory}/state`,
    NETCONFPATH: `${directory}/net.d`,
    HOME: directory,
    LC_ALL: "C.UTF-8",
    MANWIDTH: "200",
    TERM: "dumb",
  };
  const run = async (program: string, ...args: string[]) => {
    const command = new Deno.Command(program, { args, env, cwd: directory, stdin: "null" });
    const { success, stdout, stderr } = await command.output();
    const [out, err] = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes));
    if (!success || err !== "") throw new Error(`${program} ${args.join(" ")}: ${err}${out}`);
    return out!;
  };
  try {
    for (const name of ["state/vms", "net.d"]) {
      await Deno.mkdir(`${directory}/${name}`, { recursive: true });
    }
    for (const name of ["webserver", "db-1"]) {
      await Deno.writeTextFile(`${directory}/state/vms/${name}.json`, "{}");
    }
    const conflist = (name: string, pretty: boolean) =>
      JSON.stringify(
        { cniVersion: "1.0.0", name, plugins: [{ type: "bridge", name: "no" }] },
        null,
        pretty ? 2 : 0,
      );
    await Deno.writeTextFile(`${directory}/net.d/10-a.conflist`, conflist("backend", true));
    await Deno.writeTextFile(`${directory}/net.d/20-b.conflist`, conflist("lan", false));
    const args = ["run", "-A", `${ROOT}/install.ts`, "--prefix", prefix];
    const installed = await new Deno.Command(Deno.execPath(), { args }).output();
    assert(installed.success, new TextDecoder().decode(installed.stderr));
    await body({ prefix, run });
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

/** Command lines whose last word is begun, and what it is completed to: all of it, sorted. */
const LINES: readonly (readonly [line: string, words: readonly string[]])[] = [
  ["attach-vm --chec", ["--check"]],
  ["attach-vm web", ["webserver"]],
  ["attach-vm db-1 --remove web", ["webserver"]],
  ["attach-vm --network b", ["backend"]],
  ["attach-vm --network l", ["lan"]],
  ["attach-vm db-1 --mode t", ["tc-redirect"]],
  ["map-port d", ["db-1"]],
  ["setup-weave --pee", ["--peers"]],
  ["serve --heal rec", ["recreate"]],
  ["bridge-legacy web", ["webserver"]],
  ["tapkit attach", ["attach-vm"]],
  ["tapkit attach-vm --output dra", ["dracut"]],
  ["tapkit map-port web", ["webserver"]],
  ["tapkit rm web", ["webserver"]],
  ["tapkit insp", ["inspect"]],
  ["tapkit install --unin", ["--uninstall"]],
];

/** Lines with several answers, or none: bash and fish list them. */
const LISTS: readonly (readonly [line: string, words: readonly string[]])[] = [
  ["attach-vm ", ["db-1", "webserver"]],
  ["attach-vm --network ", ["backend", "lan"]],
  ["attach-vm --plugins ", ["auto", "builtin", "exec"]],
  ["map-port db-1 8", []],
  ["attach-vm --mtu 1", []],
];

Deno.test("bash completion: flags, their values, VMs, networks, by either name", async () => {
  await withScene(async ({ prefix, run }) => {
    const directory = `${prefix}/share/bash-completion/completions`;
    const script = `
      name=$1; shift
      source ${directory}/"$name"
      set -- $(complete -p "$name")
      function=\${*: -2:1}
      COMP_WORDS=($LINE); [[ $LINE == *' ' ]] && COMP_WORDS+=('')
      COMP_CWORD=$((\${#COMP_WORDS[@]} - 1))
      $function "$name"
      printf '%s\\n' "\${COMPREPLY[@]}"`;
    for (const [line, words] of [...LINES, ...LISTS]) {
      const said = await run(
        ...["env", `LINE=${line}`, "bash", "-c", script, "bash", line.split(" ")[0]!] as const,
      );
      assertEquals(lines(said), words, line);
    }
  });
});

Deno.test("fish completion: flags, their values, VMs, networks, by either name", async () => {
  await withScene(async ({ prefix, run }) => {
    const directory = `${prefix}/share/fish/vendor_completions.d`;
    for (const [line, words] of [...LINES, ...LISTS]) {
      const name = line.split(" ")[0]!;
      const said = await run(
        ...["fish", "-N", "-c", `source ${directory}/${name}.fish; complete -C '${line}'`] as const,
      );
      assertEquals(lines(said.replaceAll(/\t.*/g, "")), words, line);
    }
  });
});

Deno.test("zsh completion: flags, their values, VMs, networks, by either name", async () => {
  await withScene(async ({ prefix, run }) => {
    // A terminal types the line and the tab, and a key that writes down what the line is then.
    const script = `
      zmodload zsh/zpty
      zpty shell zsh -f -i
      type() { zpty -w -n shell "$1" }
      type $'unsetopt beep; PS1=; fpath=(${prefix}/share/zsh/site-functions $fpath)\\n'
      type $'autoload -U compinit; compinit -u -D; setopt no_list_beep\\n'
      type $'shown() { print -r -- "$BUFFER" >>shown; BUFFER= }; zle -N shown; bindkey "^X" shown\\n'
      type $'bindkey "^I" complete-word; : >shown; : >ready\\n'
      # What it prints has to be read.
      until_shown() {
        repeat 400; do
          [[ -e ready && $(grep -c . shown) -ge $1 ]] && return
          sleep 0.05
          zpty -r -t shell said && all+=$said
        done
        print -r -- "no answer: $all" >&2
        exit 1
      }
      until_shown 0
      count=0
      for line; do
        type "$line"$'\\t\\x18'
        (( ++count ))
        until_shown $count
      done
      zpty -d shell
      cat shown`;
    const said = await run("zsh", "-f", "-c", script, "zsh", ...LINES.map(([line]) => line));
    assertEquals(
      said.trimEnd().split("\n").map((line) => line.trimEnd().replace(/=$/, "")),
      LINES.map(([line, [word]]) => `${line.slice(0, line.lastIndexOf(" "))} ${word}`),
    );
  });
});

Deno.test("manual pages: man and mandoc find nothing wrong; the text is that of --help", async () => {
  await withScene(async ({ prefix, run }) => {
    const directory = `${prefix}/share/man/man8`;
    const pages = [...Deno.readDirSync(directory)].map(({ name }) => `${directory}/${name}`);
    assertEquals(pages.length, SCRIPT_NAMES.length + 1 + 6);
    assert((await run("man", "-M", `${prefix}/share/man`, "-w", "tapkit", "ls")).includes("-ls.8"));
    const words = (text: string) => text.replaceAll(/\s+/g, " ");
    for (const page of pages) {
      const warnings = await run("sh", "-c", 'mandoc -T lint -W warning "$1" || :', "sh", page);
      // A page that is made of a version has no date.
      assertEquals(lines(warnings).filter((line) => !line.includes("missing date")), [], page);
      assertEquals(
        await run("sh", "-c", 'man --warnings -Z -l "$1" 2>&1 >/dev/null', "sh", page),
        "",
      );
    }
    for (const command of [ATTACH_VM, MAP_PORT]) {
      const shown = words(await run("man", "-P", "cat", "-l", `${directory}/${command.name}.8`));
      for (const { name, help } of command.options) {
        assertStringIncludes(shown, words(`--${name} `));
        assertStringIncludes(shown.replaceAll("- ", "-"), words(help).replaceAll("- ", "-"));
        assertStringIncludes(words(helpText(command)), words(help));
      }
      for (const example of command.examples) assertStringIncludes(shown, words(example.command));
    }
  });
});

function lines(text: string): string[] {
  return text.split("\n").filter((line) => line !== "").sort();
}
