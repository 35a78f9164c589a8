/**
 * A blank Debian to type commands in: its smallest system, with nothing of this machine but how to reach
 * the archives of Debian's and npm's packages.
 *
 * @module
 */

import { cacheDirectory } from "./guest-image.ts";
import type { Host } from "./host.ts";
import { kept, makeBy } from "./kept.ts";
import { ROOT, type RunOptions } from "./machine.ts";
import type { Running } from "./running.ts";

/** Where the checkout is, the commands' working directory. */
const CHECKOUT = "/root/tapkit";
const PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const MAKE = `mmdebstrap --quiet --variant=minbase bookworm "$1"`;

/** A copy of the checkout. Arguments: from, to. */
const COPY = `mkdir -p "$2"; tar -C "$1" --exclude=./.git -cf - . | tar -C "$2" -xf -`;

/** How often a line that downloads is typed, until it succeeds. */
const ATTEMPTS = 3;

/**
 * Types a line with the machine's network. Arguments: the directories above, below, for overlayfs' work, and
 * to mount at; files of this machine, each with its name there; `--`; the words to run.
 */
const DOWNLOAD = `
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2,workdir=$3" "$4"
tree=$4
shift 4
mount -t proc proc "$tree/proc"
mount --rbind /dev "$tree/dev"
while [ "$1" != -- ]; do
  if [ -d "$1" ]; then
    mkdir -p "$tree$2"
  else
    [ -e "$tree$2" ] || : >"$tree$2"
  fi
  mount --bind -o ro "$1" "$tree$2"
  shift 2
done
shift
exec chroot "$tree" "$@"
`;

/** Where the authorities' certificates are that this machine trusts. */
const CERTIFICATES = "/certificates";

/** How packages are reached from this machine. */
interface Access {
  /** Each with its name in the blank system. */
  readonly files: readonly string[];
  readonly env: readonly string[];
}

async function access(): Promise<Access> {
  const npm = async (key: string) => {
    const { stdout } = await new Deno.Command("npm", { args: ["config", "get", key] }).output();
    const value = new TextDecoder().decode(stdout).trim();
    return ["", "null", "undefined"].includes(value) ? undefined : value;
  };
  const [registry, cafile] = [await npm("registry"), await npm("cafile")];
  // npm's own are of this machine's directories, where npx runs the tests.
  const passed = /^(https?_proxy|no_proxy)$/i;
  return {
    files: [
      ...["/etc/apt", "/etc/resolv.conf", "/etc/hosts"].map((path) => [path, path]),
      ...cafile === undefined ? [] : [[cafile, CERTIFICATES]],
    ].flat(),
    env: [
      ...Object.entries(Deno.env.toObject()).filter(([name]) => passed.test(name))
        .map(([name, value]) => `${name}=${value}`),
      ...registry === undefined ? [] : [`NPM_CONFIG_REGISTRY=${registry}`],
      ...cafile === undefined
        ? []
        : [`NPM_CONFIG_CAFILE=${CERTIFICATES}`, `DENO_CERT=${CERTIFICATES}`],
    ],
  };
}

/** A blank Debian with the checkout in it. */
export class BlankDebian implements AsyncDisposable {
  readonly #lower: string;
  readonly #directory: string;

  private constructor(lower: string, directory: string) {
    this.#lower = lower;
    this.#directory = directory;
  }

  static async create(): Promise<BlankDebian> {
    const lower = await kept({
      name: "blank",
      recipe: [MAKE],
      async make(work) {
        console.error("mmdebstrap makes a blank Debian; it is kept");
        await makeBy(MAKE, `${work}/root`);
        return `${work}/root`;
      },
    });
    const directory = await Deno.makeTempDir({ dir: cacheDirectory(), prefix: "typed-" });
    const blank = new BlankDebian(lower, directory);
    for (const name of ["upper", "work", "tree"]) await Deno.mkdir(`${directory}/${name}`);
    await Deno.chmod(`${directory}/upper`, 0o755);
    await makeBy(COPY, ROOT, `${directory}/upper${CHECKOUT}`);
    return blank;
  }

  /** Types a line that downloads, and changes nothing but files. All questions are answered by yes. */
  async download(line: string): Promise<string> {
    const { files, env } = await access();
    const words = [
      ...["env", "-i", "HOME=/root", `PATH=${PATH}`, "DEBIAN_FRONTEND=noninteractive", ...env],
      ...["bash", "-euc", `cd ${CHECKOUT}; yes | { ${line}\n}`],
    ];
    const args = [...this.#layers(), ...files, "--", ...words];
    const own = 'exec unshare --mount --pid --fork --kill-child bash -euc "$@"';
    for (let attempt = 1;; attempt++) {
      try {
        return await makeBy(own, DOWNLOAD, "type", ...args);
      } catch (error) {
        // An archive may not answer just then.
        if (attempt === ATTEMPTS) throw error;
      }
    }
  }

  /** Lets commands be typed in a throwaway host. */
  async enter(host: Host): Promise<void> {
    const [lower, upper, work, tree] = this.#layers();
    const layers = `lowerdir=${lower},upperdir=${upper},workdir=${work}`;
    await host.must("mount", ["-t", "overlay", "overlay", "-o", layers, tree]);
    for (const name of ["proc", "sys", "dev", "run"]) {
      await host.must("mount", ["--rbind", `/${name}`, `${tree}/${name}`]);
    }
    await host.sh(`cp /etc/resolv.conf /etc/hosts ${tree}/etc/`);
  }

  /** Types a line, or some. Returns what it prints. */
  async type(host: Host, line: string, options: RunOptions = {}): Promise<string> {
    return await host.must("chroot", this.#words(line), options);
  }

  /** Types a line, and leaves it running. */
  start(host: Host, line: string): Running {
    return host.spawn("chroot", this.#words(line));
  }

  /** The path of a file, from outside. */
  path(inside: string): string {
    return `${this.#directory}/upper${inside}`;
  }

  #layers(): [string, string, string, string] {
    const directory = this.#directory;
    return [this.#lower, `${directory}/upper`, `${directory}/work`, `${directory}/tree`];
  }

  #words(line: string): string[] {
    const env = ["env", "-i", "HOME=/root", `PATH=${PATH}`];
    return [`${this.#directory}/tree`, ...env, "bash", "-euc", `cd ${CHECKOUT}; ${line}`];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Deno.remove(this.#directory, { recursive: true });
  }
}
