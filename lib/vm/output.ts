/**
 * A VM's record in the forms that shells, kernels and VMMs read.
 *
 * @module
 */

import { netmask, parseCidr } from "../inet/ip.ts";
import { formatPort } from "../inet/ports.ts";
import type { OutputFormat, VmInterface, VmRecord } from "./types.ts";

/**
 * The record as text without a final newline.
 *
 * - `json`: one line of JSON.
 * - `env`: shell assignments, one a line, quoted so that `eval` is safe.
 * - `cmdline`: kernel arguments, one `ip=` per address family and interface. Linux itself
 *   configures IPv4 only; the IPv6 form is the one dracut's initramfs reads.
 * - `qemu`: QEMU arguments on one line; no value holds a space.
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
      return record.interfaces.flatMap((link) => kernelArguments(record, link)).join(" ");
    case "qemu":
      return record.interfaces.map(qemuArguments).join(" ");
  }
}

/**
 * What `{tap}`, `{mac}`, … stand for in a VMM's arguments: the values of the first interface, and
 * of the VM. A value the network does not give is the empty string.
 */
export function placeholders(record: VmRecord): Record<string, string> {
  const first = record.interfaces[0];
  return {
    name: record.vm,
    netns: record.netns,
    cmdline: formatRecord(record, "cmdline"),
    ...first === undefined
      ? { tap: "", mac: "", mtu: "", ip: "", netmask: "", gateway: "" }
      : interfaceValues(first),
  };
}

/** `text` as one word of a POSIX shell. */
export function shellQuote(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

function interfaceValues(link: VmInterface) {
  const main = mainAddress(link);
  const cidr = main && parseCidr(main.address);
  return {
    tap: link.tap,
    mac: link.mac,
    mtu: String(link.mtu),
    ip: cidr?.address ?? "",
    netmask: cidr === undefined
      ? ""
      : cidr.family === 4
      ? netmask(cidr.prefixLength)
      : String(cidr.prefixLength),
    gateway: main?.gateway ?? "",
  };
}

/** IPv4 where there is one: what a guest with one address is configured by. */
function mainAddress(link: VmInterface) {
  return link.addresses.find(({ address }) => !address.includes(":")) ?? link.addresses[0];
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

/** ip=CLIENT:SERVER:GATEWAY:NETMASK:HOST:DEVICE:AUTOCONF:DNS0:DNS1 (Linux, admin-guide/nfs/nfsroot.rst). */
function kernelArguments(record: VmRecord, link: VmInterface): string[] {
  const host = record.vm;
  return link.addresses.map(({ address, gateway = "" }) => {
    const cidr = parseCidr(address);
    if (cidr.family === 6) {
      const router = gateway && `[${gateway}]`;
      return `ip=[${cidr.address}]::${router}:${cidr.prefixLength}:${host}:${link.name}:off`;
    }
    const servers = record.dns.nameservers.filter((server) => !server.includes(":")).slice(0, 2);
    return [
      `ip=${cidr.address}`,
      "",
      gateway,
      netmask(cidr.prefixLength),
      host,
      link.name,
      "off",
      ...servers,
    ].join(":");
  });
}

function qemuArguments(link: VmInterface): string {
  return [
    `-netdev tap,id=${link.name},ifname=${link.tap},script=no,downscript=no`,
    `-device virtio-net-pci,netdev=${link.name},mac=${link.mac},host_mtu=${link.mtu}`,
  ].join(" ");
}
