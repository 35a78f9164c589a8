#!/bin/sh
# A stand-in for /home/weave/launch.sh of weaveworks/weave-kube:2.5.2, where that image cannot be had.
#
# It takes the same environment and mounts, goes through the same steps in the same order, and its
# control API (control.sh) answers with the same words, as far as tapkit and its tests look at them.
#
# What it cannot show: Weave's own data path and its speed (hosts are joined by vxlan, which goes on
# while the router is down), encryption (passwords are compared, nothing is encrypted), the gossip
# between routers (a part of the range is a host's by its place in KUBE_PEERS; nothing moves when a
# peer leaves), discovery of peers' peers, the openvswitch datapath, network policy, a real db.

set -e
. /home/weave/common.sh

IPALLOC_RANGE=${IPALLOC_RANGE:-10.32.0.0/12}
METRICS_ADDR=${WEAVE_METRICS_ADDR:-0.0.0.0:6782}
EXPECT_NPC=${EXPECT_NPC:-1}

# weaveutil netcheck $IPALLOC_RANGE weave
ip -4 route show table all | grep -v ' dev weave ' | while read -r dst rest; do
  [ "$dst" != local ] && [ "$dst" != broadcast ] || continue
  case $dst in default | 127.*) continue ;; */*) ;; *) dst=$dst/32 ;; esac
  if overlap "$dst" "$IPALLOC_RANGE"; then
    echo "Network $IPALLOC_RANGE overlaps with existing route $dst on host" >&2
    exit 1
  fi
done

[ "$EXPECT_NPC" = 0 ] || echo 'Ignore the error if "br_netfilter" is built-in in the kernel' >&2
echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables || echo "Cannot detect bridge-nf support" >&2

if [ -z "$KUBE_PEERS" ]; then
  echo "Failed to get peers" >&2
  exit 1
fi
set -- $KUBE_PEERS
CONSENSUS=$#
case $IPALLOC_INIT in consensus=*) CONSENSUS=${IPALLOC_INIT#consensus=} ;; esac

if [ -f /restart.sentinel ]; then
  PEERS=$(sed -n 's/^peers //p' "$DB" 2>/dev/null || true)
  echo "Restart/resume detected - using persisted peer list: [$PEERS]"
else
  PEERS=$KUBE_PEERS
  echo "Launch detected - using supplied peer list: [$PEERS]"
fi

# The router makes its bridge.
if [ -d /sys/class/net/weave ]; then
  if [ -z "$WEAVE_NO_FASTDP" ]; then
    echo 'Existing bridge type "bridge" is different than requested "bridged_fastdp". Please do "weave reset" and try again' >&2
    exit 1
  fi
else
  ip link add weave mtu "${WEAVE_MTU:-65535}" address "$(machine_mac)" up type bridge
fi
if ! ip link show vethwe-bridge >/dev/null 2>&1; then
  ip link add vethwe-bridge mtu "${WEAVE_MTU:-65535}" type veth \
    peer name vethwe-pcap mtu "${WEAVE_MTU:-65535}"
  ip link set vethwe-pcap up
  ip link set vethwe-bridge master weave up
fi

rule() {
  iptables -w -t "$1" -C $2 2>/dev/null || iptables -w -t "$1" -A $2
}
chain() {
  iptables -w -t "$1" -N "$2" 2>/dev/null || true
}
chain filter WEAVE-EXPOSE
chain nat WEAVE
rule filter "FORWARD -i weave -o weave -j ACCEPT"
if [ "$EXPECT_NPC" != 0 ]; then
  chain filter WEAVE-NPC
  iptables -w -D FORWARD -i weave -o weave -j ACCEPT
  rule filter "FORWARD -o weave -j WEAVE-NPC"
  rule filter "FORWARD -o weave -j DROP"
fi
rule filter "FORWARD -i weave ! -o weave -j ACCEPT"
rule filter "FORWARD -o weave -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
rule filter "FORWARD -o weave -j WEAVE-EXPOSE"
rule nat "POSTROUTING -j WEAVE"
rule nat "WEAVE -s $IPALLOC_RANGE -d 224.0.0.0/4 -j RETURN"
rule nat "WEAVE ! -s $IPALLOC_RANGE -d $IPALLOC_RANGE -j MASQUERADE"
rule nat "WEAVE -s $IPALLOC_RANGE ! -d $IPALLOC_RANGE -j MASQUERADE"

NAME=$(cat /sys/class/net/weave/address)
rm -rf "$RUN"
mkdir -p "$RUN"
cat >"$RUN/settings" <<END
NAME=$NAME
NICKNAME=${HOSTNAME:-unnamed}
RANGE=$IPALLOC_RANGE
CONSENSUS=$CONSENSUS
SECRET=$(printf %s "$WEAVE_PASSWORD" | sha256sum | cut -c1-16)
ENCRYPTION=$([ -n "$WEAVE_PASSWORD" ] && echo true || echo false)
NONCE=$(head -c 8 /dev/urandom | xxd -p)
END
[ "$(line_of range 2>/dev/null)" = "$IPALLOC_RANGE" ] || echo "range $IPALLOC_RANGE" >"$DB"
set_line peers "$PEERS"
: >/restart.sentinel

unset WEAVE_PASSWORD
perl /home/weave/listen.pl 0.0.0.0:6783 /home/weave/greet.sh &
perl /home/weave/listen.pl "$METRICS_ADDR" /home/weave/metrics.sh &
perl /home/weave/listen.pl 127.0.0.1:6784 /home/weave/control.sh &
/home/weave/peers.sh &

# Beside the router, once its status answers: the plugins and the configuration, then the bridge's
# address.
until answers 127.0.0.1 6784 </home/weave/status-request; do sleep 0.1; done
mkdir -p /host/opt/cni/bin /host/etc/cni/net.d
cp /home/weave/plugin.sh /host/opt/cni/bin/weave-plugin-2.5.2
chmod 755 /host/opt/cni/bin/weave-plugin-2.5.2
for plugin in weave-net weave-ipam; do
  ln -sf weave-plugin-2.5.2 /host/opt/cni/bin/$plugin
done
rm -f /host/etc/cni/net.d/10-weave.conf
conflist=/host/etc/cni/net.d/10-weave.conflist
[ -f "$conflist" ] || cp /home/weave/conflist.json "$conflist"
address=$(/home/weave/allocate.sh weave:expose)
ip address show dev weave | grep -q "inet $address " || ip address add "$address" dev weave
rule filter "WEAVE-EXPOSE -d $IPALLOC_RANGE -j ACCEPT"
wait
