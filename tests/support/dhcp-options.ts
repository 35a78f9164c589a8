/**
 * DHCP options as a client reads them.
 *
 * @module
 */

import type { ClasslessRoute, DhcpOptions } from "../../lib/dhcp/options.ts";
import { bytesToIp } from "../../lib/inet/ip.ts";

/** The value of an option of four bytes in network order. */
export function optionU32be(options: DhcpOptions, code: number): number | undefined {
  const value = options.get(code);
  return value && new DataView(value.buffer, value.byteOffset, value.byteLength).getUint32(0);
}

/** Decodes option 119, uncompressed. */
export function decodeDomainSearch(value: Uint8Array): string[] {
  const names: string[] = [];
  for (let offset = 0; offset < value.length; offset++) {
    const labels: string[] = [];
    for (let length; (length = value[offset]!) > 0; offset += 1 + length) {
      labels.push(new TextDecoder().decode(value.subarray(offset + 1, offset + 1 + length)));
    }
    names.push(labels.join("."));
  }
  return names;
}

/** Decodes option 121. */
export function decodeClasslessRoutes(value: Uint8Array): ClasslessRoute[] {
  const routes: ClasslessRoute[] = [];
  for (let offset = 0; offset < value.length;) {
    const prefixLength = value[offset]!;
    const end = offset + 1 + Math.ceil(prefixLength / 8);
    const network = new Uint8Array(4);
    network.set(value.subarray(offset + 1, end));
    const gateway = bytesToIp(value.subarray(end, end + 4));
    routes.push({ dst: `${bytesToIp(network)}/${prefixLength}`, gateway });
    offset = end + 4;
  }
  return routes;
}
