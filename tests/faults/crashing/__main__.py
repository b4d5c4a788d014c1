"""Do what a scenario says: ``python -m tests.faults.crashing SCENARIO LOCATION``.

Whoever traces this process sees two files asked for that do not exist, `BEGIN` and `END`: what is
in between is what is watched. Then, the disk being well again, everything is tried once more. What
came of it is printed: the errors that were met, in JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from blobserve.errors import BlobserveError
from tests.faults.crashing.aftermath import books
from tests.faults.crashing.scenarios import HOT, IMAGES, SCENARIOS, Scenario, Stand, opened

BEGIN, END = "/blobserve-begins", "/blobserve-has-ended"


def mark(name: str) -> None:
    """Let whoever traces see where we are."""
    with suppress(FileNotFoundError):
        os.close(os.open(name, os.O_RDONLY))


async def tried(what: Callable[[], Awaitable[None]]) -> str:
    """What comes of something: nothing, or the name of an error that was raised on purpose."""
    try:
        await what()
    except BlobserveError as error:
        return type(error).__name__
    return ""


async def main(name: str, location: Path) -> dict[str, str]:
    """Do it; what came of it, and of trying again."""
    scenario = SCENARIOS[name]
    said: dict[str, str] = {}
    with TemporaryDirectory() as elsewhere:
        # So that all that is imported late has been.
        await _nothing(scenario, Path(elsewhere))
    if scenario.deed is None:
        said["first"] = await tried(lambda: _opened(scenario, location))
    async with opened(location, scenario.bound) as stand:
        if scenario.deed is not None:
            said |= await _watched(scenario, stand)
        said["hot"] = await tried(lambda: stand.read(HOT))
        await stand.space.reclaim()
        books(stand)
    return said


async def _nothing(scenario: Scenario, location: Path) -> None:
    async with opened(location, scenario.bound) as stand:
        for image in IMAGES:
            await stand.read(image)
        await stand.code(HOT)


async def _opened(scenario: Scenario, location: Path) -> None:
    mark(BEGIN)
    try:
        async with opened(location, scenario.bound):
            mark(END)
    finally:
        mark(END)


async def _watched(scenario: Scenario, stand: Stand) -> dict[str, str]:
    """Do it while an image is being read, and what was there is served on."""
    deed = scenario.deed
    assert deed is not None
    mark(BEGIN)
    first = await tried(lambda: deed(stand))
    mark(END)
    serving = await tried(lambda: stand.read(HOT))
    return {"first": first, "serving": serving, "again": await tried(lambda: deed(stand))}


if __name__ == "__main__":
    outcomes: list[object] = []
    Deferred.fromCoroutine(main(sys.argv[1], Path(sys.argv[2]))).addBoth(outcomes.append)
    [outcome] = outcomes or [Failure(AssertionError("it has not ended"))]
    if isinstance(outcome, Failure):
        print(outcome.getTraceback())
        raise SystemExit(1)
    print(json.dumps(outcome))
