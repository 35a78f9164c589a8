/**
 * What earlier calls left, and belongs to no VM that is recorded: namespaces, links, addresses,
 * mappings, settings. A record is written before the first effect. So who lists the effects first and
 * then reads the records takes nothing for left that is being made.
 *
 * @module
 */

import { DEFAULT_NETWORK } from "../cni/default-network.ts";
import { DEFAULT_DATA_DIR, type HostLocalConfig } from "../cni/plugins/host-local-config.ts";
import { release } from "../cni/plugins/host-local.ts";
import { type HeldAddress, heldAddresses, poolsOf } from "../cni/pools.ts";
import { SANDBOX_PROGRAM } from "../docker/sandbox-image.ts";
import { Journal } from "../firewall/journal.ts";
import { namesIn } from "../files.ts";
import { addressTag, bridgeTag, identityOf, netnsName, vmOfTag } from "../vm/record/identity.ts";
import { namesBeside } from "../vm/record/ids.ts";
import { returnSettings } from "../vm/settings.ts";
import { removeVm } from "../vm/verbs/remove.ts";
import { changingHost } from "../vm/verbs/work.ts";
import { type Check, type Fix, type Problem, verdict } from "./check.ts";
import { Examined } from "./host.ts";
import { NETNS_DIR, usersOf } from "./netns-users.ts";

const PREFIX = netnsName({ name: "" });

const namespaces: Check = {
  name: "stale namespaces",
  needs: "capabilities",
  twice: true,
  run(host) {
    const left = staleNamespaces(host).map((vm) => {
      const users = usersOf(`${NETNS_DIR}/${PREFIX}${vm}`);
      // A sandbox of Docker's goes with the VM.
      return { vm, users: users.filter(({ name }) => `/${name}` !== SANDBOX_PROGRAM) };
    });
    const problems = left.map(({ vm, users }): Problem => {
      const [user] = users;
      const remove = `attach-vm ${vm} --remove`;
      const what = `the namespace ${PREFIX}${vm} has no record`;
      if (user === undefined) return { what, mend: `run ${remove}` };
      const { pid, name } = user;
      return {
        what: `${what}, and ${name} (pid ${pid}) uses it`,
        mend: `end that process, then run ${remove}`,
      };
    });
    const idle = left.filter(({ users }) => users.length === 0).map(({ vm }) => vm);
    const fix: Fix = async () => {
      const done: string[] = [];
      using now = new Examined(host.options);
      // Nobody attaches a VM as long as a namespace of its name is there.
      const still = staleNamespaces(now).filter((vm) => idle.includes(vm));
      for (const vm of still) {
        if (await removeVm(vm, host.options)) done.push(`took away what was left of VM "${vm}"`);
      }
      return done;
    };
    return verdict(problems, "none", idle.length > 0 ? fix : undefined);
  },
};

/** The names of VMs that have a namespace and no record. */
function staleNamespaces(host: Examined): string[] {
  const present = namesIn(NETNS_DIR).filter((name) => name.startsWith(PREFIX))
    .map((name) => name.slice(PREFIX.length));
  return present.filter((vm) => !host.names.has(vm));
}

/** An address that a VM without a record holds. */
interface StaleAddress extends HeldAddress {
  readonly pool: HostLocalConfig;
}

const addresses: Check = {
  name: "stale addresses",
  twice: true,
  async run(host) {
    const stale = await staleAddresses(host);
    const problems = stale.map(({ ip, pool, holder: { containerId } }) => ({
      what: `${ip} of network "${pool.network}" is held by ${containerId.slice(0, 12)}, ` +
        "which is no VM's",
      mend: `remove ${pool.directory}/${ip}`,
    }));
    const fix: Fix = () =>
      underLock(host, async (now) => {
        const done: string[] = [];
        for (const { ip, pool, holder } of await staleAddresses(now)) {
          release(pool, holder);
          done.push(`released ${ip} of network "${pool.network}"`);
        }
        return done;
      });
    return verdict(problems, "no address is held by a VM without a record", fix);
  },
};

