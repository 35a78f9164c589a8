#!/bin/sh
# The address of an owner: the one that it has, or the lowest free one of this host's part of the range.
# Waits for the quorum.
. /home/weave/common.sh
. "$RUN/settings"
: >"$RUN/asked"
until [ -n "$(line_of ring)" ]; do sleep 0.1; done
if [ -f "$RUN/left" ]; then
  printf cancelled
  exit
fi
lock
address=$(line_of "$1" | head -n 1)
if [ -z "$address" ]; then
  part=$(($(size "$RANGE") / 4))
  next=$(($(number "$RANGE") + $(line_of ring) * part))
  [ "$(line_of ring)" != 0 ] || next=$((next + 1))
  while grep -q " $(dotted $next)/" "$DB"; do next=$((next + 1)); done
  address=$(dotted $next)/${RANGE#*/}
  echo "$1 $address" >>"$DB"
fi
unlock
printf %s "$address"
