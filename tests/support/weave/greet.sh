#!/bin/sh
# What a peer that connects is told.
. /home/weave/common.sh
. "$RUN/settings"
echo "$NAME $NICKNAME $RANGE $SECRET $NONCE"
