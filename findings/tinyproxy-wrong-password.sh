#!/usr/bin/env bash
# tinyproxy 1.11.1 (Debian 12): a wrong proxy password is answered 401, a missing one 407.
#
# RFC 9110 section 15.5.8 has 407 for both. A client that forwards plain HTTP through this proxy
# cannot tell the proxy's 401 from one of the origin server.
set -euo pipefail
command -v tinyproxy >/dev/null || apt-get install -qy --no-install-recommends tinyproxy >/dev/null
version=$(tinyproxy -v)
work=$(mktemp -d)
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
origin=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
printf 'Port %s\nListen 127.0.0.1\nAllow 127.0.0.1\nBasicAuth user right\nTimeout 10\n' "$port" >"$work/conf"
tinyproxy -d -c "$work/conf" >"$work/log" 2>&1 &
proxy=$!
python3 -m http.server --bind 127.0.0.1 --directory "$work" "$origin" >/dev/null 2>&1 &
server=$!
trap 'kill "$proxy" "$server"; rm -rf "$work"' EXIT
ask() { curl --silent --output /dev/null --write-out '%{http_code}' --max-time 10 --noproxy '' "$@" "http://127.0.0.1:$origin/conf"; }
for _ in $(seq 50); do
    [ "$(ask -x "http://user:right@127.0.0.1:$port" || true)" = 200 ] && break
    sleep 0.1
done
right=$(ask -x "http://user:right@127.0.0.1:$port")
wrong=$(ask -x "http://user:wrong@127.0.0.1:$port")
none=$(ask -x "http://127.0.0.1:$port")
echo "$version: right password $right, wrong password $wrong, no password $none"
[ "$right $wrong $none" = '200 401 407' ]
echo 'as described'
