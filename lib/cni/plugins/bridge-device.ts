/**
 * The bridge in the host: made when the first guest needs it, shared with whoever uses it, and
 * deleted with its last port where tapkit made it.
 *
 * Callers hold the host's lock, so no other attach or removal comes in between.
 *
 * @module
 */

import { type Cidr, cidrContains, parseCidr } from "../../inet/ip.ts";
import { randomMac } from "../../inet/mac.ts";
import { deleteAddress, listAddresses } from "../../netlink/address.ts";
import type { NetlinkConnection } from "../../netlink/connection.ts";
import {
  createBridge,
  deleteLink,
  getLink,
  type Link,
  listLinks,
  setLink,
} from "../../netlink/link.ts";
import { setSysctls } from "../../firewall/sysctls.ts";
import { writeSysctl } from "../../sys/sysctl.ts";
import type { UndoStack } from "../../undo.ts";
import { misconfigured } from "../types.ts";
import type { BridgeConfig } from "./bridge-config.ts";
import { addAddressTo, ALIAS, isSameCidr } from "./veth.ts";

/**
 * How the MAC of a bridge made here begins ("tk", locally administered). The kernel takes no alias when it
 * makes a link, so this tells whose bridge it is after a crash between the two.
 */
const MAC_PREFIX = "02:74:6b:";
/** `IFF_LOWER_UP` of linux/if.h: a bridge has it at once with its first live port. */
const IFF_LOWER_UP = 0x10000;

/** Whether tapkit made the bridge. */
export function isOurBridge({ kind, alias, mac }: Link): boolean {
  if (kind !== "bridge") return false;
  return alias === ALIAS || ((alias ?? "") === "" && mac?.startsWith(MAC_PREFIX) === true);
}

/**
 * The bridge, made when it is missing; one that is there is set up and, where the configuration wants
 * it, promiscuous, and is left as it is otherwise.
 *
 * @param mtu of a bridge that is made
 * @param found the link of that name, if there is one
 * @returns its index
 */
export function ensureBridge(
  nl: NetlinkConnection,
  { bridge: name, promiscMode }: BridgeConfig,
  { mtu, undo, found }: {
    readonly mtu: number;
    readonly undo: UndoStack;
    readonly found: Link | undefined;
  },
): number {
  if (found === undefined) return makeBridge(nl, name, promiscMode, mtu, undo);
  if (found.kind !== "bridge") {
    const mend = "delete it, or name another bridge in the network's configuration";
    throw misconfigured("bridge", `link "${name}" is not a bridge`, mend);
  }
  const up = !found.up;
  const promiscuous = promiscMode && !found.promiscuous;
  // Left by a process that was killed before it could name its bridge.
  const alias = isOurBridge(found) && found.alias !== ALIAS;
  if (up || promiscuous || alias) {
    undo.push(`state of link "${name}"`, () =>
      setLink(nl, found.index, {
        ...(up ? { up: false } : {}),
        ...(promiscuous ? { promiscuous: false } : {}),
      }));
    setLink(nl, found.index, {
      ...(alias ? { alias: ALIAS } : {}),
      ...(up ? { up } : {}),
      ...(promiscuous ? { promiscuous } : {}),
    });
  }
  return found.index;
}

function makeBridge(
  nl: NetlinkConnection,
  name: string,
  promiscuous: boolean,
  mtu: number,
  undo: UndoStack,
): number {
  undo.push(`link "${name}"`, () => void removeBridgeIfUnused(nl, name));
  // Given explicitly, the MAC stays as ports come and go; the kernel would take the lowest port's.
  const mac = MAC_PREFIX + randomMac().slice(MAC_PREFIX.length);
  const index = createBridge(nl, { name, mac, mtu });
  // The host must not follow router advertisements of guests.
  writeSysctl(`net/ipv6/conf/${name}/accept_ra`, "0");
  // conf.default may say otherwise.
  writeSysctl(`net/ipv4/conf/${name}/route_localnet`, "0");
  setLink(nl, index, { alias: ALIAS, up: true, ...(promiscuous ? { promiscuous } : {}) });
  return index;
}

/**
 * Deletes the bridge if tapkit made it and no port is left.
 *
 * @returns whether it was deleted
 */
export function removeBridgeIfUnused(nl: NetlinkConnection, name: string): boolean {
  const link = getLink(nl, name);
  if (link === undefined || !isOurBridge(link)) return false;
  // Listing the ports costs more with each of them; a live one shows at the bridge.
  if ((link.flags & IFF_LOWER_UP) !== 0) return false;
  if (listLinks(nl, { master: link.index }).length > 0) return false;
  return deleteLink(nl, link.index);
}

/** Gives the bridge the gateway's address, unless it has it. */
export function ensureGateway(
  nl: NetlinkConnection,
  bridge: Link,
  gateway: string,
  force: boolean,
  undo: UndoStack,
): void {
  const wanted = parseCidr(gateway);
  const { index } = bridge;
  const present = listAddresses(nl, { index })
    .filter(({ address }) => parseCidr(address).family === wanted.family);
  if (present.some(({ address }) => isSameCidr(parseCidr(address), wanted))) return;
  for (const { address } of present) {
    if (!conflicts(parseCidr(address), wanted)) continue;
    if (!force) {
      throw misconfigured(
        "bridge",
        `bridge "${bridge.name}" has the address ${address}, not ${gateway}`,
        `delete that address, or set "forceAddress" in the network's configuration`,
      );
    }
    undo.push(`address ${address} of "${bridge.name}"`, () => addAddressTo(nl, index, address));
    deleteAddress(nl, { index, address });
  }
  if (wanted.family === 6) {
    const path = `net/ipv6/conf/${bridge.name}/disable_ipv6`;
    setSysctls(nl, [{ path, value: "0", link: bridge.name }]);
  }
  undo.push(`address ${gateway} of "${bridge.name}"`, () => {
    deleteAddress(nl, { index, address: gateway });
  });
  // The pool gives the gateway's address to no one else.
  addAddressTo(nl, index, gateway);
  // A bridge that the reference plugin made gets its MAC fixed by the same step.
  if (bridge.mac !== undefined && !isOurBridge(bridge)) {
    setLink(nl, index, { mac: bridge.mac });
  }
}

/** IPv4 has one address on the bridge; IPv6 may have several that do not overlap. */
function conflicts(present: Cidr, wanted: Cidr): boolean {
  return wanted.family === 4 || cidrContains(present, wanted.address) ||
    cidrContains(wanted, present.address);
}
