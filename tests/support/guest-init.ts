/** What runs in a real guest: its init, which is a shell script of busybox. */

import { UDHCPC_OPTIONS } from "./lease.ts";

/** The virtio driver of the network card, in the order in which the modules need each other. */
export const MODULES = [
  "failover",
  "net_failover",
  "virtio_ring",
  "virtio",
  "virtio_pci_legacy_dev",
  "virtio_pci_modern_dev",
  "virtio_pci",
  "virtio_net",
] as const;

/**
 * Loads the driver, configures `eth0` by `ip=` of the kernel's command line or else by DHCP,
 * serves HTTP on port 80, prints `ready` and then runs what is asked for on the serial console:
 * a line `run ID BASE64-OF-A-SCRIPT` is answered by `ran ID CODE =BASE64-OUT =BASE64-ERR`.
 * The end of the console's script is a panic, and so the end of the machine.
 */
export const INIT = `#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty raw -echo
read -r up _ </proc/uptime
echo "console \${up}"
for module in ${MODULES.join(" ")}; do insmod /lib/$module.ko; done
ip link set lo up
ip link set eth0 up

static=
for word in $(cat /proc/cmdline); do
  case $word in ip=*:*) static=\${word#ip=} ;; esac
done
if [ -n "$static" ]; then
  IFS=: read -r ip _ gateway netmask hostname _ _ dns0 dns1 <<EOF
$static
EOF
  ip address add $ip/$netmask dev eth0
  [ -z "$gateway" ] || ip route add default via $gateway
  [ -z "$hostname" ] || hostname $hostname
  for dns in $dns0 $dns1; do echo "nameserver $dns" >>/etc/resolv.conf; done
  echo "lease ip=$ip"
  echo "lease end"
else
  udhcpc -i eth0 -s /etc/udhcpc -f -q -n -t 15 -T 1 ${UDHCPC_OPTIONS.join(" ")} 2>&1
fi

echo "$(hostname) at your service" >/www/index.html
httpd -p 80 -h /www
read -r up _ </proc/uptime
echo "ready \${up}"
while read -r word id script; do
  [ "$word" = run ] || continue
  echo "$script" | base64 -d >/tmp/script
  sh /tmp/script </dev/null >/tmp/out 2>/tmp/err
  echo "ran $id $? =$(base64 -w0 /tmp/out) =$(base64 -w0 /tmp/err)"
done
`;

/** Tells a client its own address, as the guest sees it. */
export const CGI_CLIENT = `#!/bin/sh
printf 'Content-Type: text/plain\\r\\n\\r\\n%s' "$REMOTE_ADDR"
`;
