/**
 * A VM's interfaces as arguments of QEMU and of Cloud Hypervisor, and as elements of a domain of libvirt's.
 *
 * @module
 */

import type { VmRecord } from "../types.ts";

/**
 * `-netdev` and `-device` for each interface. No value has a space. Each queue is a pair of virtqueues,
 * each with an interrupt vector of its own; control and configuration have one each.
 */
export function qemuArguments({ interfaces }: VmRecord): string {
  return interfaces.map(({ name, tap, mac, mtu, queues = 1 }) => {
    const several = queues > 1
      ? { backend: `,queues=${queues}`, card: `,mq=on,vectors=${2 * queues + 2}` }
      : { backend: "", card: "" };
    return [
      `-netdev tap,id=${name},ifname=${tap},script=no,downscript=no${several.backend}`,
      `-device virtio-net-pci,netdev=${name},mac=${mac},host_mtu=${mtu}${several.card}`,
    ].join(" ");
  }).join(" ");
}

/**
 * `--net`, which takes a value for each interface. Without `mtu=`, Cloud Hypervisor gives the guest the
 * TAP's MTU; with it, it would set the TAP's, for which it needs a capability.
 */
export function cloudHypervisorArguments({ interfaces }: VmRecord): string {
  if (interfaces.length === 0) return "";
  const values = interfaces.map(({ name, tap, mac, queues = 1 }) =>
    // It counts virtqueues.
    `tap=${tap},mac=${mac},id=${name}${queues > 1 ? `,num_queues=${2 * queues}` : ""}`
  );
  return ["--net", ...values].join(" ");
}

/**
 * An `<interface>` for each interface, of a libvirt that runs in the VM's namespace. It has no `<mtu>`: with
 * one, libvirt would set the TAP's, for which it needs a capability.
 */
export function libvirtInterfaces({ interfaces }: VmRecord): string {
  return interfaces.map(({ tap, mac, queues = 1 }) =>
    [
      "<interface type='ethernet'>",
      `<mac address='${mac}'/>`,
      `<target dev='${tap}' managed='no'/>`,
      "<model type='virtio'/>",
      ...queues > 1 ? [`<driver queues='${queues}'/>`] : [],
      "</interface>",
    ].join("")
  ).join("\n");
}
