"""A blob space that is killed, or that the disk fails, at each of its calls of the kernel.

In the suite at some of them, evenly spread; ``python -m tests.faults.campaign crashes`` tries every
one.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from tests.faults.crashing.__main__ import BEGIN, END
from tests.faults.crashing.aftermath import settled
from tests.faults.crashing.scenarios import SCENARIOS
from tests.faults.scale import sized
from tests.support.parts.inject import CHANGING, READING, Call, calls, changing, injected, spread
from tests.support.stores import now

MOST = sized(5, 100_000)
"""Points of each scenario."""


class Points:
    """The calls that one scenario makes, and a fresh blob space for each that is tried."""

    def __init__(self, name: str, directory: Path) -> None:
        self._name = name
        self._directory = directory
        self._base = directory / "base"
        now(Deferred.fromCoroutine(SCENARIOS[name].prepare(self._base)))
        first, second = (self._calls(), self._calls())
        assert first == second, "it does not do the same each time"
        self.calls = first

    def _calls(self) -> list[Call]:
        with self.space() as (location, scratch):
            return calls(self.arguments(location), scratch, BEGIN, END)

    def arguments(self, location: Path) -> list[str]:
        """What Python is to be given."""
        return ["-m", "tests.faults.crashing", self._name, str(location)]

    @contextmanager
    def space(self) -> Iterator[tuple[Path, Path]]:
        """A copy of what there was before, and a directory for other things."""
        with TemporaryDirectory(dir=self._directory) as scratch:
            location = Path(scratch, "space")
            if self._base.exists():
                shutil.copytree(self._base, location, symlinks=True)
            yield location, Path(scratch)

    def killed(self, call: Call) -> str:
        """What is wrong after it was killed on its way into a call."""
        with self.space() as (location, scratch):
            done = injected(self.arguments(location), scratch, call, "signal=SIGKILL")
            if done.returncode != -signal.SIGKILL:
                return f"it was not killed: {done.returncode} {done.stderr}"
            return self._settled(location)

    def failed(self, call: Call, error: str) -> str:
        """What is wrong after a call failed once."""
        with self.space() as (location, scratch):
            done = injected(self.arguments(location), scratch, call, f"error={error}")
            if done.returncode != 0:
                return (
                    f"an error that nobody raised on purpose: {done.stdout} {done.stderr[-2000:]}"
                )
            said = json.loads(done.stdout)
            if wrong := {key: each for key, each in said.items() if each and key != "first"}:
                return f"it does not recover: {wrong}"
            return self._settled(location)

    def said(self, call: Call, error: str) -> dict[str, str]:
        """What came of it when a call failed once."""
        with self.space() as (location, scratch):
            done = injected(self.arguments(location), scratch, call, f"error={error}")
            return dict(json.loads(done.stdout))

    def _settled(self, location: Path) -> str:
        try:
            now(Deferred.fromCoroutine(settled(self._name, location)))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what we look for
            return f"{type(error).__name__}: {error}"
        return ""


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The points of a scenario by its name; each is looked at once."""
    known: dict[str, Points] = {}

    def of(name: str) -> Points:
        if name not in known:
            known[name] = Points(name, tmp_path_factory.mktemp(name))
        return known[name]

    return of


def wrong(trials: list[tuple[Any, ...]], tried: Any) -> dict[str, str]:
    """By what was tried, two at a time: what was wrong then."""
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda trial: tried(*trial), trials)
        return {
            " ".join(map(str, trial)): problem
            for trial, problem in zip(trials, results, strict=True)
            if problem
        }


@pytest.mark.parametrize("name", SCENARIOS)
def test_f01_f02_f03_killed_at_every_call(name: str, points: Any, measured: Any) -> None:
    """Killed at any call that changes the disk, it leaves whole layers, and no trace of others."""
    at = spread(changing(points(name).calls), MOST)
    assert len(at) >= min(MOST, 5)
    measured(cases=len(at))
    problems = wrong([(call,) for call in at], points(name).killed)
    assert not problems, "\n".join(f"{each}: {problem}" for each, problem in problems.items())


ERRORS = {
    "EIO": (*CHANGING, *READING),
    "ENOSPC": ("openat", "mkdir", "rename", "write", "pwrite64", "ftruncate", "fallocate"),
    "EROFS": ("openat", "mkdir", "rename", "unlink", "unlinkat", "rmdir"),
    "EMFILE": ("openat",),
}
"""What a call may fail with, and at which calls that is tried."""


def _trials(found: list[Call]) -> list[tuple[Call, str]]:
    trials = [
        (call, error)
        for error, names in ERRORS.items()
        for call in found
        if call.name in names
        and (call.creates or call.name != "openat" or error in ("EIO", "EMFILE"))
    ]
    return spread(trials, MOST)


@pytest.mark.parametrize("name", SCENARIOS)
def test_f06_f07_f09_f10_failed_at_every_call(name: str, points: Any, measured: Any) -> None:
    """When one call fails, what was asked for fails as that or succeeds, and all is well again."""
    trials = _trials(points(name).calls)
    measured(cases=len(trials))
    problems = wrong(trials, points(name).failed)
    assert not problems, "\n".join(f"{at}: {problem}" for at, problem in problems.items())
