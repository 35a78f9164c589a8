/**
 * What `deno task test` and `deno task demo` install, on a machine that has none of it: a copy of this
 * one, from which the packages are purged.
 *
 * @module
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { OUTSIDE_VARIABLE } from "../support/layer.ts";
import { ROOT } from "../support/machine.ts";

/** Packages of the tests that bring services, or change how a machine gets its addresses. */
const PACKAGES = ["docker.io", "firewalld", "ufw", "isc-dhcp-client", "dhcpcd-base"];

/** What would be on and at work after an ordinary installation of them. */
const SERVICES = ["docker.service", "ufw.service", "firewalld.service"];

/**
 * The bare machine: overlays of the directories that packages write to, an empty /run, no process but
 * its own. Arguments: a directory for the overlays' halves, the packages, `--`, a command.
 */
const BARE = `
set -e
mount -t tmpfs tmpfs "$1"
for name in bin etc lib lib32 lib64 opt sbin usr var; do
  [ -d /$name -a ! -L /$name ] || continue
  mkdir -p "$1"/{upper,work}/$name
  mount -t overlay overlay /$name -o "lowerdir=/$name,upperdir=$1/upper/$name,workdir=$1/work/$name"
done
shift
mount -t tmpfs -o mode=755 tmpfs /run
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
while [ "$1" != -- ]; do
  ! dpkg -s "$1" >/dev/null 2>&1 || unshare --net dpkg --force-all --purge "$1" >/dev/null 2>&1
  shift
done
shift
rm /usr/sbin/policy-rc.d
exec "$@"
`;

/** Every file's kind, owner, size, time and target; processes; what is mounted. */
const SNAPSHOT = `
all="/bin /etc /lib* /opt /sbin /usr /var"
find $all -xdev -type d -printf '%p %m %U:%G %T@\n' 2>/dev/null | sort
find $all -xdev ! -type d -printf '%p %y %m %U:%G %s %T@ %l\n' 2>/dev/null | sort
find /run -printf '%p %y %l\n' | sort
processes=$(for pid in /proc/[0-9]*; do tr '\\0' ' ' <$pid/cmdline; echo; done 2>/dev/null)
echo "$processes" | grep -v snapshot | sort
cat /proc/self/mounts
`;

const LOOK = `
command -v dockerd ufw firewalld dhclient dhcpcd
ls /etc/systemd/system/*.wants /etc/rc2.d
`;

/** Whether apt reaches its mirrors from here. */
async function aptReaches(): Promise<boolean> {
  const lists = await Deno.makeTempDir();
  try {
    await Deno.mkdir(`${lists}/partial`);
    const options = ["-o", `Dir::State::Lists=${lists}`, "-o", "Acquire::Retries=0"];
    const { success } = await new Deno.Command("apt-get", {
      args: ["update", "-o", "APT::Update::Error-Mode=any", ...options],
      stdout: "null",
      stderr: "null",
    }).output();
    return success;
  } catch {
    return false;
  } finally {
    await Deno.remove(lists, { recursive: true });
  }
}

/** Runs a command on a machine without the packages. `work` is an empty directory. */
async function onBareMachine(
  work: string,
  packages: readonly string[],
  command: readonly string[],
): Promise<Deno.CommandOutput> {
  for (const name of ["halves", "cache"]) await Deno.mkdir(`${work}/${name}`);
  const outside = Deno.env.get(OUTSIDE_VARIABLE);
  const enter = outside === undefined ? [] : ["nsenter", "-t", outside, "--mount", "--"];
  const [program, ...args] = [
    ...[...enter, "unshare", "--mount", "--propagation", "private"],
    ...["--pid", "--fork", "--kill-child", "--mount-proc"],
    ...["bash", "-c", BARE, "bare", `${work}/halves`, ...packages, "--", ...command],
  ];
  const env: Record<string, string> = {
    ...Deno.env.toObject(),
    XDG_CACHE_HOME: `${work}/cache`,
  };
  delete env[OUTSIDE_VARIABLE];
  return await new Deno.Command(program!, { args, clearEnv: true, env }).output();
}

const reached = await aptReaches();
const whyNot = reached ? "" : " (apt does not reach its packages)";

Deno.test({
  name: `deno task test: what it installs leaves the machine as it was${whyNot}`,
  ignore: !reached,
  fn: async () => {
    const work = await Deno.makeTempDir();
    try {
      const program = [Deno.execPath(), "run", "-A", "--no-check", "tests/support/on-layer.ts"];
      const script = `
        cd ${ROOT}
        snapshot() { bash -c "$1" snapshot; }
        snapshot "$1" >${work}/before
        status=0
        ${program.join(" ")} bash -c "$2" || status=$?
        snapshot "$1" >${work}/after
        exit $status
      `;
      const { code, stdout, stderr } = await onBareMachine(
        work,
        PACKAGES,
        ["bash", "-c", script, "script", SNAPSHOT, LOOK],
      );
      const [told, said] = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes));
      assertEquals(code, 0, said);
      assertMatch(said!, /^missing: .*dockerd.*$/m);

      // Where the tests run the programs are there, and their packages would start them: so it is
      // the ordinary installation that is looked at.
      const seen = told!.split("\n");
      for (const name of ["dockerd", "ufw", "firewalld", "dhclient", "dhcpcd"]) {
        assert(seen.some((line) => line.endsWith(`/${name}`)), `${name}: ${told}${said}`);
      }
      for (const name of SERVICES) assert(seen.includes(name), `${name}: ${told}`);

      const [before, after] = await Promise.all(
        ["before", "after"].map(async (name) =>
          new Set((await Deno.readTextFile(`${work}/${name}`)).split("\n"))
        ),
      );
      assert(before!.size > 1000);
      assertEquals([...before!.symmetricDifference(after!)].toSorted(), []);
    } finally {
      await Deno.remove(work, { recursive: true });
    }
  },
});

Deno.test({
  name: `install.ts: gets what is missing with apt, without a question${whyNot}`,
  ignore: !reached,
  fn: async () => {
    const work = await Deno.makeTempDir();
    try {
      const script = `
        cd ${ROOT}
        ! ls /usr/lib/*/libnftables.so.1 2>/dev/null || exit 3
        ${Deno.execPath()} run -A install.ts --with-cni-plugins
        ls /usr/lib/*/libnftables.so.1 /usr/lib/cni/bridge >&2
        ${Deno.execPath()} run -A install.ts --with-cni-plugins
      `;
      const packages = ["libnftables1", "containernetworking-plugins"];
      const { code, stdout, stderr } = await onBareMachine(work, packages, [
        ...["bash", "-euc", script],
      ]);
      const [told, said] = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes));
      assertEquals(code, 0, said);
      const [first, again] = told!.trim().split("\n").map((line) => JSON.parse(line).packages);
      assertEquals([first, again], [packages, []]);
    } finally {
      await Deno.remove(work, { recursive: true });
    }
  },
});
