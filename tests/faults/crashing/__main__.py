"""Run a scenario: ``python -m tests.faults.crashing SCENARIO LOCATION``.

The process opens two files that do not exist, `BEGIN` and `END`. A tracer watches the system calls
between them. Afterwards, when the disk works again, the scenario is repeated. The process prints
the errors of each part as JSON.
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
    """Open the missing file `name`, which a tracer can see."""
    with suppress(FileNotFoundError):
        os.close(os.open(name, os.O_RDONLY))


async def tried(what: Callable[[], Awaitable[None]]) -> str:
    """Return the name of the `BlobserveError` that `what` raises, or an empty string."""
    try:
        await what()
    except BlobserveError as error:
        return type(error).__name__
    return ""


async def main(name: str, location: Path) -> dict[str, str]:
    """Run the scenario and repeat it; return the error of each part."""
    scenario = SCENARIOS[name]
    said: dict[str, str] = {}
    with TemporaryDirectory() as elsewhere:
        # Import everything that is imported late, before the watched part.
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
    """Run the deed between the marks, then read an image that was cached, then repeat the deed."""
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
