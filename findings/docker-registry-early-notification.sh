#!/usr/bin/env bash
# docker-registry 2.8.2 (Debian 12): a push is announced before its tag can be read.
#
# The registry sends the notification of a manifest's push and then writes the tag. A receiver that
# looks up the tag at once gets the digest from before the push, 404 for a new tag, or 500 while the
# file is written. In runs of 40 pushes this happened 15 to 28 times. The digest in the event is
# right, and so is a look-up after the push.
set -euo pipefail
dpkg-query --show docker-registry 2>/dev/null | grep -q '2\.8\.2' ||
    apt-get install -qy --no-install-recommends 'docker-registry=2.8.2+*' >/dev/null
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 - "$work" <<'PY'
import collections
import hashlib
import http.server
import json
import pathlib
import queue
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

PUSHES = 40
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
work = pathlib.Path(sys.argv[1])
with socket.create_server(("127.0.0.1", 0)) as free:
    registry = f"127.0.0.1:{free.getsockname()[1]}"
repository = f"http://{registry}/v2/team/site"
answers = queue.Queue()


def call(url, method="GET", data=None, **headers):
    request = urllib.request.Request(url, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.headers


def look_up(tag):
    try:
        return call(f"{repository}/manifests/{tag}", "HEAD", Accept=MANIFEST)["Docker-Content-Digest"]
    except urllib.error.HTTPError as error:
        return error.code


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        for event in json.loads(self.rfile.read(int(self.headers["Content-Length"])))["events"]:
            target = event["target"]
            if event["action"] == "push" and "tag" in target:
                answers.put((target["digest"], look_up(target["tag"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


receiver = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
threading.Thread(target=receiver.serve_forever, daemon=True).start()
(work / "config.yml").write_text(f"""
version: 0.1
storage: {{filesystem: {{rootdirectory: {work}/data}}}}
http: {{addr: "{registry}"}}
notifications:
  endpoints:
    - {{name: receiver, url: "http://127.0.0.1:{receiver.server_port}/", timeout: 15s, threshold: 5, backoff: 1s}}
""")
with open(work / "log", "w") as log:
    process = subprocess.Popen(["docker-registry", "serve", work / "config.yml"], stdout=log, stderr=log)
try:
    for _ in range(100):
        try:
            call(f"http://{registry}/v2/")
            break
        except OSError:
            time.sleep(0.1)
    config = b"{}"
    digest = "sha256:" + hashlib.sha256(config).hexdigest()
    location = call(f"{repository}/blobs/uploads/", "POST", b"")["Location"]
    call(f"{location}&digest={digest}", "PUT", config, **{"Content-Type": "application/octet-stream"})
    kinds = collections.Counter()
    for push in range(PUSHES):
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest,
                "size": len(config),
            },
            "layers": [],
            "annotations": {"push": str(push)},
        }
        tag = f"new{push}" if push % 2 else "same"
        body = json.dumps(manifest).encode()
        pushed = call(f"{repository}/manifests/{tag}", "PUT", body, **{"Content-Type": MANIFEST})
        announced, found = answers.get(timeout=20)
        assert announced == pushed["Docker-Content-Digest"]
        kind = "the digest" if found == announced else found if isinstance(found, int) else "an old digest"
        kinds[kind] += 1
        assert look_up(tag) == announced, "the tag cannot be read after the push"
finally:
    process.terminate()
    process.wait()
print(f"docker-registry 2.8.2: {PUSHES} look-ups inside the notification got {dict(kinds)}")
assert kinds["the digest"] < PUSHES, "each look-up saw the push"
PY
echo 'as described'
