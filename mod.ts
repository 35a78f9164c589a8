/**
 * tapkit wires virtual machines into Linux networks: each gets a TAP device, an address on a CNI
 * network, DHCP and published ports. This is what the scripts call.
 *
 * ```ts
 * import { attachVm, removeVm } from "./mod.ts";
 *
 * const record = await attachVm({ name: "web", ports: ["8080:80"] });
 * console.log(record.netns, record.interfaces[0]?.tap, record.interfaces[0]?.mac);
 * await removeVm("web");
 * ```
 *
 * Everything here needs root, and throws {@linkcode TapkitError}: {@linkcode InputError} when
 * nothing was touched.
 *
 * @module
 */

import type { ServeOptions } from "./lib/vm/dhcp.ts";

export { InputError, SyscallError, TapkitError } from "./lib/errors.ts";
export type { PortMapping, Protocol } from "./lib/inet/ports.ts";
export type {
  AttachMode,
  AttachRequest,
  HostOptions,
  OutputFormat,
  VmAddress,
  VmDns,
  VmInterface,
  VmRecord,
  VmRoute,
} from "./lib/vm/types.ts";
export { attachVm } from "./lib/vm/attach.ts";
export { checkVm } from "./lib/vm/check.ts";
export { removeVm } from "./lib/vm/remove.ts";
export { listVms } from "./lib/vm/list.ts";
export { validateAttach } from "./lib/vm/request.ts";
export { formatRecord } from "./lib/vm/output.ts";
export { installDefaultCni, type InstallOptions } from "./lib/vm/default-network.ts";
export type { DefaultCniOptions, DefaultCniReport } from "./lib/cni/default-network.ts";
export { ensureDhcpServer } from "./lib/vm/dhcp-start.ts";
export { runVmm, VmmError, type VmmOptions } from "./lib/vm/vmm.ts";
export type { ServeOptions };

/**
 * Answers DHCP on the TAP of every attached VM until `options.signal` is raised, or with
 * `exitWhenIdle` until no VM is attached. One process serves a host.
 *
 * @throws {TapkitError} when another process serves already, unless `exitWhenIdle`
 */
export async function serveDhcp(options: ServeOptions = {}): Promise<void> {
  // Attaching does not load the server.
  const dhcp = await import("./lib/vm/dhcp.ts");
  await dhcp.serveDhcp(options);
}
