# What the scripts of the stand-in share: see launch.sh.

DB=/weavedb/weave-netdata.db
RUN=/run/weave-stand-in

# The shell prefers the one that it has itself.
ip() {
  /bin/ip "$@"
}

answers() {
  nc -w 1 "$1" "$2" 2>/dev/null | grep -q .
}

number() {
  IFS=. read -r a b c d <<END
${1%/*}
END
  echo $(((a << 24) + (b << 16) + (c << 8) + d))
}

dotted() {
  echo "$(($1 >> 24 & 255)).$(($1 >> 16 & 255)).$(($1 >> 8 & 255)).$(($1 & 255))"
}

size() {
  echo $((1 << (32 - ${1#*/})))
}

# Whether two prefixes have an address in common.
overlap() {
  [ $(($(number "$1") / $(size "$1") * $(size "$1"))) -lt $(($(number "$2") + $(size "$2"))) ] &&
    [ "$(number "$2")" -lt $(($(number "$1") / $(size "$1") * $(size "$1") + $(size "$1"))) ]
}

machine_mac() {
  cat /host/etc/machine-id 2>/dev/null | sha256sum |
    sed 's/^\(..\)\(..\)\(..\)\(..\)\(..\).*/c2:\1:\2:\3:\4:\5/'
}

lock() {
  until mkdir "$RUN/lock" 2>/dev/null; do sleep 0.02; done
}

unlock() {
  rmdir "$RUN/lock"
}

# The db: lines `range CIDR`, `peers A B`, `ring PLACE`, and `ID ADDRESS`.
set_line() {
  { sed "/^$1 /d" "$DB"; echo "$1 $2"; } >"$DB.new"
  mv "$DB.new" "$DB"
}

line_of() {
  sed -n "s/^$1 //p" "$DB"
}
