/**
 * The names that a VM has in the kernel: container id, namespace, links and owner tags.
 *
 * @module
 */

import { InputError } from "../../errors.ts";
import { sha256 } from "../../sha256.ts";
import { netnsPath } from "../../sys/netns.ts";

/** The name and id that all kernel objects of a VM are named by. */
export interface Identity {
  /** 1–63 of `a-z A-Z 0-9 . _ -`, beginning with a letter or a digit. */
  readonly name: string;
  /** The CNI container id: 64 hexadecimal digits. */
  readonly containerId: string;
}

/** The names of the links of an interface. */
export interface LinkNames {
  /** The interface that the network created: `"eth0"`. */
  readonly link: string;
  /** The TAP: `"vm_eth0"`. */
  readonly tap: string;
  /** The inner bridge of mode dhcp-bridge: `"br_eth0"`. */
  readonly bridge: string;
}

/**
 * Checks a VM's name.
 *
 * @throws {InputError} unless it has 1–63 of `a-z A-Z 0-9 . _ -` and starts with a letter or digit
 */
export function validateName(name: string): void {
  if (/^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$/.test(name)) return;
  throw new InputError(`VM name "${name}" is malformed`, {
    mend: "use 1 to 63 of a-z A-Z 0-9 . _ - and start with a letter or a digit",
  });
}

/** The identity of a VM: its container id is the SHA-256 of its name. */
export function identityOf(name: string): Identity {
  return { name, containerId: sha256(name) };
}

/** The name of a VM's own namespace: `ip netns exec tapkit-web …`. */
export function netnsName({ name }: Pick<Identity, "name">): string {
  return `tapkit-${name}`;
}

/** The path of a VM's own namespace: `"/run/netns/tapkit-web"`. */
export function ownNetnsPath(id: Pick<Identity, "name">): string {
  return netnsPath(netnsName(id));
}

/** The tag of an interface's rules in the firewall: `"web/eth0"`. */
export function ownerTag({ name }: Pick<Identity, "name">, ifName: string): string {
  return `${name}/${ifName}`;
}

/** The VM of an owner tag. VM names have no slash. */
export function vmOfTag(owner: string): string {
  return owner.split("/", 1)[0]!;
}

const ADDRESS_TAG = "to@";

/** The owner tag of an address that tapkit did not attach. VM names have no `@`. */
export function addressTag(address: string): string {
  return `${ADDRESS_TAG}${address}`;
}

/** The owner tag of a bridge whose traffic passes as a whole. */
export function bridgeTag(link: string): string {
  return `bridge@${link}`;
}

/** The address of an owner tag; undefined for the tag of a VM. */
export function addressOfTag(owner: string): string | undefined {
  return owner.startsWith(ADDRESS_TAG) ? owner.slice(ADDRESS_TAG.length) : undefined;
}

/** The names of the links of an interface. */
export function linkNames(ifName: string): LinkNames {
  return { link: ifName, tap: `vm_${ifName}`, bridge: `br_${ifName}` };
}
