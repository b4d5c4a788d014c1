#!/usr/bin/env bash
# Caddy 2.6.2 (Debian 12): `reverse_proxy` sends plain bytes with the ETag of the gzip variant.
#
# A client sends no `Accept-Encoding`. The proxy asks the origin for gzip all the same, unpacks the
# answer, drops `Content-Encoding` and `Content-Length`, and keeps the strong ETag. The same client
# gets another ETag for the same bytes if it asks the origin itself, and it gets no length.
# `transport http { compression off }` sends the request as the client wrote it.
set -euo pipefail
dpkg-query --show caddy 2>/dev/null | grep -q '2\.6\.2' ||
    apt-get install -qy --no-install-recommends 'caddy=2.6.2-*' >/dev/null
work=$(mktemp -d)
free_port() { python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
origin=$(free_port)
proxy=$(free_port)
plain=$(free_port)
cat >"$work/origin.py" <<'PY'
import gzip
import http.server
import sys

PLAIN = b"<p>page</p>\n" * 200
VARIANTS = {False: (PLAIN, '"plain"'), True: (gzip.compress(PLAIN), '"gzip"')}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        packed = "gzip" in self.headers.get("Accept-Encoding", "")
        body, etag = VARIANTS[packed]
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", etag)
        self.send_header("Vary", "Accept-Encoding")
        if packed:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(body)


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
PY
cat >"$work/Caddyfile" <<CADDY
{
    admin off
    auto_https off
}
http://127.0.0.1:$proxy {
    reverse_proxy 127.0.0.1:$origin
}
http://127.0.0.1:$plain {
    reverse_proxy 127.0.0.1:$origin {
        transport http {
            compression off
        }
    }
}
CADDY
python3 "$work/origin.py" "$origin" 2>/dev/null &
server=$!
HOME=$work caddy run --config "$work/Caddyfile" --adapter caddyfile >"$work/log" 2>&1 &
caddy=$!
trap 'kill "$server" "$caddy"; rm -rf "$work"' EXIT
for port in "$origin" "$plain"; do
    for _ in $(seq 100); do
        curl --silent --fail --output /dev/null --max-time 5 "http://127.0.0.1:$port/" && break
        sleep 0.1
    done
done
ask() {
    curl --silent --max-time 10 --output "$work/body" --dump-header "$work/head" "http://127.0.0.1:$1/"
    etag=$(tr -d '\r' <"$work/head" | sed -n 's/^etag: //Ip')
    length=$(tr -d '\r' <"$work/head" | sed -n 's/^content-length: //Ip')
    echo "ETag $etag, Content-Length ${length:-missing}, $(wc -c <"$work/body") bytes"
}
direct=$(ask "$origin")
default=$(ask "$proxy")
off=$(ask "$plain")
echo "origin:                        $direct"
echo "caddy 2.6.2:                   $default"
echo "caddy 2.6.2, compression off:  $off"
[ "$direct" = 'ETag "plain", Content-Length 2400, 2400 bytes' ]
[ "$default" = 'ETag "gzip", Content-Length missing, 2400 bytes' ]
[ "$off" = "$direct" ]
echo 'as described'
