/**
 * The namespace that a VM is about to be attached in, before anything is made there.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import { isThere } from "../files.ts";
import { NetlinkConnection } from "../netlink/connection.ts";
import { netnsIdentity } from "../netlink/identity.ts";
import { getLink } from "../netlink/link.ts";
import { openNetns, withNetns } from "../sys/netns.ts";
import { validateNetns } from "./netns.ts";
import { netnsName } from "./host-paths.ts";
import type { StoredRecord } from "./state.ts";
import { madeLinks } from "./wires.ts";

/**
 * Refuses a namespace of the VM's name that tapkit did not make, and in one that was given,
 * links of the names to be used.
 *
 * @returns the record, with which namespace was given
 */
export function withGiven(planned: StoredRecord): StoredRecord {
  const { vm, netns: path, made } = planned;
  if (!made.netnsGiven) {
    if (!isThere(path)) return planned;
    throw new TapkitError(`the network namespace ${path} is there already, and is not tapkit's`, {
      mend: `delete it (ip netns delete ${netnsName(vm)}), or use it with --netns ${path}`,
    });
  }
  validateNetns(path);
  using netns = openNetns(path);
  using nl = withNetns(netns, () => NetlinkConnection.open());
  for (const { ifName } of made.networks) {
    const taken = [ifName, ...madeLinks(ifName, made.request.mode ?? "auto")]
      .find((name) => getLink(nl, name) !== undefined);
    if (taken === undefined) continue;
    throw new TapkitError(`the network namespace ${path} has a link "${taken}" already`, {
      mend: "delete that link, or use another namespace",
    });
  }
  return { ...planned, made: { ...made, netnsIs: netnsIdentity(netns, nl) } };
}
