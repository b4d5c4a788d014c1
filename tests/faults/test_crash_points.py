"""A blob space that is killed, or gets an error from the disk, at each of its system calls.

The test suite tries some of the calls, evenly spread. ``python -m tests.faults.campaign crashes``
tries all of them.
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
"""The largest number of calls to try in each scenario."""


class Points:
    """The system calls of one scenario, and a fresh blob space for each trial."""

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
        """Return the arguments of Python that run the scenario."""
        return ["-m", "tests.faults.crashing", self._name, str(location)]

    @contextmanager
    def space(self) -> Iterator[tuple[Path, Path]]:
        """Make a copy of the prepared blob space, and a directory for other files."""
        with TemporaryDirectory(dir=self._directory) as scratch:
            location = Path(scratch, "space")
            if self._base.exists():
                shutil.copytree(self._base, location, symlinks=True)
            yield location, Path(scratch)

    def killed(self, call: Call) -> str:
        """Kill the process at the start of a call; return the problem found afterwards, if any."""
        with self.space() as (location, scratch):
            done = injected(self.arguments(location), scratch, call, "signal=SIGKILL")
            if done.returncode != -signal.SIGKILL:
                return f"it was not killed: {done.returncode} {done.stderr}"
            return self._settled(location)

    def failed(self, call: Call, error: str) -> str:
        """Let a call fail once; return the problem found afterwards, if any."""
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
        """Let a call fail once; return the errors that the scenario reported."""
        with self.space() as (location, scratch):
            done = injected(self.arguments(location), scratch, call, f"error={error}")
            return dict(json.loads(done.stdout))

    def _settled(self, location: Path) -> str:
        try:
            now(Deferred.fromCoroutine(settled(self._name, location)))
        except Exception as error:  # noqa: BLE001 - any exception is a finding
            return f"{type(error).__name__}: {error}"
        return ""


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that finds the calls of a scenario, once for each name."""
    known: dict[str, Points] = {}

    def of(name: str) -> Points:
        if name not in known:
            known[name] = Points(name, tmp_path_factory.mktemp(name))
        return known[name]

    return of


def wrong(trials: list[tuple[Any, ...]], tried: Any) -> dict[str, str]:
    """Run the trials, two at a time; return the problem of each that found one."""
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda trial: tried(*trial), trials)
        return {
            " ".join(map(str, trial)): problem
            for trial, problem in zip(trials, results, strict=True)
            if problem
        }


@pytest.mark.parametrize("name", SCENARIOS)
def test_f01_f02_f03_killed_at_every_call(name: str, points: Any, measured: Any) -> None:
    """A process killed at any call that changes the disk leaves whole layers, and no leftovers."""
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
"""Errors, with the calls that may fail with them."""


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
    """After an error of any system call the operation fails or succeeds, and all works again."""
    trials = _trials(points(name).calls)
    measured(cases=len(trials))
    problems = wrong(trials, points(name).failed)
    assert not problems, "\n".join(f"{at}: {problem}" for at, problem in problems.items())
