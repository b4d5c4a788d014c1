"""A page of the Vite application that stays open over deploys, rollbacks and an outage.

Vite builds the application once. The other versions come from that build: each script and style
gets a line that differs, and the hash in its name is made anew from its content, as Vite does. The
picture and its name are the same in all versions.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from tests.support.parts.browser import Browser
from tests.support.parts.images import Image, files_below
from tests.support.parts.nginx import Nginx
from tests.support.parts.npm import build, installed
from tests.support.parts.operated import Operated
from tests.support.parts.programs import free_port, own_directory
from tests.support.parts.registry import DockerRegistry
from tests.support.parts.server import Response
from tests.support.slack import SLACK

Files = Mapping[str, bytes]

BRANCH = "version-0000"
"""The text in the build that differs from version to version."""

SITE = "app.localhost"
_SECRET = "kestrel-7"
_LIVE_WITHIN = 15.0 * SLACK
_HASHED = re.compile(r"assets/[^/]+-([\w-]{8})\.(?:js|css)(?:\.map)?")

_CACHE = """
    proxy_pass http://127.0.0.1:%d;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Host $host;
    proxy_cache files;
    proxy_cache_lock on;
    proxy_cache_revalidate on;
    proxy_cache_use_stale error timeout updating;
    add_header X-Cache $upstream_cache_status always;
