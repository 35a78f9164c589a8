#!/bin/sh
# The router's control API: one request.
. /home/weave/common.sh
. "$RUN/settings"

read -r method path _
length=0
while read -r header; do
  header=${header%$(printf '\r')}
  [ -n "$header" ] || break
  case $header in Content-Length:*) length=${header#*: } ;; esac
done
form=$([ "$length" = 0 ] || head -c "$length")

answer() {
  printf 'HTTP/1.0 %s\r\nContent-Type: %s\r\n\r\n%s' "$1" "${3:-text/plain}" "$2"
  exit
}

form_peers() {
  echo "$form" | tr '&' '\n' | sed -n 's/^peer=//p' | sed 's/%3A/:/g'
}

words() {
  sed 's/.*/"&"/' | paste -sd, -
}

peers_json() {
  echo "{\"Name\":\"$NAME\",\"NickName\":\"$NICKNAME\",\"Connections\":null}"
  sed -n 's/^[^ ]* established \([^ ]*\) .*(\(.*\))$/{"Name":"\1","NickName":"\2","Connections":null}/p' \
    "$RUN/connections"
}

connections_json() {
  sed 's/^\([^ ]*\) \([^ ]*\) [^ ]* \(.*\)$/{"Address":"\1:6783","Outbound":true,"State":"\2","Info":"\3"}/' \
    "$RUN/connections"
}

ipam_json() {
  echo "\"Range\":\"$RANGE\",\"RangeNumIPs\":$(size "$RANGE"),\"DefaultSubnet\":\"$RANGE\","
  echo "\"ActiveIPs\":$(grep -cv -e '^peers ' -e '^ring ' -e '^range ' "$DB"),\"PendingClaims\":null,"
  if [ -n "$(line_of ring)" ]; then
    known=$([ -f "$RUN/left" ] && echo false || echo true)
    echo "\"PendingAllocates\":null,\"Paxos\":null,\"Entries\":[{\"Token\":\"${RANGE%/*}\","
    echo "\"Size\":$(size "$RANGE"),\"Peer\":\"$NAME\",\"Nickname\":\"$NICKNAME\",\"IsKnownPeer\":$known,\"Version\":1}]"
  elif [ -f "$RUN/asked" ]; then
    echo "\"PendingAllocates\":[\"weave:expose $RANGE\"],\"Entries\":null,"
    echo "\"Paxos\":{\"Elector\":true,\"KnownNodes\":$(cat "$RUN/known"),\"Quorum\":$((CONSENSUS / 2 + 1))}"
  else
    echo '"PendingAllocates":null,"Paxos":null,"Entries":null'
  fi
}

report() {
  cat <<END
{"Ready":true,"Version":"2.5.2","Router":{"Protocol":"weave","Encryption":$ENCRYPTION,
"Name":"$NAME","NickName":"$NICKNAME","Port":6783,"Peers":[$(peers_json | paste -sd, -)],
"Connections":[$(connections_json | paste -sd, -)],
"Targets":[$(line_of peers | tr ' ' '\n' | sed '/^$/d' | words)]},"IPAM":{$(ipam_json | tr -d '\n')}}
END
}

id=$(echo "${path#/ip/}" | cut -d/ -f1 | sed 's/%3A/:/g')
case "$method $path" in
  "GET /status"*) answer "200 OK" "Version: 2.5.2" ;;
  "GET /report"*) answer "200 OK" "$(report)" application/json ;;
  "GET /ip")
    owned=$(sed -n -e '/^peers /d' -e '/^ring /d' -e '/^range /d' \
      -e 's/^\([^ ]*\) \(.*\)$/{"containerid":"\1","addrs":["\2"]}/p' "$DB" | paste -sd, -)
    answer "200 OK" "{\"owned\":[$owned]}" application/json
    ;;
  "GET /ip/"*)
    address=$(line_of "$id")
    [ -n "$address" ] || answer "404 Not Found" "404 page not found"
    answer "200 OK" "$address"
    ;;
  "POST /ip/"*) answer "200 OK" "$(/home/weave/allocate.sh "$id")" ;;
  "PUT /ip/"*)
    : >"$RUN/asked"
    until [ -n "$(line_of ring)" ]; do sleep 0.1; done
    [ ! -f "$RUN/left" ] || answer "200 OK" cancelled
    cidr=$(echo "${path#/ip/}" | cut -d/ -f2,3)
    address=${cidr%/*}
    overlap "$address/32" "$RANGE" || answer "204 No Content" ""
    part=$(($(size "$RANGE") / 4))
    place=$((($(number "$address") - $(number "$RANGE")) / part))
    owner=$(sed -n "s|^\([^ ]*\) $address/.*|\1|p" "$DB")
    if [ -n "$owner" ] && [ "$owner" != "$id" ]; then
      answer "400 Bad Request" "Unable to claim: address $cidr is already owned by $owner"
    fi
    if [ "$place" != "$(line_of ring)" ] && [ "$CONSENSUS" -gt 1 ]; then
      answer "400 Bad Request" "Unable to claim: address $cidr is owned by another peer"
    fi
    lock
    [ -n "$owner" ] || echo "$id $cidr" >>"$DB"
    unlock
    answer "204 No Content" ""
    ;;
  "DELETE /ip/"*)
    [ -n "$(line_of "$id")" ] || answer "400 Bad Request" "Delete: no addresses for $id"
    lock
    sed "/^$id /d" "$DB" >"$DB.new"
    mv "$DB.new" "$DB"
    unlock
    answer "204 No Content" ""
    ;;
  "POST /connect")
    lock
    case $form in *replace=true*) old= ;; *) old=$(line_of peers) ;; esac
    set_line peers "$(echo $old $(form_peers))"
    unlock
    answer "200 OK" ""
    ;;
  "POST /forget")
    lock
    left=$(line_of peers | tr ' ' '\n' | grep -vxF "$(form_peers)")
    set_line peers "$(echo $left)"
    unlock
    answer "200 OK" ""
    ;;
  "DELETE /peer")
    : >"$RUN/left"
    answer "204 No Content" ""
    ;;
  "DELETE /peer/"*) answer "200 OK" "0 IPs taken over from ${path#/peer/}" ;;
  *) answer "404 Not Found" "404 page not found" ;;
esac
