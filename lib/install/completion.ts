/**
 * Completion of command lines by bash, zsh and fish, made from the tables that `--help` is made from.
 * The names of VMs and networks come from the files that have them, so no process is started.
 *
 * @module
 */

import { allOptions, type Command, type Option } from "../cli/args.ts";

/** Where each shell finds a file, below the prefix. */
export const COMPLETION_DIRS = {
  bash: "share/bash-completion/completions",
  zsh: "share/zsh/site-functions",
  fish: "share/fish/vendor_completions.d",
} as const;

/** What a word can be. */
type Kind = "vms" | "networks" | "files" | "directories" | "users" | readonly string[] | undefined;

/** What the value of an option can be; undefined where a shell cannot know. */
function valueOf({ metavar = "", choices }: Option): Kind {
  if (choices !== undefined) return choices;
  if (metavar === "NET") return "networks";
  if (metavar.startsWith("DIR")) return "directories";
  if (/^(FILE|PATH)\b/.test(metavar)) return "files";
  return metavar.startsWith("USER") ? "users" : undefined;
}

function wordsOf({ words }: Command): Kind {
  return words?.complete === "vm" ? "vms" : words?.complete;
}

/** The help of an option up to its first pause, for lists beside which there is little space. */
function brief({ help }: Option): string {
  return help.split(/[:;]|, /)[0]!;
}

/** The shell functions that list names; bash and zsh read them alike. */
const NAMES = `_tapkit_vms() {
  local file directory="\${TAPKIT_STATE_DIR:-/var/lib/tapkit}/vms"
  for file in $(command ls "$directory" 2>/dev/null); do
    case $file in *.json) echo "\${file%.json}" ;; esac
  done
}
_tapkit_networks() {
  local file directory="\${NETCONFPATH:-/etc/cni/net.d}"
  for file in $(command ls "$directory" 2>/dev/null); do
    case $file in
      *.conf | *.conflist | *.json)
        command grep -o '"name" *: *"[^"]*"' "$directory/$file" | command head -n 1 |
          command cut -d '"' -f 4
        ;;
    esac
  done
}
`;

/** The name of a command, or what follows `tapkit` in it. */
const wordOf = ({ name }: Command) => name.replace(/^tapkit /, "");

/**
 * Completion for bash: one file for all of the commands, `tapkit NAME` included.
 *
 * @param words those that are commands of tapkit alone, as `tapkit ls`
 */
export function bashCompletion(commands: readonly Command[], words: readonly Command[]): string {
  const script = (command: Command) => {
    const values = command.options.filter(({ metavar }) => metavar !== undefined);
    const cases = values.map((option) =>
      `        --${option.name}) ${bashOf(valueOf(option)) ?? "COMPREPLY=()"} ;;`
    );
    const flags = allOptions(command).map(({ name }) => `--${name}`).join(" ");
    return `    ${wordOf(command)})
      case $previous in
${[...cases, `        *) _tapkit_words "${flags}" ${bashWords(command)} ;;`].join("\n")}
      esac
      ;;`;
  };
  return `# bash completion for tapkit's commands.
${NAMES}# Flags, if a flag is begun; else what the function or the list in the other arguments has.
_tapkit_words() {
  local flags=$1
  shift
  if [[ $word == -* ]]; then
    COMPREPLY=($(compgen -W "$flags" -- "$word"))
  elif [ $# -gt 0 ]; then
    COMPREPLY=($(compgen -W "$("$@")" -- "$word"))
  fi
}
_tapkit_run() {
  local script=$1 word=$2 previous=$3
  case $script in
${[...commands, ...words].map(script).join("\n")}
  esac
}
_tapkit() {
  local script=\${COMP_WORDS[0]##*/} word=\${COMP_WORDS[COMP_CWORD]} i
  local previous=\${COMP_WORDS[COMP_CWORD - 1]}
  COMPREPLY=()
  # bash makes a word of the "=" of --flag=value.
  if [ "$word" = = ]; then
    word=
  elif [ "$previous" = = ]; then
    previous=\${COMP_WORDS[COMP_CWORD - 2]}
  fi
  if [ "$script" = tapkit ] && [ "$COMP_CWORD" -gt 1 ]; then script=\${COMP_WORDS[1]}; fi
  # What follows -- is another program's.
  for ((i = 1; i < COMP_CWORD; i++)); do
    if [ "\${COMP_WORDS[i]}" = -- ]; then
      compopt -o default 2>/dev/null
      return
    fi
  done
  _tapkit_run "$script" "$word" "$previous"
}
complete -F _tapkit ${commands.map(({ name }) => name).join(" ")}
`;
}

function bashOf(kind: Kind): string | undefined {
  switch (kind) {
    case undefined:
      return undefined;
    case "vms":
    case "networks":
      return `COMPREPLY=($(compgen -W "$(_tapkit_${kind})" -- "$word"))`;
    case "files":
      return 'compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- "$word"))';
    case "directories":
      return 'compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -d -- "$word"))';
    case "users":
      return 'COMPREPLY=($(compgen -u -- "$word"))';
    default:
      return `COMPREPLY=($(compgen -W "${kind.join(" ")}" -- "$word"))`;
  }
}

function bashWords(command: Command): string {
  const kind = wordsOf(command);
  if (kind === undefined) return "";
  return typeof kind === "string" ? `_tapkit_${kind}` : `echo ${kind.join(" ")}`;
}

