/**
 * A VM's record in formats for shells, kernels and VMMs.
 *
 * @module
 */

import { netmask, parseCidr } from "../inet/ip.ts";
import { formatPort } from "../inet/ports.ts";
import { ipv4Of } from "./record/derive.ts";
import type { Attached, OutputFormat, VmInterface, VmRecord } from "./types.ts";

/**
 * The record as text without a final newline.
 *
 * - `json`: one line of JSON.
 * - `env`: shell assignments, one a line, quoted so that `eval` is safe.
 * - `cmdline`: the kernel's `ip=`, for the first interface with an IPv4 address.
 * - `dracut`: arguments for dracut's initramfs, for all interfaces (dracut.cmdline(7)).
 * - `qemu`: QEMU arguments on one line. No value has a space.
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
      return dracutArguments(record).join(" ");
    case "qemu":
      return record.interfaces.map(qemuArguments).join(" ");
  }
}

/** The record as text. JSON also has the changes, and whether the VMM must open its TAP again. */
export function formatAttached(done: Attached, format: OutputFormat): string {
  const { record, changes, tapReplaced } = done;
  if (format !== "json") return formatRecord(record, format);
  return JSON.stringify({ ...record, changes, ...tapReplaced ? { tapReplaced } : {} });
}

/**
 * The values of `{tap}`, `{mac}`, … in a VMM's arguments, from the first interface and the VM. A
 * value that the network does not give is the empty string.
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

/** The address to configure a guest with that takes only one: IPv4 if there is one. */
function mainAddress(link: VmInterface) {
  return ipv4Of(link) ?? link.addresses[0];
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

/**
 * ip=CLIENT:SERVER:GATEWAY:NETMASK:HOST:DEVICE:AUTOCONF:DNS0:DNS1 (Linux, admin-guide/nfs/nfsroot.rst).
 * The kernel takes the last of several. Empty without IPv4.
 */
function kernelArgument(record: VmRecord): string {
  const links = record.interfaces.map((link) => ({ link, address: addressesOf(link, 4)[0] }));
  const first = links.find(({ address }) => address !== undefined);
  if (first?.address === undefined) return "";
  const { link, address: { address, prefixLength } } = first;
  const servers = record.dns.nameservers.filter((server) => !server.includes(":")).slice(0, 2);
  const router = defaultGateway(link, 4);
  const fields = [address, "", router, netmask(prefixLength), hostname(record), link.name, "off"];
  return `ip=${[...fields, ...servers].join(":")}`;
}

/** ip=CLIENT:PEER:GATEWAY:NETMASK:HOST:DEVICE:none:MTU, rd.route=NET:GATEWAY:DEVICE, nameserver=ADDRESS. */
function dracutArguments(record: VmRecord): string[] {
  const bracketed = (text: string) => text.includes(":") ? `[${text}]` : text;
  const of = ([family, link]: readonly [4 | 6, VmInterface]) => {
    const { name, mtu } = link;
    const router = bracketed(defaultGateway(link, family));
    return addressesOf(link, family).map(({ address, prefixLength }) => {
      const mask = family === 4 ? netmask(prefixLength) : prefixLength;
      return `ip=${bracketed(address)}::${router}:${mask}:${hostname(record)}:${name}:none:${mtu}`;
    });
  };
  const routes = record.interfaces.flatMap(({ name, routes }) =>
    routes.flatMap(({ dst, gw }) =>
      gw === undefined || isDefault(dst)
        ? []
        : [`rd.route=${bracketed(dst)}:${bracketed(gw)}:${name}`]
    )
  );
  return [
    ...record.interfaces.flatMap((link) => ([[4, link], [6, link]] as const).flatMap(of)),
    ...routes,
    ...record.dns.nameservers.map((server) => `nameserver=${bracketed(server)}`),
  ];
}

function addressesOf(link: VmInterface, family: 4 | 6) {
  return link.addresses.map(({ address }) => parseCidr(address))
    .filter((cidr) => cidr.family === family);
}

/** A network's gateway is only used if there is a default route. */
function defaultGateway(link: VmInterface, family: 4 | 6): string {
  const isOf = (text: string) => text.includes(":") === (family === 6);
  const route = link.routes.find(({ dst }) => isDefault(dst) && isOf(dst));
  if (route === undefined) return "";
  return route.gw ?? link.addresses.find(({ address }) => isOf(address))?.gateway ?? "";
}

function isDefault(dst: string): boolean {
  return dst === "0.0.0.0/0" || dst === "::/0";
}

/** RFC 1123 does not allow an underscore. */
function hostname({ vm }: VmRecord): string {
  return vm.replaceAll("_", "-");
}

function qemuArguments(link: VmInterface): string {
  return [
    `-netdev tap,id=${link.name},ifname=${link.tap},script=no,downscript=no`,
    `-device virtio-net-pci,netdev=${link.name},mac=${link.mac},host_mtu=${link.mtu}`,
  ].join(" ");
}
