/**
 * Suggestions for malformed port mappings: syntax of other programs, and incomplete mappings.
 *
 * @module
 */

import { isIp } from "./ip.ts";

/** Why a mapping is refused, and what to write instead. */
export interface Slip {
  readonly why: string;
  readonly mend: string;
}

/** The mistake in a mapping that does not parse; undefined if nothing can be guessed. */
export function findSlip(text: string): Slip | undefined {
  const each = text.split(/[,\s]+/).filter((part) => part !== "");
  if (each.length > 1 && each.every((part) => /^\S*\d+\S*:\S*\d\S*$/.test(part))) {
    const flags = each.map((part) => `--ports ${part}`).join(" ");
    return {
      why: `it is ${each.length} mappings`,
      mend: `give each by itself: ${flags}, or map-port VM ${each.join(" ")}`,
    };
  }
  const colon = /^(.+):(tcp|udp|sctp)$/i.exec(text);
  if (colon !== null) {
    const [, mapping, protocol = ""] = colon;
    return {
      why: "the protocol follows a slash",
      mend: `write ${mapping}/${protocol.toLowerCase()}`,
    };
  }
  const [, mapping = "", suffix = ""] = /^([^/]*)(\/(?:tcp|udp|sctp))?$/i.exec(text) ?? [];
  const end = suffix.toLowerCase();
  if (suffix !== end) {
    return { why: "the protocol is written in lower case", mend: `write ${mapping}${end}` };
  }
  if (/^[1-9]\d{0,4}(-[1-9]\d{0,4})?$/.test(mapping)) {
    return {
      why: "it names one side only",
      mend: `did you mean ${mapping}:${mapping}${end}?`,
    };
  }
  if (/^:\d+$/.test(mapping)) {
    return {
      why: "it names no host port",
      mend: `write 0${mapping}${end} to have a free one chosen`,
    };
  }
  const [, named, ports] = /^(localhost|\*):(\d.*)$/.exec(mapping) ?? [];
  if (named !== undefined) {
    const meant = named === "*" ? ports : `127.0.0.1:${ports}`;
    return { why: `"${named}" is not an IP address`, mend: `write ${meant}${end}` };
  }
  const [, address = "", others] = /^([0-9a-f:]*::?[0-9a-f]*):(\d+:\d+)$/i.exec(mapping) ?? [];
  if (isIp(address) === 6) {
    return {
      why: "an IPv6 address is written in brackets",
      mend: `write [${address}]:${others}${end}`,
    };
  }
  return undefined;
}
