/**
 * What executed plugins leave behind when their DEL finds less than there is: they learn addresses
 * from the namespace, and where that is gone, or the first of their steps fails, rules stay.
 *
 * @module
 */

import { asError } from "../errors.ts";
import { removeRemains as removeRules } from "../firewall/remains.ts";
import type { NetlinkConnection } from "../netlink/connection.ts";
import { deleteLink, getLink } from "../netlink/link.ts";
import { chainName } from "./masquerade.ts";
import type { NetworkAttachment } from "./plan.ts";

/**
 * Takes away the host's ends of an attachment's veth pairs, which live on while a process is in a
 * namespace that has no name any more, and all rules that name its container or are in its chains.
 *
 * @returns what failed
 */
export async function removeRemains(
  attachment: NetworkAttachment,
  hostNl: NetlinkConnection,
): Promise<Error[]> {
  const { containerId, result, seen } = attachment;
  const failures: Error[] = [];
  const step = (action: () => void) => {
    try {
      action();
    } catch (error) {
      failures.push(asError(error));
    }
  };
  const ends = (result?.interfaces ?? []).filter(({ sandbox = "" }) => sandbox === "");
  // Results before 0.3.1 may name none.
  for (const { name, mac } of [...ends, ...seen?.hostEnd === undefined ? [] : [seen.hostEnd]]) {
    step(() => {
      const link = getLink(hostNl, name);
      if (link?.kind === "veth" && link.mac === mac?.toLowerCase()) deleteLink(hostNl, link.index);
    });
  }
  const chains = [await chainName(attachment), await chainName(attachment, "CNI-DN-")];
  step(() => removeRules(containerId, chains));
  return failures;
}
