"""The files and functions of blobserve that the first request for a cold image passes through.

Run in the checkout as ``python -m benchmarks.cold_path [--registry] [--list]``, with the test extra
installed. A service in this process takes a small image from an OCI layout, or with `--registry`
from a docker-registry on loopback, and answers one request. A profile function in every thread
records each function of the package that is called from the moment when the request is sent until
the response is complete. Importing a module and starting the service do not count.
"""

from __future__ import annotations

import argparse
import sys
import threading
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.internet.threads import deferToThread

import blobserve
from blobserve import Blobserve
from tests.support.parts.images import Image, write_layout
from tests.support.parts.programs import own_directory
from tests.support.parts.registry import DockerRegistry

PACKAGE = Path(blobserve.__file__).parent
FILES = {"index.html": b"<!doctype html>\n<title>A page</title>\n", "app.js": b"run();\n" * 400}


class Calls:
    """The functions of the package that were called during `recording`."""

    def __init__(self) -> None:
        self._codes: set[CodeType] = set()
        self._is_recording = False

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record calls in every thread."""
        self._is_recording = True
        yield
        self._is_recording = False

    def install(self) -> None:
        """Watch this thread, and every thread that starts later."""
        threading.setprofile(self._see)
        sys.setprofile(self._see)

    def by_file(self) -> Mapping[str, list[str]]:
        """Return the names of the functions by their files, without lambdas and comprehensions."""
        found: defaultdict[str, set[str]] = defaultdict(set)
        for code in self._codes:
            path = Path(code.co_filename)
            if path.is_relative_to(PACKAGE) and not code.co_name.startswith("<"):
                name = getattr(code, "co_qualname", f"{code.co_name}:{code.co_firstlineno}")
                found[str(path.relative_to(PACKAGE))].add(name)
        return {path: sorted(names) for path, names in sorted(found.items())}

    def _see(self, frame: FrameType, event: str, _: object) -> None:
        if self._is_recording and event == "call":
            self._codes.add(frame.f_code)


async def first_request(
    reactor: Any, repository: str, rules: Mapping[str, object], home: Path
) -> Calls:
    """Ask a new service for one file of an image that it does not have."""
    own = {
        "listen": "tcp:0:interface=127.0.0.1",
        "repos": {repository: rules},
        "blobSpace": {"location": str(home / "space")},
        "timeout": "60s",
    }
    log = {"format": "text", "file": str(home / "access.log")}
    calls = Calls()
    # Before the service starts its threads.
    calls.install()
    service = Blobserve(reactor, {"blobserve": own, "accessLog": log})
    service.startService()
    try:
        await service.when_started()
        [address] = service.addresses
        url = f"http://127.0.0.1:{address.port}/{repository}:v1/app.js"  # type: ignore[attr-defined]
        with calls.recording():
            body = await deferToThread(fetched, url)
    finally:
        await service.stopService()
        sys.setprofile(None)
    if body != FILES["app.js"]:
        raise SystemExit("the service answered with other bytes")
    return calls


def fetched(url: str) -> bytes:
    """Return the body at `url`. Blocks."""
    with urllib.request.urlopen(url, timeout=60) as response:
        body: bytes = response.read()
        return body


async def count(reactor: Any, has_registry: bool, is_listed: bool) -> None:
    """Send the request and print the counts."""
    image = Image.of(FILES)
    with own_directory() as home, ExitStack() as stack:
        if has_registry:
            registry = DockerRegistry(home)
            registry.start()
            stack.callback(registry.stop)
            registry.push(image, "bench/site:v1")
            repository, rules = f"{registry.host}/bench/site", {}
        else:
            write_layout(home / "layout", {"v1": image})
            repository, rules = "bench.example/site", {"source": f"oci:{home / 'layout'}"}
        found = (await first_request(reactor, repository, rules, home)).by_file()
    folders: defaultdict[str, list[int]] = defaultdict(list)
    for path, names in found.items():
        folders[str(Path(path).parent)].append(len(names))
        if is_listed:
            print(f"{path}: {', '.join(names)}")
    for folder, counts in sorted(folders.items()):
        print(f"{folder:20}{len(counts):5} files{sum(counts):6} functions")
    print(f"{'total':20}{len(found):5} files{sum(map(len, found.values())):6} functions")


def main() -> None:
    """Read the command line and count."""
    parser = argparse.ArgumentParser(description="Count files and functions of a cold request.")
    parser.add_argument("--registry", action="store_true", help="pull from a docker-registry")
    parser.add_argument("--list", action="store_true", help="print the functions of each file")
    options = parser.parse_args()
    react(
        lambda reactor: Deferred.fromCoroutine(count(reactor, options.registry, options.list)), []
    )


if __name__ == "__main__":
    main()
