#!/usr/bin/env bash
# Klein 24.8.0 with Werkzeug 3.1.9 (PyPI): a branch route "/app" answers 404 for "/app/".
#
# `@app.route("/app", branch=True)` adds the rules `/app` and `/app/<path:rest>`. The path converter
# wants at least one character, so the address between the two, `/app/`, has no rule, although
# everything below it does. A route "/app/" answers `/app/` and redirects `/app`.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'klein==24.8.0' 'werkzeug==3.1.9' 'twisted==25.5.0'
"$work/venv/bin/python" - <<'PY'
import http.client
import importlib.metadata
import threading

import klein
from twisted.internet import reactor
from twisted.web.server import Site

app = klein.Klein()


@app.route("/app", branch=True)
def without_slash(request):
    return b"app"


@app.route("/dir/", branch=True)
def with_slash(request):
    return b"dir"


PATHS = ["/app", "/app/", "/app/x", "/dir", "/dir/", "/dir/x"]
answers = {}


def ask(port):
    try:
        for path in PATHS:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", path)
            answers[path] = connection.getresponse().status
            connection.close()
    finally:
        reactor.callFromThread(reactor.stop)


port = reactor.listenTCP(0, Site(app.resource()), interface="127.0.0.1").getHost().port
reactor.callWhenRunning(threading.Thread(target=ask, args=[port]).start)
reactor.run()
print(f"klein {importlib.metadata.version('klein')}, werkzeug {importlib.metadata.version('werkzeug')}: {answers}")
assert answers == {"/app": 200, "/app/": 404, "/app/x": 200, "/dir": 308, "/dir/": 200, "/dir/x": 200}
PY
echo 'as described'
