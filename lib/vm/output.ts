/**
 * A VM's record in formats for shells, kernels, VMMs and guests.
 *
 * @module
 */

import { InputError } from "../errors.ts";
import { formatPort } from "../inet/ports.ts";
import { cloudInitNetwork } from "./output/cloud-init.ts";
import { firecrackerConfig, metadata } from "./output/firecracker.ts";
import { dracutArguments, kernelArgument } from "./output/kernel.ts";
import { interfaceValues } from "./output/values.ts";
import { cloudHypervisorArguments, libvirtInterfaces, qemuArguments } from "./output/vmm.ts";
import type { Attached, OutputFormat, VmRecord } from "./types.ts";

/**
 * The record as text without a final newline.
 *
 * - `json`: one line of JSON.
 * - `env`: shell assignments, one a line, quoted so that `eval` is safe.
 * - `cmdline`: the kernel's `ip=`, for the first interface with an IPv4 address.
 * - `dracut`: arguments for dracut's initramfs, for all interfaces (dracut.cmdline(7)).
 * - `qemu`, `cloud-hypervisor`: arguments of the VMM on one line. No value has a space.
 * - `libvirt`: an `<interface>` of a domain for each interface, one a line.
 * - `firecracker`: a part of Firecracker's configuration file; one line of JSON.
 * - `mmds`: the content of Firecracker's metadata service; one line of JSON.
 * - `cloud-init`: a network configuration of version 2 for cloud-init; one line of JSON.
 */
export function formatRecord(record: VmRecord, format: OutputFormat): string {
  switch (format) {
    case "json":
      return JSON.stringify(record);
    case "env":
      return environment(record)
        .map(([name, value]) => `${name}=${shellQuote(value)}`)
        .join("\n");
    case "cmdline":
      return kernelArgument(record);
    case "dracut":
      return dracutArguments(record);
    case "qemu":
      return qemuArguments(record);
    case "cloud-hypervisor":
      return cloudHypervisorArguments(record);
    case "libvirt":
      return libvirtInterfaces(record);
    case "firecracker":
      return firecrackerConfig(record);
    case "mmds":
      return metadata(record);
    case "cloud-init":
      return cloudInitNetwork(record);
  }
}

/** The record as text. JSON also has the changes, and whether the VMM must open its TAP again. */
export function formatAttached(done: Attached, format: OutputFormat): string {
  const { record, changes, tapReplaced } = done;
  if (format !== "json") return formatRecord(record, format);
  return JSON.stringify({ ...record, changes, ...tapReplaced ? { tapReplaced } : {} });
}

/** The placeholders that each interface has. */
const OF_INTERFACE = ["tap", "mac", "mtu", "queues", "ip", "netmask", "gateway"] as const;

/**
 * The values of `{name}`, `{tap}`, `{eth1.tap}`, … in a VMM's arguments. Those without an interface are
 * the first one's. A value that the network does not give is the empty string.
 */
export function placeholders(record: VmRecord): Record<string, string> {
  const none = Object.fromEntries(OF_INTERFACE.map((key) => [key, ""]));
  const [first] = record.interfaces;
  return {
    name: record.vm,
    netns: record.netns,
    cmdline: formatRecord(record, "cmdline"),
    ...first === undefined ? none : interfaceValues(first),
    ...Object.fromEntries(record.interfaces.flatMap((link) => {
      const values = interfaceValues(link);
      return OF_INTERFACE.map((key) => [`${link.name}.${key}`, values[key]]);
    })),
  };
}

/**
 * Replaces the placeholders in a VMM's arguments. Other text in braces stays.
 *
 * @throws {InputError} for a placeholder of an interface that the VM does not have
 */
export function fillIn(record: VmRecord, argv: readonly string[]): string[] {
  const values = placeholders(record);
  return argv.map((argument) =>
    argument.replaceAll(PLACEHOLDER, (whole, name: string) => {
      if (Object.hasOwn(values, name)) return values[name]!;
      const [link, key] = name.split(".");
      if (key === undefined || !(OF_INTERFACE as readonly string[]).includes(key)) return whole;
      throw new InputError(
        `${whole} is of an interface "${link}" that "${record.vm}" does not have`,
        {
          mend: "name one that it has, or add a network with --network",
        },
      );
    })
  );
}

const PLACEHOLDER = /\{(\w+(?:\.\w+)?)\}/g;

/** `text` as one word of a POSIX shell. */
export function shellQuote(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

function environment(record: VmRecord): [name: string, value: string][] {
  return [
    ["TAPKIT_NAME", record.vm],
    ["TAPKIT_ID", record.id],
    ["TAPKIT_NETNS", record.netns],
    ["TAPKIT_INTERFACES", record.interfaces.map(({ name }) => name).join(" ")],
    ["TAPKIT_NAMESERVERS", record.dns.nameservers.join(" ")],
    ["TAPKIT_SEARCH", record.dns.search.join(" ")],
    ["TAPKIT_PORTS", record.ports.map(formatPort).join(" ")],
    ["TAPKIT_CMDLINE", formatRecord(record, "cmdline")],
    ...record.interfaces.flatMap((link) => {
      const prefix = `TAPKIT_${link.name.toUpperCase().replaceAll(/[^A-Z0-9]/g, "_")}`;
      const values = {
        ...interfaceValues(link),
        network: link.network,
        addresses: link.addresses.map(({ address }) => address).join(" "),
      };
      return Object.entries(values).map(([key, value]): [string, string] => [
        `${prefix}_${key.toUpperCase()}`,
        value,
      ]);
    }),
  ];
}
