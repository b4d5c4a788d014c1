"""The lock of a blob space, and warnings about its permissions."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from blobserve.daemon.plugin import Options, makeService
from blobserve.errors import SpaceUnusable
from blobserve.store.disk.directory import SpaceDirectory
from blobserve.store.disk.owner_lock import OwnerLock, exposure
from tests.support.services import configured, running
from tests.support.spaces import opened
from tests.support.within import within


@contextmanager
def owned(location: Path) -> Iterator[SpaceDirectory]:
    """Own a blob space."""
    space = SpaceDirectory(location)
    space.take()
    try:
        yield space
    finally:
        space.leave()


def test_a_removed_lock_file_admits_no_second_owner(tmp_path: Path) -> None:
    """While the server runs, the directory stays locked without its lock file."""
    with owned(tmp_path / "space") as space:
        unfinished = space.new_ingest()
        (space.root / "lock").unlink()
        with pytest.raises(SpaceUnusable, match="already used by process"):
            SpaceDirectory(space.root).take()
        with pytest.raises(SpaceUnusable, match="already used by process"):
            SpaceDirectory(space.root).look()
        assert unfinished.is_dir()
    with owned(tmp_path / "space"):
        assert not unfinished.exists()


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_removed_lock_file_is_made_again(tmp_path: Path, is_replaced: bool) -> None:
    """A lock file that was removed or replaced is made and locked again, and the log says so."""
    with owned(tmp_path / "space") as space, capturedLogs() as events:
        space.hold()
        assert not events
        lock = space.root / "lock"
        lock.unlink()
        if is_replaced:
            lock.write_text("17")
        space.hold()
        assert lock.read_text() == f"{os.getpid()}\n"
        assert "was removed or replaced while the server runs" in str(formatEvent(events[0]))
        with lock.open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        space.hold()
        assert len(events) == 1
        with pytest.raises(SpaceUnusable, match=f"already used by process {os.getpid()}"):
            OwnerLock(space.root)


@pytest.mark.parametrize("plant", ["link", "directory"])
def test_something_else_in_place_of_the_lock_file(tmp_path: Path, plant: str) -> None:
    """A link or a directory in place of the lock file is reported once and left alone."""
    with owned(tmp_path / "space") as space, capturedLogs() as events:
        lock = space.root / "lock"
        lock.unlink()
        if plant == "link":
            lock.symlink_to(tmp_path / "elsewhere")
        else:
            lock.mkdir()
        space.hold()
        space.hold()
        assert [formatEvent(event).partition(": ")[0] for event in events] == [
            f"{lock} cannot be locked again"
        ]
        assert not (tmp_path / "elsewhere").exists()


def test_a_lock_file_that_another_process_holds(tmp_path: Path) -> None:
    """If another process has locked a new lock file, there are two owners: this one gives up."""
    with owned(tmp_path / "space") as space:
        lock = space.root / "lock"
        lock.unlink()
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write("4711\n")
            file.flush()
            with pytest.raises(SpaceUnusable, match="already used by process 4711"):
                space.hold()


def test_a_replaced_directory(tmp_path: Path) -> None:
    """A blob space that is away may come back; another one in its place ends the ownership."""
    location = tmp_path / "space"
    with owned(location) as space:
        location.rename(tmp_path / "away")
        space.hold()
        location.mkdir()
        space.hold()
        assert not list(location.iterdir())
        with owned(location), pytest.raises(SpaceUnusable, match="another blob space is in its"):
            space.hold()
        for path in location.iterdir():
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()
        location.rmdir()
        (tmp_path / "away").rename(location)
        space.hold()


@within(30)
async def test_a_blob_space_that_is_lost(tmp_path: Path) -> None:
    """An open blob space notices its loss within ten seconds, and tells its owner."""
    clock, lost = Clock(), list[SpaceUnusable]()
    async with opened(tmp_path / "space", reactor=clock) as space:
        space.when_lost = lost.append
        (tmp_path / "space" / "lock").unlink()
        clock.advance(10)
        assert (tmp_path / "space" / "lock").exists()
        (tmp_path / "space").rename(tmp_path / "away")
        clock.advance(10)
        assert not lost
        with owned(tmp_path / "space"):
            clock.advance(10)
        [error] = lost
        assert "another blob space is in its place" in str(error)
        for path in (tmp_path / "space").iterdir():
            path.rmdir() if path.is_dir() else path.unlink()
        (tmp_path / "space").rmdir()
        (tmp_path / "away").rename(tmp_path / "space")


@within(30)
async def test_a_service_that_loses_its_blob_space(tmp_path: Path) -> None:
    """A service without its blob space stops listening, and says why."""
    config = configured(tmp_path / "space", {"allowAnyRepo": True})
    async with running(config) as server:
        waiting = server.service.when_lost()
        server.service._space.when_lost(SpaceUnusable("there", "gone"))
        with pytest.raises(SpaceUnusable, match="gone"):
            await waiting
        await server.service.stopService()
        assert server.is_shut()


@within(30)
async def test_a_start_in_a_location_that_others_may_write(tmp_path: Path) -> None:
    """The start warns about a location that others may write."""
    location = tmp_path / "space"
    location.mkdir()
    location.chmod(0o777)
    with capturedLogs() as events:
        async with opened(location):
            pass
    texts = [formatEvent(event) for event in events]
    assert [text for text in texts if "may be written by every user" in text]


def test_check_warns_of_a_location_that_others_may_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--check` warns about a location that others may write, and `--verify` does, too."""
    location, path = tmp_path / "space", tmp_path / "b.yaml"
    with owned(location):
        location.chmod(0o777)
    path.write_text("blobserve: {allowAnyRepo: true, blobSpace: {location: space}}")
    for option, stream in (("--check", 1), ("--verify", 0)):
        options = Options()
        options.parseOptions(["--config", str(path), option])
        with pytest.raises(SystemExit) as ended:
            makeService(options)
        assert not ended.value.code
        printed = capsys.readouterr()[stream]
        assert f"{location} may be written by every user" in printed


def test_a_location_that_others_may_write(tmp_path: Path) -> None:
    """A location, or a directory above it, that others may write is warned about."""
    parent, location = tmp_path / "parent", tmp_path / "parent" / "space"
    location.mkdir(parents=True)
    parent.chmod(0o755)
    location.chmod(0o700)
    assert exposure(location) is None
    assert exposure(location / "missing") is None
    for mode, said in ((0o777, "by every user"), (0o770, "by its group"), (0o1777, "every user")):
        location.chmod(mode)
        assert said in str(exposure(location))
    location.chmod(0o755)
    parent.chmod(0o777)
    assert str(exposure(location)).startswith(f"{parent} may be written by every user")
    assert str(exposure(location / "missing")).startswith(f"{parent} may be written")
    parent.chmod(0o1777)
    assert exposure(location) is None
    linked = tmp_path / "linked"
    linked.symlink_to(location)
    location.chmod(0o707)
    assert str(exposure(linked)).startswith(f"{location} may be written")


def test_a_location_of_another_user(tmp_path: Path) -> None:
    """A location that belongs to another user is warned about, unless that is root."""
    location = tmp_path / "space"
    location.mkdir(mode=0o700)
    owner = os.geteuid()
    if owner == 0:
        owner = 65534
        os.chown(location, owner, owner)
    assert f"belongs to another user (uid {owner})" in str(exposure(location, owner + 1))
