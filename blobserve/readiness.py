"""Whether requests are welcome: not before listening, not while draining, not without a disk.

A registry has no say in it. Images that are to be pulled beforehand are waited for until each has
been tried, and for a minute at most.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from twisted.internet import defer
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from blobserve.threads import Threads
from blobserve.web.health import Health

PRE_PULLS_WITHIN = 60.0
_DISK_WITHIN = 2.0


class Readiness:
    """What ``/ready`` says of one service.

    :param registries: how each registry answered last, for those who want to know more.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        location: Path,
        disk: Threads,
        registries: Callable[[], Mapping[str, object]],
    ) -> None:
        self._reactor = reactor
        self._location = location
        self._disk = disk
        self._registries = registries
        self._phase: Literal["starting", "pre-pulling", "ready", "draining"] = "starting"
        self._patience: IDelayedCall | None = None

    def listening(self, pre_pulls: defer.Deferred[None]) -> None:
        """Requests can come; `pre_pulls` fires when every image has been tried."""
        self._phase = "pre-pulling"
        self._patience = self._reactor.callLater(PRE_PULLS_WITHIN, self._tried)
        pre_pulls.addCallback(lambda _: self._tried())

    def draining(self) -> None:
        """No more requests should come."""
        self._phase = "draining"
        self._end_patience()

    async def health(self) -> Health:
        """How the service is at this moment; asks the disk, for two seconds at most."""
        problems: list[str] = [] if self._phase == "ready" else [self._phase]
        details: dict[str, object] = {"registries": self._registries()}
        if self._phase != "starting":
            try:
                usage = self._disk.run(_disk_usage, self._location)
                details["disk"] = await usage.addTimeout(_DISK_WITHIN, self._reactor)
            except (OSError, defer.TimeoutError):
                problems.append("the blob space cannot be read")
        return Health(tuple(problems), details)

    def _tried(self) -> None:
        self._end_patience()
        if self._phase == "pre-pulling":
            self._phase = "ready"

    def _end_patience(self) -> None:
        if self._patience is not None and self._patience.active():
            self._patience.cancel()


def _disk_usage(location: Path) -> Mapping[str, int]:
    # Reading counts, not only being there: a broken disk still has its mount point.
    (location / "VERSION").read_bytes()
    usage = shutil.disk_usage(location)
    return {"totalBytes": usage.total, "freeBytes": usage.free}