/** Completion for zsh: one file for all of the commands. */
export function zshCompletion(commands: readonly Command[], words: readonly Command[]): string {
  const script = (command: Command) => {
    const specs = allOptions(command).map((option) => {
      const before = option.repeat === true ? "*" : "";
      const value = option.metavar === undefined
        ? ""
        : `:${zshText(option.metavar)}:${zshOf(valueOf(option))}`;
      return zshQuoted(
        `${before}--${option.name}${value === "" ? "" : "="}[${zshText(brief(option))}]${value}`,
      );
    });
    const kind = wordsOf(command);
    const place = command.words?.complete === "vm" ? "1" : "*";
    const word = command.words === undefined || kind === undefined
      ? []
      : [zshQuoted(`${place}:${zshText(command.words.metavar)}:${zshOf(kind)}`)];
    return `    ${wordOf(command)})
      _arguments \\
        ${[...specs, ...word].join(" \\\n        ")}
      ;;`;
  };
  return `#compdef ${commands.map(({ name }) => name).join(" ")}
# zsh completion for tapkit's commands.
${NAMES}# _arguments puts options of compadd before the last word.
_tapkit_list() {
  local -a names
  names=(\${(f)"$(_tapkit_$@[-1])"})
  compadd "\${@[1,-2]}" -a names
}
_tapkit_run() {
  case $1 in
${[...commands, ...words].map(script).join("\n")}
  esac
}
_tapkit() {
  local script=$service end=\${words[(i)--]}
  if (( end < CURRENT )); then
    # What follows -- is another program's.
    shift $end words
    (( CURRENT -= end ))
    _normal
    return
  fi
  if [[ $script == tapkit ]] && (( CURRENT > 2 )); then
    script=$words[2]
    shift words
    (( CURRENT-- ))
  fi
  _tapkit_run $script
}
_tapkit "$@"
`;
}

function zshOf(kind: Kind): string {
  switch (kind) {
    case undefined:
      return " ";
    case "vms":
    case "networks":
      return `_tapkit_list ${kind}`;
    case "files":
      return "_files";
    case "directories":
      return "_files -/";
    case "users":
      return "_users";
    default:
      return `(${kind.join(" ")})`;
  }
}

function zshText(text: string): string {
  return text.replaceAll(/[\\:[\]]/g, "\\$&");
}

function zshQuoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/**
 * Completion for fish of one of the commands: fish looks for a file of each command's name.
 *
 * @param all every command, those of tapkit alone too
 */
export function fishCompletion(command: Command, all: readonly Command[]): string {
  const own = (of: Command, name: string, when: string) => {
    const complete = `complete -c ${name}${when === "" ? "" : ` -n ${fishQuoted(when)}`}`;
    const kind = wordsOf(of);
    const first = of.words?.complete === "vm" ? "test (count (commandline -opc)) -eq 1" : "";
    return [
      ...allOptions(of).map((option) =>
        `${complete} -l ${option.name}${
          option.metavar === undefined ? "" : ` -r${fishOf(valueOf(option))}`
        } -d ${fishQuoted(brief(option))}`
      ),
      ...kind === undefined ? [] : [
        when === "" && first !== ""
          ? `complete -c ${name} -n ${fishQuoted(first)}${fishOf(kind)}`
          : `${complete}${fishOf(kind)}`,
      ],
    ];
  };
  const others = all.filter(({ name }) => name !== "tapkit");
  const lines = command.name !== "tapkit" ? own(command, command.name, "") : [
    ...own({ ...command, words: undefined! }, "tapkit", "__fish_use_subcommand"),
    ...others.map((other) =>
      `complete -c tapkit -n __fish_use_subcommand -a ${wordOf(other)} -d ${
        fishQuoted(other.summary)
      }`
    ),
    ...others.flatMap((other) =>
      own(other, "tapkit", `__fish_seen_subcommand_from ${wordOf(other)}`)
    ),
  ];
  return `# fish completion for ${command.name}.
function __tapkit_vms
  set -l directory /var/lib/tapkit
  set -q TAPKIT_STATE_DIR; and set directory $TAPKIT_STATE_DIR
  command ls $directory/vms 2>/dev/null | string replace -fr '\\.json$' ''
end
function __tapkit_networks
  set -l directory /etc/cni/net.d
  set -q NETCONFPATH; and set directory $NETCONFPATH
  for file in (command ls $directory 2>/dev/null | string match -r '.*\\.(?:conf|conflist|json)$')
    string match -r '"name" *: *"[^"]*"' <$directory/$file | head -n 1 | cut -d '"' -f 4
  end
end
complete -c ${command.name} -f
${lines.join("\n")}
`;
}

function fishOf(kind: Kind): string {
  switch (kind) {
    case undefined:
      return " -x";
    case "vms":
    case "networks":
      return ` -x -a '(__tapkit_${kind})'`;
    case "files":
      return " -F";
    case "directories":
      return " -x -a '(__fish_complete_directories)'";
    case "users":
      return " -x -a '(__fish_complete_users)'";
    default:
      return ` -x -a '${kind.join(" ")}'`;
  }
}

function fishQuoted(text: string): string {
  return `'${text.replaceAll(/[\\']/g, "\\$&")}'`;
}
