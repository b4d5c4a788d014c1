"""Processes that start the service and never stop it still end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.parts.server import ROOT
from tests.system.test_embedding import EXAMPLE, PAGE

BEGIN = """
import json, sys, threading
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import react
from blobserve import Blobserve
from blobserve.concurrency.threads import OwnThreads

service = Blobserve(reactor, json.loads(sys.argv[1]))

async def started():
    service.startService()
    await service.when_started()

async def served():
    import treq
    await started()
    url = f"http://127.0.0.1:{service.addresses[0].port}" + sys.argv[2]
    response = await treq.get(url, persistent=False)
    assert b"<html" in await response.content()

def running(main):
    failed = lambda failure: (failure.printTraceback(), reactor.stop())
    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(main()).addErrback(failed))
    reactor.run()
"""

ENDS = {
    "falls off the end": "service.startService()",
    "raises before its reactor runs": "service.startService(); 1 / 0",
    "raises as it starts": """
async def main():
    service.startService()
    1 / 0
react(lambda _: Deferred.fromCoroutine(main()))
""",
    "raises when it has served": """
async def main():
    await served()
    1 / 0
react(lambda _: Deferred.fromCoroutine(main()))
""",
    "is done when it has served": """
react(lambda _: Deferred.fromCoroutine(served()))
""",
    "stops its reactor": """
async def main():
    await served()
    reactor.stop()
running(main)
""",
    "lets its reactor crash": """
async def main():
    await started()
    reactor.crash()
running(main)
""",
    "does not wait for the end of the service": """
async def main():
    await served()
    service.stopService()
    reactor.stop()
running(main)
""",
    "does not wait for the start of the service": """
async def main():
    service.startService()
    service.stopService()
    reactor.crash()
running(main)
""",
    "cannot start the service": """
async def main():
    other = Blobserve(reactor, json.loads(sys.argv[1]))
    await started()
    other.startService()
    await other.when_started()
react(lambda _: Deferred.fromCoroutine(main()))
""",
    "has a thread that never ends": """
pool = OwnThreads(reactor, 1, "pool")
pool.start()
pool.run(threading.Event().wait)
pool.run(print, "never")
""",
    "has work that is nearly done": """
pool = OwnThreads(reactor, 1, "pool")
pool.start()
begun = threading.Event()
def work():
    begun.set()
    threading.Event().wait(0.3)
    print("done", flush=True)
pool.run(work)
begun.wait()
""",
}


@pytest.mark.parametrize("way", ENDS)
def test_a_process_that_never_stops_the_service(tmp_path: Path, way: str) -> None:
    """A process that ends while the service runs does so within seconds, with its exit code."""
    config = {
        "blobserve": {
            "listen": "tcp:0:interface=127.0.0.1",
            "repos": {"blobserve.example/site": {"source": f"oci:{EXAMPLE}"}},
            "blobSpace": {"location": str(tmp_path / "space")},
            "timeout": "20s",
        },
        "accessLog": {"format": "off"},
    }
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + ENDS[way], json.dumps(config), PAGE],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, errors = process.communicate(timeout=25)
    finally:
        process.kill()
    assert (process.returncode, errors) == (int("raises" in way or "cannot" in way), errors)
    assert ("ZeroDivisionError" in errors) == ("raises" in way)
    assert ("SpaceUnusable" in errors) == ("cannot" in way)
    assert "Fatal" not in errors
    assert output == ("done\n" if "nearly" in way else "")
