/**
 * Records of version 1, as an earlier tapkit wrote them.
 *
 * @module
 */

import { assert } from "@std/assert";
import type { Attachment } from "../../lib/vm/record/attachment.ts";
import { claimsBy, recordOf } from "../../lib/vm/record/derive.ts";
import { servedVm } from "../../lib/vm/record/served.ts";
import type { Record1 } from "../../lib/vm/record/version-1.ts";

/** The record of an attached VM as version 1 wrote it. */
export function toRecord1(attachment: Attachment, request: Record1["made"]["request"]): Record1 {
  assert(attachment.is === "attached");
  const { at } = attachment;
  const { spec: { firewall, claims }, facts: { netns, networks } } = at;
  return {
    ...recordOf(at),
    made: {
      phase: "attached",
      firewall,
      netnsGiven: netns.given,
      ...netns.is === undefined ? {} : { netnsIs: netns.is },
      portOwners: { attach: claimsBy(claims, "attach"), mapPort: claimsBy(claims, "map") },
      request,
      networks: networks.map((fact) => fact.attachment),
      guests: servedVm(at).guests,
    },
  };
}
