/**
 * An image that stands in for Weave Net's, which cannot be had without a registry: made of busybox, ip,
 * iptables and perl of the machine. What it does and cannot show stands in launch.sh beside this file.
 */

import type { Host } from "../host.ts";
import { ROOT } from "../machine.ts";

const FILES = [
  [
    "launch.sh",
    "common.sh",
    "greet.sh",
    "metrics.sh",
    "peers.sh",
    "allocate.sh",
    "control.sh",
    "listen.pl",
  ],
  ["plugin.sh", "conflist.json", "status-request"],
].flat();

/** The documentation's image. */
export const WEAVE_IMAGE = "weaveworks/weave-kube:2.5.2";

/** What to make. */
export interface StandIn {
  /** Its name; the documentation's unless given. */
  readonly image?: string;
  /** Ask Kubernetes for its version at the start, and end without an answer, as 2.8.1 and later do. */
  readonly asksKubernetes?: boolean;
}

/** Makes the image on a host that has a Docker engine. */
export async function importWeave(host: Host, made: StandIn = {}): Promise<void> {
  const { image = WEAVE_IMAGE, asksKubernetes = false } = made;
  const source = `${ROOT}/tests/support/weave`;
  // Outside of /run and /tmp the image's directory would be an overlay's.
  await host.sh(`
    set -e
    root=$(mktemp -d /run/weave-image.XXXXXX)
    mkdir -p $root/bin $root/sbin $root/usr/bin $root/lib $root/lib64 $root/etc $root/tmp \\
      $root/home/weave $root/weavedb $root/run
    cp "$(command -v busybox)" $root/bin/busybox
    for applet in $($root/bin/busybox --list | grep -vx busybox); do
      ln -s busybox $root/bin/$applet; done
    rm $root/bin/ip
    cp -L "$(command -v ip)" $root/bin/ip
    cp -L "$(command -v perl)" $root/bin/perl
    cp -L "$(command -v xtables-legacy-multi)" $root/sbin/xtables-legacy-multi
    for name in iptables iptables-save iptables-restore; do
      ln -s xtables-legacy-multi $root/sbin/$name
    done
    for file in $(ldd $root/bin/ip $root/bin/perl $root/sbin/xtables-legacy-multi | grep -o '/[^ :]*' | sort -u); do
      [ -f $file ] || continue
      case $file in $root*) continue ;; esac
      mkdir -p $root$(dirname $file)
      cp -L $file $root$file
    done
    modules=$(dirname "$(find /usr/lib* -name libxt_conntrack.so | head -n 1)")
    mkdir -p $root$modules
    for name in libxt_conntrack libxt_standard libxt_MASQUERADE libipt_MASQUERADE libxt_NAT; do
      [ ! -f $modules/$name.so ] || cp -L $modules/$name.so $root$modules
    done
    cd ${source}
    cp ${FILES.join(" ")} $root/home/weave
    chmod 755 $root/home/weave/*.sh
    ${asksKubernetes ? ASK_KUBERNETES : ""}
    tar -C $root -c . | docker import - ${image} >/dev/null
    rm -rf $root`);
}

/** What a later image has beside, and the lines at which it ends outside Kubernetes. */
const ASK_KUBERNETES = `
    printf '#!/bin/sh\\necho "unable to load in-cluster configuration" >&2\\nexit 1\\n' \\
      >$root/home/weave/kube-utils
    chmod 755 $root/home/weave/kube-utils
    sed -i '/^IPALLOC_RANGE=/i \\
# couple more variables\\
WEAVE_KUBERNETES_VERSION=$(/home/weave/kube-utils -print-k8s-version)\\
WEAVE_KUBERNETES_UID=$(/home/weave/kube-utils -print-uid)' $root/home/weave/launch.sh
`;
