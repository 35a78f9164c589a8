/**
 * Two VMs with one address: an IPAM that lost its memory gives out what it has given already.
 *
 * @module
 */

import { TapkitError } from "../../errors.ts";
import { addressOf } from "../../inet/ip.ts";
import type { Both } from "../record/attachment.ts";
import type { HostPaths } from "../record/paths.ts";
import { readVmsNaming, sidesOf } from "../record/store.ts";
import type { Difference } from "../types.ts";

/** An address that another VM has too, on the same network or behind the same link. */
interface Held {
  readonly address: string;
  readonly network: string;
  /** The interface whose it is too. */
  readonly ifName: string;
  /** Who has it by its record. */
  readonly holder: string;
}

/** The addresses of a VM that other records have too. */
function heldOf(host: HostPaths, own: Both): Held[] {
  const { name } = own.spec.id;
  const wanted = placesOf(own);
  const others = readVmsNaming(host, wanted.map(({ address }) => `"${address}`))
    .flatMap(sidesOf)
    .filter(({ spec }) => spec.id.name !== name)
    .flatMap((at) => placesOf(at).map((place) => ({ ...place, vm: at.spec.id.name })));
  return wanted.flatMap(({ address, network, link, ifName }) => {
    const other = others.find((one) =>
      one.address === address && (one.network === network || link !== "" && one.link === link)
    );
    return other === undefined ? [] : [{ address, network, ifName, holder: other.vm }];
  });
}

/** Each address of a VM, its network, and the link of the host that it is reached by. */
function placesOf({ facts: { networks } }: Both) {
  return networks.flatMap(({ attachment: { network, ifName }, link, reach }) =>
    (link?.addresses ?? []).map(({ address }) => ({
      address: addressOf(address),
      network,
      ifName,
      link: reach?.link ?? "",
    }))
  );
}

/**
 * Refuses addresses that another VM has.
 *
 * @throws {TapkitError} naming it
 */
export function refuseHeld(host: HostPaths, own: Both): void {
  const [held] = heldOf(host, own);
  if (held === undefined) return;
  const { address, network, holder } = held;
  throw new TapkitError(
    `network "${network}" gave the address ${address}, which VM "${holder}" has`,
    {
      mend:
        `see that the network's IPAM knows what it gave, or run attach-vm ${holder} --remove and ` +
        "attach that one again",
    },
  );
}

/** The addresses of a VM that others have too: nothing that is done to this one mends that. */
export function findHeld(host: HostPaths, own: Both): Difference[] {
  return heldOf(host, own).map(({ address, ifName, holder }) => ({
    layer: "network",
    object: `the address ${address} of "${ifName}" of VM "${own.spec.id.name}"`,
    problem: `is that of VM "${holder}" too: remove one of the two`,
    repair: "none",
  }));
}
