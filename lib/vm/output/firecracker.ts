/**
 * A VM for Firecracker: the part of its configuration file that is about the network, and the content of
 * its metadata service.
 *
 * @module
 */

import { InputError } from "../../errors.ts";
import type { VmInterface, VmRecord } from "../types.ts";
import { kernelArgument } from "./kernel.ts";
import { addressesOf, hostname } from "./values.ts";

/** What Firecracker's guests boot with: the console, and the end of the VM by a reboot and a panic. */
const BOOT_ARGS = "console=ttyS0 reboot=k panic=1";

/** The guest's MTU if Firecracker tells it none, in bytes. */
const DEFAULT_MTU = 1500;

/**
 * The keys of `--config-file` that are about the network, on one line: `network-interfaces`, the kernel's
 * arguments with `ip=`, and the metadata service (MMDS, version 2) on the first interface. Each is also
 * the body, or a list of bodies, of the API's request of that name.
 *
 * @throws {InputError} for a VM whose TAPs have several queues, which Firecracker does not open
 */
export function firecrackerConfig(record: VmRecord): string {
  const { interfaces: [first] } = record;
  if (record.interfaces.some(({ queues = 1 }) => queues > 1)) {
    throw new InputError(
      `Firecracker cannot open the TAP of "${record.vm}", which has several queues`,
      {
        mend: "remove the VM, and attach it without --queues",
      },
    );
  }
  const words = [BOOT_ARGS, kernelArgument(record)].filter((word) => word !== "");
  return JSON.stringify({
    "boot-source": { boot_args: words.join(" ") },
    "network-interfaces": record.interfaces.map(networkInterface),
    ...first === undefined
      ? {}
      : { "mmds-config": { version: "V2", network_interfaces: [first.name] } },
  });
}

/** Firecracker before 1.16 refuses the key `mtu`. */
function networkInterface({ name, tap, mac, mtu }: VmInterface) {
  return {
    iface_id: name,
    host_dev_name: tap,
    guest_mac: mac,
    ...mtu === DEFAULT_MTU ? {} : { mtu },
  };
}

/**
 * The content of the metadata service, for `--metadata` or `PUT /mmds`, on one line, in the form that EC2's
 * has: `latest/meta-data/local-ipv4`. All values are text, lists have a value a line, as the service
 * needs it to answer in plain text.
 */
export function metadata(record: VmRecord): string {
  const macs = record.interfaces.map((link, index) => [link.mac, {
    "device-number": String(index),
    ...addressLines(link),
  }]);
  const first = record.interfaces[0];
  return JSON.stringify({
    latest: {
      "meta-data": {
        "instance-id": record.id,
        "local-hostname": hostname(record),
        ...first === undefined ? {} : { mac: first.mac, ...firstAddress(first) },
        network: { interfaces: { macs: Object.fromEntries(macs) } },
      },
    },
  });
}

function firstAddress(link: VmInterface) {
  const address = addressesOf(link, 4)[0]?.address;
  return address === undefined ? {} : { "local-ipv4": address };
}

function addressLines(link: VmInterface) {
  const [four, six] = ([4, 6] as const).map((family) => addressesOf(link, family));
  const prefix = four![0];
  return {
    ...prefix === undefined ? {} : {
      "local-ipv4s": four!.map(({ address }) => address).join("\n"),
      "subnet-ipv4-cidr-block": `${prefix.network}/${prefix.prefixLength}`,
    },
    ...six!.length === 0 ? {} : { ipv6s: six!.map(({ address }) => address).join("\n") },
  };
}
