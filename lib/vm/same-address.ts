/**
 * Two VMs with one address: an IPAM that lost its memory gives out what it has given already.
 *
 * @module
 */

import { TapkitError } from "../errors.ts";
import type { HostPaths } from "./host-paths.ts";
import { readRecordsNaming } from "./state.ts";
import type { VmInterface } from "./types.ts";

/** A VM's interfaces, and by which link of the host each is reached. */
export interface Placed {
  readonly vm: string;
  readonly interfaces: readonly VmInterface[];
  readonly guests: readonly { readonly link: string }[];
}

/** An address that another VM has too, on the same network or behind the same link. */
export interface Held {
  readonly address: string;
  readonly network: string;
  /** The interface whose it is too. */
  readonly ifName: string;
  /** Who has it by its record. */
  readonly holder: string;
}

/** The addresses of a VM that other records have too. */
export function findHeld(host: HostPaths, own: Placed): Held[] {
  const wanted = cards(own);
  const others = readRecordsNaming(host, wanted.map(({ address }) => `"${address}`))
    .filter(({ vm }) => vm !== own.vm)
    .flatMap(({ vm, interfaces, made }) =>
      cards({ vm, interfaces, guests: made.guests }).map((card) => ({ ...card, vm }))
    );
  return wanted.flatMap(({ address, network, link, ifName }) => {
    const other = others.find((one) =>
      one.address === address && (one.network === network || link !== "" && one.link === link)
    );
    return other === undefined ? [] : [{ address, network, ifName, holder: other.vm }];
  });
}

function cards({ interfaces, guests }: Placed) {
  return interfaces.flatMap(({ name, network, addresses }, index) =>
    addresses.map(({ address }) => ({
      address: address.split("/", 1)[0]!,
      network,
      ifName: name,
      link: guests[index]?.link ?? "",
    }))
  );
}

/**
 * Refuses addresses that another VM has.
 *
 * @throws {TapkitError} naming it
 */
export function refuseHeld(host: HostPaths, own: Placed): void {
  const [held] = findHeld(host, own);
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

/** Sentences on the addresses of a VM that others have too. */
export function checkHeld(host: HostPaths, own: Placed): string[] {
  return findHeld(host, own).map(({ address, ifName, holder }) =>
    `the address ${address} of "${ifName}" of VM "${own.vm}" is that of VM "${holder}" too: ` +
    "remove one of the two"
  );
}
