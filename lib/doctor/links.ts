/**
 * Links that earlier calls left: TAPs, ends of veth pairs, bridges without ports.
 *
 * @module
 */

import { ALIAS, LINK_GROUP } from "../cni/plugins/veth.ts";
import { removeBridgeIfUnused } from "../cni/plugins/bridge-device.ts";
import { namesIn } from "../files.ts";
import { NetlinkConnection } from "../netlink/connection.ts";
import {
  deleteLink,
  deleteLinkGroup,
  getLink,
  GONE_GROUP,
  type Link,
  listLinks,
} from "../netlink/link.ts";
import { openNetns, withNetns } from "../sys/netns.ts";
import { linkNames, netnsName } from "../vm/record/identity.ts";
import { changingHost } from "../vm/verbs/work.ts";
import { type Check, type Problem, verdict } from "./check.ts";
import { Examined } from "./host.ts";
import { NETNS_DIR, usersOf } from "./netns-users.ts";

/** A link that is nobody's. */
interface StaleLink {
  readonly name: string;
  readonly problem: Problem;
  /** Deletes it, unless it is used by now; absent for what may be in use. */
  readonly remove?: () => void | Promise<unknown>;
}

const links: Check = {
  name: "stale links",
  needs: "capabilities",
  twice: true,
  run(host) {
    const stale = [...staleOnHost(host), ...staleTaps(host)];
    const fix = () =>
      changingHost(host.options, async () => {
        using now = new Examined(host.options);
        const done: string[] = [];
        for (const { name, remove } of [...staleOnHost(now), ...staleTaps(now)]) {
          if (remove === undefined) continue;
          await remove();
          done.push(`deleted link "${name}"`);
        }
        return done;
      });
    const fixable = stale.some(({ remove }) => remove !== undefined);
    const problems = stale.map(({ problem }) => problem);
    return verdict(problems, "every link of tapkit's is a VM's", fixable ? fix : undefined);
  },
};

/** Links in the host's namespace: veth ends of VMs without a record, and bridges without a port. */
function staleOnHost(host: Examined): StaleLink[] {
  const { nl } = host.host.session;
  const all = listLinks(nl);
  const { records, names } = host;
  // A link of an unreadable record cannot be told from one of none.
  if (records.length < names.size) return [];
  const ids = new Set(records.flatMap(({ sides }) => sides.map(({ spec }) => spec.id.containerId)));
  const ends = all.filter(({ kind, group, alias = "" }) =>
    kind === "veth" && (group === GONE_GROUP ||
      alias.startsWith(`${ALIAS}:`) && !ids.has(alias.split(":")[1] ?? ""))
  );
  const bridges = all.filter((link) =>
    link.kind === "bridge" && link.alias === ALIAS &&
    !all.some(({ master, index }) => master === link.index && !ends.some((e) => e.index === index))
  );
  const stale = ({ name }: Link, remove: StaleLink["remove"]): StaleLink => ({
    name,
    problem: {
      what: `link "${name}" was made by tapkit, and no recorded VM uses it`,
      mend: `run ip link delete ${name}`,
    },
    ...remove === undefined ? {} : { remove },
  });
  return [
    ...ends.map((link) =>
      stale(link, () => {
        // One of a group goes with the others.
        if (link.group === GONE_GROUP) return deleteLinkGroup(nl, GONE_GROUP);
        deleteLink(nl, link.index);
      })
    ),
    ...bridges.map((link) => stale(link, () => void removeBridgeIfUnused(nl, link.name))),
  ];
}

/**
 * TAPs, and the bridges that join them, in namespaces that were given with --netns and that no record
 * names any more. tapkit's own namespaces are looked at as a whole.
 */
function staleTaps(host: Examined): StaleLink[] {
  const own = netnsName({ name: "" });
  const given = namesIn(NETNS_DIR).filter((name) => !name.startsWith(own)).map((name) => {
    const path = `${NETNS_DIR}/${name}`;
    return { name, path, links: linksIn(path) };
  });
  const { records, names } = host;
  const used = records.flatMap(({ sides }) => sides);
  if (records.length < names.size) return [];
  return given.flatMap(({ name, path, links }) => {
    const expected = used.filter(({ facts }) => facts.netns.path === path)
      .flatMap(({ facts }) => facts.networks.map(({ attachment }) => linkNames(attachment.ifName)));
    const found = links.filter(({ group, kind, name }) =>
      group === LINK_GROUP && (kind === "tun" || kind === "bridge") &&
      !expected.some(({ tap, bridge }) => name === tap || name === bridge)
    );
    const [user] = found.length === 0 ? [] : usersOf(path);
    return found.map((link): StaleLink => ({
      name: link.name,
      problem: {
        what: `link "${link.name}" in the namespace ${name} was made by tapkit, and is no VM's` +
          (user === undefined ? "" : `; ${user.name} (pid ${user.pid}) is there`),
        mend: `run ip -n ${name} link delete ${link.name}`,
      },
      ...user === undefined ? { remove: () => deleteIn(path, link) } : {},
    }));
  });
}

function linksIn(path: string): Link[] {
  try {
    using netns = openNetns(path);
    using nl = withNetns(netns, () => NetlinkConnection.open());
    return listLinks(nl);
  } catch {
    // It went meanwhile, or is none.
    return [];
  }
}

function deleteIn(path: string, { index, name }: Link): void {
  using netns = openNetns(path);
  using nl = withNetns(netns, () => NetlinkConnection.open());
  if (getLink(nl, index)?.name === name) deleteLink(nl, index);
}

export const LINK_CHECKS: readonly Check[] = [links];
