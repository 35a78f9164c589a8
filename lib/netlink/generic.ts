/**
 * Families of generic netlink, by which parts of the kernel are asked for.
 *
 * @module
 */

import { tolerate } from "../sys/libc.ts";
import { NetlinkConnection } from "./connection.ts";
import { NETLINK } from "./message.ts";
import { Encoder } from "./wire.ts";

/** linux/genetlink.h. */
const GENL_ID_CTRL = 0x10;
const CTRL_CMD_GETFAMILY = 3;
const CTRL_ATTR_FAMILY_NAME = 2;

/**
 * Whether the kernel has a family. Its module is loaded, if there is one.
 *
 * Equivalent to: `genl ctrl get name NAME`
 */
export function hasGenericFamily(name: string): boolean {
  using nl = NetlinkConnection.open(NETLINK.GENERIC);
  // struct genlmsghdr: command, version, two reserved bytes.
  const payload = new Encoder(32).u8(CTRL_CMD_GETFAMILY).u8(1).zero(2)
    .attrString(CTRL_ATTR_FAMILY_NAME, name).finish();
  const subject = { op: "CTRL_CMD_GETFAMILY", action: "find", object: `the family ${name}` };
  return tolerate(["ENOENT"], () => nl.query(GENL_ID_CTRL, payload, subject)) !== undefined;
}
