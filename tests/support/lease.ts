/**
 * What a guest makes of its DHCP lease: one script for busybox' udhcpc, in real guests and in
 * namespaces, and the reading of what it prints.
 */

/**
 * Configures the interface from the lease and prints each option as `lease NAME=VALUE`, then
 * `lease end`. Needs `busybox` on its path, and writes /etc/resolv.conf and the host name.
 * With classless static routes the router option does not count (RFC 3442).
 */
export const UDHCPC_SCRIPT = `#!/bin/sh
PATH=$PATH:/bin:/sbin:/usr/bin
configure() {
  busybox ip -4 address flush dev $interface
  [ -z "$mtu" ] || busybox ip link set $interface mtu $mtu
  busybox ip address add $ip/$mask broadcast + dev $interface
  if [ -n "$staticroutes" ]; then
    set -- $staticroutes
    while [ $# -gt 1 ]; do
      case $2 in
        0.0.0.0) busybox ip route replace $1 dev $interface ;;
        *) busybox ip route replace $1 via $2 dev $interface onlink ;;
      esac
      shift 2
    done
  else
    for gateway in $router; do
      busybox ip route replace default via $gateway dev $interface
      break
    done
  fi
  : >/etc/resolv.conf
  [ -z "$search$domain" ] || echo "search \${search:-$domain}" >>/etc/resolv.conf
  for server in $dns; do echo "nameserver $server" >>/etc/resolv.conf; done
  [ -z "$hostname" ] || busybox hostname "$hostname"
}
case $1 in
  bound | renew)
    configure
    for name in interface ip mask subnet broadcast router staticroutes dns domain search \\
      hostname mtu lease serverid siaddr sname boot_file ntpsrv opt53; do
      eval value=\\$$name
      [ -z "$value" ] || echo "lease $name=$value"
    done
    echo "lease end"
    ;;
  deconfig) busybox ip link set $interface up ;;
esac
`;

/** The options a guest asks for beyond the usual ones. */
export const UDHCPC_OPTIONS = ["hostname", "search", "mtu", "staticroutes", "broadcast"]
  .flatMap((name) => ["-O", name]);

/** A lease, as the guest saw it. Addresses and numbers are text; lists are split. */
export interface Lease {
  readonly ip: string;
  /** The prefix length, in digits. */
  readonly mask: string;
  readonly router: readonly string[];
  readonly dns: readonly string[];
  readonly search: readonly string[];
  /** Classless routes: `"0.0.0.0/0 172.18.0.1"`. */
  readonly routes: readonly string[];
  readonly hostname?: string;
  readonly mtu?: string;
  /** Seconds; 4294967295 is for ever. */
  readonly lease?: string;
  readonly serverid?: string;
  /** Every option by udhcpc's name. */
  readonly options: Readonly<Record<string, string>>;
}

/** Reads what {@linkcode UDHCPC_SCRIPT} printed; `undefined` when it did not come to its end. */
export function parseLease(lines: readonly string[]): Lease | undefined {
  if (!lines.some((line) => line.trim() === "lease end")) return undefined;
  const options: Record<string, string> = {};
  for (const line of lines) {
    const match = /^lease (\w+)=(.*)$/.exec(line.trim());
    if (match !== null) options[match[1]!] = match[2]!.trim();
  }
  const list = (name: string) => options[name]?.split(/\s+/) ?? [];
  const words = list("staticroutes");
  const routes: string[] = [];
  for (let index = 0; index + 1 < words.length; index += 2) {
    routes.push(`${words[index]} ${words[index + 1]}`);
  }
  const { ip = "", mask = "", hostname, mtu, lease, serverid } = options;
  return {
    ip,
    mask,
    router: list("router"),
    dns: list("dns"),
    search: list("search"),
    routes,
    ...(hostname === undefined ? {} : { hostname }),
    ...(mtu === undefined ? {} : { mtu }),
    ...(lease === undefined ? {} : { lease }),
    ...(serverid === undefined ? {} : { serverid }),
    options,
  };
}
