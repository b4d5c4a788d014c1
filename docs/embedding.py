"""An application of one's own that serves images below /sites/, beside its own page.

python docs/embedding.py CACHE [PORT]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.web.resource import Resource
from twisted.web.server import Site
from twisted.web.static import Data

from blobserve import Blobserve

LAYOUT = Path(__file__).resolve().parents[1] / "etc" / "example"


async def main(reactor: Any, cache: str, port: str = "8081") -> None:
    """Serve until a signal comes."""
    images = Blobserve(
        reactor,
        {
            # Neither `port` nor `listen`: the service opens no port of its own.
            "blobserve": {
                "repos": {"blobserve.example/site": {"source": f"oci:{LAYOUT}"}},
                "blobSpace": {"location": cache, "maxSizeBytes": "1GiB"},
            },
            "accessLog": {"format": "off"},
        },
    )
    images.startService()
    # The reactor waits for what stopService returns: the drain.
    reactor.addSystemEventTrigger("before", "shutdown", images.stopService)
    await images.when_started()

    root = Resource()
    root.putChild(b"", Data(b"My own page.\n", "text/plain"))
    root.putChild(b"sites", images.resource)
    listening = reactor.listenTCP(int(port), Site(root), interface="127.0.0.1")
    number = listening.getHost().port
    print(f"http://127.0.0.1:{number}/sites/blobserve.example/site:v1/", flush=True)
    await Deferred()


if __name__ == "__main__":
    react(
        lambda reactor, *arguments: Deferred.fromCoroutine(main(reactor, *arguments)), sys.argv[1:]
    )
