/**
 * Numbers of the headers around a DHCP message, for whoever builds, parses or filters frames.
 *
 * @module
 */

/** linux/if_ether.h. */
export const ETH_P_IP = 0x0800;
export const ETH_HLEN = 14;
/** linux/in.h. */
export const IPPROTO_UDP = 17;
/** More fragments, or an offset: part of a datagram. */
export const IP_FRAGMENT_MASK = 0x3fff;

/** Ports of BOOTP (RFC 951). */
export const BOOTPS = 67;
export const BOOTPC = 68;
