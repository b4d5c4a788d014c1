#!/usr/bin/env bash
# oras 0.2.31 (PyPI): a pushed directory has no annotation that says so.
#
# The oras command line marks a packed directory with `io.deis.oras.content.unpack: "true"`. The
# Python client packs a directory as well, and only the layer's media type (`...layer.v1.tar+gzip`)
# and the title tell. A reader that waits for the annotation serves the archive as one file.
set -euo pipefail
command -v docker-registry >/dev/null || apt-get install -qy --no-install-recommends docker-registry >/dev/null
work=$(mktemp -d)
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat >"$work/config.yml" <<YAML
version: 0.1
storage: {filesystem: {rootdirectory: $work/data}}
http: {addr: "127.0.0.1:$port"}
YAML
docker-registry serve "$work/config.yml" >"$work/log" 2>&1 &
registry=$!
trap 'kill "$registry"; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'oras==0.2.31'
mkdir "$work/site" "$work/site/dist"
echo '<p>page' >"$work/site/dist/index.html"
cd "$work/site"
"$work/venv/bin/python" - "$port" <<'PY'
import json
import sys
import time
import urllib.request

import oras.client

host = f"127.0.0.1:{sys.argv[1]}"
for _ in range(50):
    try:
        urllib.request.urlopen(f"http://{host}/v2/", timeout=5).close()
        break
    except OSError:
        time.sleep(0.1)
client = oras.client.OrasClient(hostname=host, insecure=True)
client.push(target=f"{host}/team/site:v1", files=["dist"], disable_path_validation=True)
request = urllib.request.Request(
    f"http://{host}/v2/team/site/manifests/v1",
    headers={"Accept": "application/vnd.oci.image.manifest.v1+json"},
)
manifest = json.load(urllib.request.urlopen(request, timeout=5))
[layer] = manifest["layers"]
print("oras 0.2.31:", layer["mediaType"], json.dumps(layer.get("annotations")))
assert layer["mediaType"].endswith("tar+gzip"), "the type does not tell any more"
assert "io.deis.oras.content.unpack" not in layer.get("annotations", {}), "the annotation is there"
PY
echo 'as described'