/**
 * Only tapkit attaches to the default network. In pools of others a container id is somebody else's,
 * unless it is known to be of a VM whose record is lost.
 */
async function staleAddresses(host: Examined): Promise<StaleAddress[]> {
  const pools = host.configurations.flatMap(({ list }) => list === undefined ? [] : poolsOf(list));
  const all = [...pools, UNCONFIGURED].filter(({ directory }, index, every) =>
    every.findIndex((other) => other.directory === directory) === index
  ).flatMap((pool) => heldAddresses(pool).map((held): StaleAddress => ({ ...held, pool })));
  const { everywhere, records, names } = host;
  const own = new Set(records.flatMap(({ sides }) => sides.map(({ spec }) => spec.id.containerId)));
  const lost = everywhere.flatMap((each) => namesBeside(each, own)).filter((vm) => !names.has(vm));
  const ids = new Set((await Promise.all(lost.map(identityOf))).map((id) => id.containerId));
  // The holder may be the VM of a record that cannot be read.
  const allRead = records.length === names.size;
  return all.filter(({ pool, holder: { containerId } }) =>
    !own.has(containerId) &&
    (ids.has(containerId) || pool.network === DEFAULT_NETWORK && allRead)
  );
}

/** The default network's pool, which stays when its configuration goes. */
const UNCONFIGURED: HostLocalConfig = {
  network: DEFAULT_NETWORK,
  directory: `${DEFAULT_DATA_DIR}/${DEFAULT_NETWORK}`,
  rangeSets: [],
  routes: [],
  requested: [],
};

const mappings: Check = {
  name: "stale mappings",
  needs: "capabilities",
  twice: true,
  async run(host) {
    const problems = (await staleOwners(host)).map((owner) => ({
      what: `the firewall has rules of ${owner}, which has no record`,
      mend: "run doctor --fix",
    }));
    const fix: Fix = () =>
      underLock(host, async (now) => {
        const done: string[] = [];
        for (const owner of await staleOwners(now)) {
          for (const firewall of await now.firewalls()) firewall.change(owner, "any", undefined);
          done.push(`took away the rules of ${owner}`);
        }
        for (const firewall of await now.firewalls()) firewall.removeIfUnused();
        await returnSettings(now.host, {});
        return done;
      });
    return verdict(problems, "every rule is of something that is recorded", fix);
  },
};

async function staleOwners(host: Examined): Promise<string[]> {
  const owners = (await host.firewalls()).flatMap((firewall) => [...firewall.owners()]);
  const { names, addresses, bridges } = host;
  const known = new Set([...addresses.map(addressTag), ...bridges.map(bridgeTag)]);
  return [...new Set(owners)].filter((owner) => !known.has(owner) && !names.has(vmOfTag(owner)))
    .sort();
}

const settings: Check = {
  name: "stale settings",
  needs: "capabilities",
  twice: true,
  run(host) {
    const isUsed = (one: Examined) =>
      one.names.size + one.addresses.length + one.bridges.length > 0;
    // What is not of a setting has no such path.
    const journal = Object.keys(new Journal().read());
    const changed = isUsed(host) ? [] : journal.filter((path) => path.startsWith("net/"));
    const problems = changed.map((path) => ({
      what: `${path.replaceAll("/", ".")} is not as it was before tapkit, and no VM needs it`,
      mend: "run doctor --fix",
    }));
    const fix: Fix = () =>
      underLock(host, async (now) => {
        if (isUsed(now)) return [];
        await returnSettings(now.host, {});
        const kept = new Journal().read();
        return changed.filter((path) => !(path in kept))
          .map((path) => `put ${path.replaceAll("/", ".")} back`);
      });
    return verdict(problems, "the kernel's settings are those that VMs need", fix);
  },
};

/** Does something with what VMs share locked, on the host as it is then. */
async function underLock(
  { options }: Examined,
  act: (now: Examined) => readonly string[] | Promise<readonly string[]>,
): Promise<readonly string[]> {
  return await changingHost(options, async () => {
    using now = new Examined(options);
    return await act(now);
  });
}

export const STALE_CHECKS: readonly Check[] = [namespaces, addresses, mappings, settings];
