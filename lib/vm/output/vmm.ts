/**
 * A VM's interfaces as arguments of QEMU and of Cloud Hypervisor.
 *
 * @module
 */

import type { VmInterface, VmRecord } from "../types.ts";

/** `-netdev` and `-device` for each interface. No value has a space. */
export function qemuArguments({ interfaces }: VmRecord): string {
  return interfaces.map(({ name, tap, mac, mtu }: VmInterface) =>
    [
      `-netdev tap,id=${name},ifname=${tap},script=no,downscript=no`,
      `-device virtio-net-pci,netdev=${name},mac=${mac},host_mtu=${mtu}`,
    ].join(" ")
  ).join(" ");
}

/**
 * `--net`, which takes a value for each interface. Without `mtu=`, Cloud Hypervisor gives the guest the
 * TAP's MTU; with it, it would set the TAP's, for which it needs a capability.
 */
export function cloudHypervisorArguments({ interfaces }: VmRecord): string {
  if (interfaces.length === 0) return "";
  return ["--net", ...interfaces.map(({ name, tap, mac }) => `tap=${tap},mac=${mac},id=${name}`)]
    .join(" ");
}
