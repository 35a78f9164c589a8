#!/bin/sh
# A stand-in for Weave's CNI plugin, for routers that are stand-ins too: CNI 0.3.0, one address and its
# gateway in the result, names of links by seven characters of the container id.

fail() {
  printf '{"code":100,"msg":"%s"}\n' "$1"
  exit 1
}

# ask METHOD PATH: the status in $status, the body in $body.
ask() {
  if ! answer=$(printf '%s %s HTTP/1.0\r\nContent-Length: 0\r\n\r\n' "$1" "$2" |
    busybox nc -w 120 127.0.0.1 6784 2>/dev/null) || [ -z "$answer" ]; then
    fail "unable to $3 IP address: $1 http://127.0.0.1:6784$2: dial tcp 127.0.0.1:6784: connect: connection refused"
  fi
  status=$(echo "$answer" | sed -n '1s/^HTTP[^ ]* \([0-9]*\).*/\1/p')
  body=$(echo "$answer" | sed '1,/^.$/d')
}

short=$(echo "$CNI_CONTAINERID" | cut -c1-7)
inside() {
  nsenter --net="$CNI_NETNS" -- ip "$@"
}

case $CNI_COMMAND in
  VERSION) echo '{"cniVersion":"0.3.0","supportedVersions":["0.1.0","0.2.0","0.3.0"]}' ;;
  ADD)
    ask POST "/ip/$CNI_CONTAINERID" allocate
    case $body in
      cancelled) fail "unable to allocate IP address: invalid CIDR address: cancelled" ;;
    esac
    gateway=$(ip -4 -o address show dev weave 2>/dev/null | sed -n 's/.* inet \([^/]*\).*/\1/p' | head -n 1)
    [ -n "$gateway" ] || fail "Could not find \\\"weave\\\" bridge"
    mtu=$(cat /sys/class/net/weave/mtu)
    said=$(ip link add "vethwepl$short" mtu "$mtu" type veth peer name "vethwepg$short" mtu "$mtu" 2>&1) ||
      fail "could not create veth pair vethwepl$short-vethwepg$short: file exists"
    said=$(
      ip link set "vethwepl$short" master weave up 2>&1 &&
        ip link set "vethwepg$short" netns "$CNI_NETNS" 2>&1 &&
        inside link set "vethwepg$short" name "$CNI_IFNAME" 2>&1 &&
        inside address add "$body" dev "$CNI_IFNAME" 2>&1 &&
        inside link set "$CNI_IFNAME" up 2>&1 &&
        inside route add default via "$gateway" dev "$CNI_IFNAME" 2>&1
    ) || {
      ip link delete "vethwepl$short"
      fail "error setting up interface: $said"
    }
    bridge link set dev "vethwepl$short" hairpin on
    printf '{"cniVersion":"0.3.0","ips":[{"version":"4","address":"%s","gateway":"%s"}],"dns":{}}\n' \
      "$body" "$gateway"
    ;;
  DEL)
    [ -z "$CNI_NETNS" ] || inside link delete "$CNI_IFNAME" 2>/dev/null || true
    ask DELETE "/ip/$CNI_CONTAINERID" release
    # Later versions of the real one let that pass.
    [ "$status" = 204 ] || fail "unable to release IP address: 400 Bad Request: $body"
    ;;
  *) fail "unknown CNI_COMMAND: $CNI_COMMAND" ;;
esac
