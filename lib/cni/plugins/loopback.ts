/**
 * The `loopback` plugin: `lo` of the namespace is up.
 *
 * @module
 */

import type { Finding } from "../../finding.ts";
import { parseCidr } from "../../inet/ip.ts";
import { listAddresses } from "../../netlink/address.ts";
import { getLink, requireLink, setLink } from "../../netlink/link.ts";
import type { AddContext, AddOutcome, BuiltinPlugin, CheckContext, DelContext } from "../plugin.ts";
import { unknownKey } from "../plugin.ts";
import type { PluginConfig, Result } from "../types.ts";

const LOOPBACK = "lo";
const ZERO_MAC = "00:00:00:00:00:00";

/** The built-in `loopback`. */
export const loopback: BuiltinPlugin = {
  supports(conf: PluginConfig): true | string {
    return unknownKey(conf, []) ?? true;
  },

  validate(): void {},

  add(context: AddContext): AddOutcome {
    const { vmNl, undo, prevResult } = context;
    const link = requireLink(vmNl, LOOPBACK);
    if (!link.up) {
      undo.push(`link "${LOOPBACK}" set up`, () => setLink(vmNl, link.index, { up: false }));
      setLink(vmNl, link.index, { up: true });
    }
    return { result: prevResult ?? loopbackResult(context, link.index) };
  },

  del({ vmNl }: DelContext): void {
    const link = vmNl === undefined ? undefined : getLink(vmNl, LOOPBACK);
    if (link !== undefined) setLink(vmNl!, link.index, { up: false });
  },

  check({ vmNl }: CheckContext): Finding[] {
    const link = vmNl === undefined ? undefined : getLink(vmNl, LOOPBACK);
    const down = { object: `link "${LOOPBACK}" of the namespace`, problem: "is down" };
    return link?.up === true ? [] : [down];
  },
};

function loopbackResult({ vmNl, conf, netnsPath }: AddContext, index: number): Result {
  const addresses = listAddresses(vmNl, { index });
  const first = (family: number) =>
    addresses.find(({ address }) => parseCidr(address).family === family);
  const ips = [first(4), first(6)].flatMap((found) =>
    found === undefined ? [] : [{ address: found.address, interface: 0 }]
  );
  return {
    cniVersion: conf.cniVersion ?? "1.0.0",
    interfaces: [{ name: LOOPBACK, mac: ZERO_MAC, sandbox: netnsPath }],
    ips,
    routes: [],
    dns: {},
  };
}