"""

_LOADING = """(() => {
  const wanted = %s;
  const state = window.state = { loads: 0, failures: [], on: true };
  const digits = (byte) => byte.toString(16).padStart(2, "0");
  const hex = (bytes) => Array.from(new Uint8Array(bytes), digits).join("");
  const load = async ([name, hash], number) => {
    // Each second load has a URL of its own, so that no cache in front can answer it.
    const url = "/" + name + (number %% 2 ? "?load=" + number : "");
    try {
      const answer = await fetch(url, { cache: "no-store" });
      const found = hex(await crypto.subtle.digest("SHA-256", await answer.arrayBuffer()));
      if (answer.status !== 200 || found !== hash)
        state.failures.push([url, answer.status, found]);
    } catch (error) {
      state.failures.push([url, String(error)]);
    }
    state.loads++;
  };
  (async () => {
    for (let number = 0; state.on; number++) {
      await load(wanted[(number >> 1) %% wanted.length], number);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    state.ended = true;
  })();
})()"""


def built_in(directory: Path) -> Files:
    """Return the files that Vite builds in a directory."""
    tree = installed("vite-react", directory)
    build(tree, {"VITE_BRANCH": BRANCH})
    return files_below(tree / "dist")


def version(built: Files, number: int) -> dict[str, bytes]:
    """Return the files of a version of the application; those of version 0 are `built`."""
    if number == 0:
        return dict(built)
    text = f"{BRANCH[:-4]}{number:04}"
    old = {found[1] for name in built if (found := _HASHED.fullmatch(name))}

    def renamed(content: bytes, names: Mapping[str, str]) -> bytes:
        for former, name in names.items():
            content = content.replace(former.encode(), name.encode())
        return content

    changed = {
        name: f"/* {text} */\n".encode() + content if _HASHED.fullmatch(name) else content
        for name, content in built.items()
    }
    changed = {n: content.replace(BRANCH.encode(), text.encode()) for n, content in changed.items()}
    # Scripts have the names of each other, so a hash is one of the content without such names.
    blank = dict.fromkeys(old, "_" * 8)
    new = {}
    for name, content in changed.items():
        if (found := _HASHED.fullmatch(name)) and not name.endswith(".map"):
            hashed = hashlib.sha256(name.encode() + renamed(content, blank)).digest()
            new[found[1]] = base64.urlsafe_b64encode(hashed).decode()[:8]
    return {renamed(n.encode(), new).decode(): renamed(c, new) for n, c in changed.items()}


def chunks(files: Files) -> dict[str, str]:
    """Return the SHA-256 of each file in `assets`, by its name, without source maps."""
    return {
        name: hashlib.sha256(content).hexdigest()
        for name, content in files.items()
        if name.startswith("assets/") and not name.endswith(".map")
    }


class Deploys:
    """A site, its registry with webhooks, a cache in front if wanted, and a browser."""

    def __init__(self, built: Files, stack: ExitStack, has_cache: bool) -> None:
        self._built = built
        self.pushed: list[dict[str, bytes]] = []
        """The files of each version, by number."""
        self.digests: list[str] = []
        directories = [stack.enter_context(own_directory()) for _ in range(4)]
        hooks = free_port()
        self.registry = DockerRegistry(directories[0], _notifying(hooks))
        image = f"{self.registry.host}/team/app:live"
        secret = directories[1] / "secret"
        secret.write_text(f"{_SECRET}\n")
        secret.chmod(0o600)
        webhooks = {"listen": f"tcp:{hooks}:interface=127.0.0.1", "secretFile": str(secret)}
        config = {
            "sites": {SITE: {"image": image, "tagMaxAge": "24h"}},
            "registries": {self.registry.host: {"insecure": True}},
            "webhooks": webhooks,
            "timeout": "60s",
        }
        self.server = Operated(directories[1], config)
        self.port = self.server.port
        self.nginx: Nginx | None = None
        if has_cache:
            zone = "proxy_cache_path cache keys_zone=files:1m use_temp_path=off;"
            location = f"location / {{ {_CACHE % self.server.port} }}"
            self.nginx = Nginx(directories[2], location, zone)
            self.port = self.nginx.port
        rules = f"--host-resolver-rules=MAP * 127.0.0.1:{self.port}"
        self.browser = Browser(directories[3], [rules])
        stack.callback(self.registry.stop)
        self.registry.start()
        self._push(0)
        for each in (self.server, self.nginx, self.browser):
            if each is not None:
                stack.callback(each.stop)
                each.start()
        self.comes(0)

    def deploy(self) -> None:
        """Push the next version, and wait until it is live."""
        self._push(len(self.pushed))
        self.comes(len(self.pushed) - 1)

    def order(self, order: str, number: int) -> None:
        """Pin the site to a version, or unpin it."""
        digest = self.digests[number] if order == "pin" else ""
        answer = self.server.order(order, SITE, digest)
        assert answer == "done", answer

    def comes(self, number: int) -> None:
        """Wait until the site shows a version."""
        page = self.pushed[number]["index.html"]
        _wait(lambda: self.fetch("/").body == page, f"version {number} did not become live")

    def fetch(self, target: str) -> Response:
        """Return the answer to a GET, by way of the cache if there is one."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", target, headers={"Host": SITE})
            answer = connection.getresponse()
            return Response(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def open(self) -> None:
        """Open the page, and let it load its lazy chunks all the time."""
        self.browser.open(f"http://{SITE}/")
        wanted = json.dumps(list(chunks(self.pushed[-1]).items()))
        self.browser.run(_LOADING % wanted)

    def loads(self, at_least: int) -> None:
        """Wait until the page has loaded this many chunks, and check that none failed."""
        _wait(lambda: self.browser.run("state.loads") >= at_least, f"fewer than {at_least} loads")
        assert self.browser.run("state.failures") == []

    def ended(self) -> int:
        """End the loads, and return their number; check that none failed."""
        self.browser.run("state.on = false")
        assert self.browser.shows("state.ended")
        assert self.browser.run("state.failures") == []
        return int(self.browser.run("state.loads"))

    def _push(self, number: int) -> None:
        files = version(self._built, number)
        self.pushed.append(files)
        self.digests.append(self.registry.push(Image.of(files), "team/app:live"))


def hold_a_page_open(built: Files, has_cache: bool, deploys: int, loads: int) -> None:
    """Hold a page open over `deploys` deploys, two rollbacks and an outage, with `loads` loads."""
    with ExitStack() as stack:
        it = Deploys(built, stack, has_cache)
        names = chunks(it.pushed[0])
        following = chunks(version(built, 1)).keys() - names.keys()
        # A name that comes with the next version is no lasting 404 for anyone.
        assert {it.fetch(f"/{name}").status for name in following} == {404}
        it.open()
        steps = deploys + 2

        def loaded(step: int) -> None:
            it.loads(loads * step // steps)

        half = deploys // 2
        for step in range(1, half + 1):
            it.deploy()
            loaded(step)
        it.registry.stop()
        it.order("pin", half - 1)
        it.comes(half - 1)
        loaded(half + 1)
        it.registry.start()
        it.order("unpin", half - 1)
        it.comes(half)
        for step in range(half + 1, deploys + 1):
            it.deploy()
            loaded(step + 1)
        it.order("pin", deploys - 2)
        it.comes(deploys - 2)
        loaded(steps)
        assert it.ended() >= loads
        assert len({name for files in it.pushed for name in chunks(files)}) > 5 * deploys
        # The page itself goes on: a route loads its script, style and worker only now.
        it.browser.run("document.querySelector(\"a[href$='/report']\").click()")
        assert it.browser.shows("document.querySelector('h1').innerText === 'Report: 42'")
        assert it.browser.page.problems == []
        for files in it.pushed:
            for name, digest in chunks(files).items():
                answer = it.fetch(f"/{name}")
                assert (name, answer.status) == (name, 200)
                assert hashlib.sha256(answer.body).hexdigest() == digest, name
        if it.nginx is not None:
            assert {it.fetch(f"/{name}").headers["X-Cache"] for name in names} >= {"HIT"}


def _notifying(port: int) -> dict[str, object]:
    endpoint = {
        "name": "blobserve",
        "url": f"http://127.0.0.1:{port}/",
        "headers": {"Authorization": [f"Bearer {_SECRET}"]},
        "timeout": "2s",
        "threshold": 5,
        "backoff": "1s",
    }
    return {"notifications": {"endpoints": [endpoint]}}


def _wait(condition: Callable[[], bool], problem: str) -> None:
    end = time.monotonic() + _LIVE_WITHIN
    while not condition():
        assert time.monotonic() < end, problem
        time.sleep(0.02)  # the test waits for other processes
