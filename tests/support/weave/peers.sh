#!/bin/sh
# Connects to the peers again and again; $RUN/connections has a line for each: ADDRESS STATE NAME INFO.
. /home/weave/common.sh
. "$RUN/settings"

tunnel() {
  name=vethwe-$(echo "$1" | sha256sum | cut -c1-6)
  ip link show "$name" >/dev/null 2>&1 && return
  ip link add "$name" mtu "$(cat /sys/class/net/weave/mtu)" up type vxlan id 6784 dstport 6784 \
    remote "$1" 2>/dev/null ||
    ip link add "$name" mtu 1450 up type vxlan id 6784 dstport 6784 remote "$1"
  # Frames of one peer are not passed on to another: they are joined themselves.
  ip link set "$name" master weave
  ip link set "$name" type bridge_slave isolated on
}

until answers 127.0.0.1 6783 </dev/null; do sleep 0.05; done
while :; do
  place=0
  known=1
  : >"$RUN/connections.new"
  for peer in $(line_of peers); do
    read -r name nickname range secret nonce <<END
$(nc -w 1 "$peer" 6783 </dev/null 2>/dev/null)
END
    if [ -z "$name" ]; then
      echo "$peer failed - dial tcp4 :0->$peer:6783: connect: connection refused, retry: soon"
    elif [ "$nonce" = "$NONCE" ]; then
      echo "$peer failed - cannot connect to ourself, retry: never"
      [ -n "$(line_of ring)" ] || echo "$place" >"$RUN/place"
    elif [ "$name" = "$NAME" ]; then
      echo "$peer failed - peer names collision, retry: soon"
    elif [ "$secret" != "$SECRET" ]; then
      echo "$peer failed - password specified, but peer requested an unencrypted connection, retry: soon"
    elif [ "$range" != "$RANGE" ]; then
      echo "$peer failed - Incompatible IP allocation ranges: remote $range, local $RANGE, retry: soon"
    else
      known=$((known + 1))
      echo "$peer established $name sleeve $name($nickname)"
      tunnel "$peer"
    fi >>"$RUN/connections.new"
    place=$((place + 1))
  done
  # Where this host is not in the list, it comes after it.
  [ -f "$RUN/place" ] || echo $((place % 4)) >"$RUN/place"
  mv "$RUN/connections.new" "$RUN/connections"
  echo "$known" >"$RUN/known"
  if [ -f "$RUN/asked" ] && [ -z "$(line_of ring)" ] && [ -f "$RUN/place" ] &&
    [ "$known" -ge $((CONSENSUS / 2 + 1)) ]; then
    lock
    set_line ring "$(cat "$RUN/place")"
    unlock
  fi
  sleep 0.3
done
