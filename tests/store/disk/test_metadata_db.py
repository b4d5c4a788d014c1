"""The metadata that a blob space stores beside its blobs."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from blobserve.names.digest import Digest
from blobserve.store.disk import metadata_db
from blobserve.store.disk.metadata_db import (
    SLACK,
    Change,
    MetadataDb,
    Record,
    StoredReferences,
    WriteBehind,
    made_durable,
    manifest_put,
    manifest_removed,
    recorded,
    remembered,
    removed,
    was_used,
)
from tests.support.spaces import names_in, on_disk, opened
from tests.support.stores import now

ONE, TWO, THREE = (Digest.of(text) for text in (b"one", b"two", b"three"))


def state_in(directory: Path) -> MetadataDb:
    """Return the opened state file in `directory`."""
    state = MetadataDb(directory / "state")
    state.open()
    return state


def a_record(digest: Digest, used: float = 0.0) -> Record:
    """Return a record of a blob."""
    return Record(digest, 7, 8, b"checksum", used)


def test_records_survive(tmp_path: Path) -> None:
    """Records of blobs are read after a restart by last use, without the removed ones."""
    state = state_in(tmp_path)
    state.change(*(recorded(a_record(digest)) for digest in (ONE, TWO, THREE)))
    state.change(was_used(TWO, 5.0), was_used(THREE, 4.0), made_durable(THREE), removed(ONE))
    state.close()
    two, three = a_record(TWO, 5.0), Record(THREE, 7, 8, b"checksum", 4.0, durable=True)
    assert state_in(tmp_path).blobs() == [three, two]


def test_manifests_survive(tmp_path: Path) -> None:
    """The media types of manifests are stored across restarts."""
    state = state_in(tmp_path)
    state.change(manifest_put(ONE, "a", 2.0), manifest_put(TWO, "b", 1.0), manifest_removed(THREE))
    state.close()
    assert state_in(tmp_path).manifests() == [(TWO, "b"), (ONE, "a")]


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    """A change survives even if the file was never closed."""
    killed = state_in(tmp_path)  # kept, since its deletion would close the file
    killed.change(recorded(a_record(ONE)))
    for name in ("state", "state-wal"):
        (tmp_path / "next").mkdir(exist_ok=True)
        (tmp_path / "next" / name).write_bytes((tmp_path / name).read_bytes())
    killed.close()
    assert state_in(tmp_path / "next").blobs() == [a_record(ONE)]


def test_nothing_is_written_after_the_end(tmp_path: Path) -> None:
    """A change after closing is an error."""
    state = state_in(tmp_path)
    state.close()
    state.close()
    with pytest.raises(sqlite3.ProgrammingError):
        state.change(removed(ONE))


@pytest.mark.parametrize("damage", ["garbage", "zeros", "a directory", "a link"])
def test_a_damaged_file_is_set_aside(tmp_path: Path, damage: str) -> None:
    """A state file that is damaged, or not a file, is set aside and replaced by an empty one."""
    path, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    elsewhere.write_bytes(b"untouched")
    state = state_in(tmp_path)
    state.change(*(remembered(f"registry.example/site:{n}", ONE, 1.0) for n in range(200)))
    state.close()
    whole = path.read_bytes()
    path.unlink()
    if damage == "a directory":
        (path / "inside").mkdir(parents=True)
    elif damage == "a link":
        path.symlink_to(elsewhere)
    else:
        broken = {
            "garbage": b"this is no database" * 500,
            "zeros": whole[:4096] + bytes(len(whole) - 4096),
        }
        path.write_bytes(broken[damage])
    state = state_in(tmp_path)
    assert state.references() == []
    assert "state.damaged" in names_in(tmp_path, ".")
    assert elsewhere.read_bytes() == b"untouched"
    state.change(recorded(a_record(ONE)))
    assert state.blobs() == [a_record(ONE)]


def test_the_size_is_what_is_on_disk(tmp_path: Path) -> None:
    """The counted size covers the files of the state, and a commit adds at most the slack."""
    state = state_in(tmp_path)
    before = state.size
    for n in range(0, 3000, 30):
        state.change(*(remembered(f"registry.example/{n}/{i}:tag", ONE, 1.0) for i in range(30)))
        assert state.size >= on_disk(tmp_path) - 4096
        assert state.size - before <= SLACK
        before = state.size


class Written:
    """A writer that takes changes when the test says so."""

    def __init__(self) -> None:
        self.batches: list[list[Change]] = []
        self.gate: Deferred[None] | None = None

    async def write(self, changes: list[Change]) -> None:
        """Take a batch."""
        if self.gate is not None:
            await self.gate
        self.batches.append(changes)


def test_the_last_change_of_a_minute_is_written() -> None:
    """Frequent changes of one key are written once per interval, with the last value."""
    clock, written = Clock(), Written()
    behind = WriteBehind(clock, 60.0, written.write)
    for n in range(100):
        behind.put(ONE, was_used(ONE, n))
        behind.put(TWO, was_used(TWO, n))
        clock.advance(0.5)
    assert written.batches == []
    clock.advance(10)
    assert written.batches == [[was_used(ONE, 99), was_used(TWO, 99)]]
    clock.advance(1000)
    assert len(written.batches) == 1


def test_changes_do_not_overtake() -> None:
    """A change is written only after those before it."""
    clock, written = Clock(), Written()
    behind = WriteBehind(clock, 1.0, written.write)
    written.gate = gate = Deferred()
    behind.put(ONE, removed(ONE))
    clock.advance(1)
    behind.put(ONE, recorded(a_record(ONE)))
    flushed = Deferred.fromCoroutine(behind.flush())
    assert not flushed.called
    written.gate = None
    gate.callback(None)
    assert written.batches == [[removed(ONE)], [recorded(a_record(ONE))]]
    assert flushed.called


def test_references_are_bounded() -> None:
    """Beyond a limit the least recently used reference is forgotten."""
    clock, written = Clock(), Written()
    known = StoredReferences(WriteBehind(clock, 1.0, written.write))
    for n in range(metadata_db.MOST_REFERENCES):
        known.remember(f"registry.example/site:{n}", ONE, n)
    known.remember("registry.example/site:0", TWO, 5.0)
    known.remember("registry.example/site:new", ONE, 6.0)
    names = [reference for reference, _, _ in known.all()]
    assert len(names) == metadata_db.MOST_REFERENCES
    assert "registry.example/site:1" not in names
    assert names[-2:] == ["registry.example/site:0", "registry.example/site:new"]


def test_references_survive_a_restart(tmp_path: Path) -> None:
    """References survive a restart, and forgotten ones do not come back."""

    async def restart() -> None:
        async with opened(tmp_path) as space:
            space.references.remember("registry.example/site:v1", ONE, 10.5)
            space.references.remember("registry.example/site:v2", ONE, 11.0)
            space.references.remember("registry.example/site:v1", TWO, 12.0)
            space.references.forget("registry.example/site:v2")
            space.references.forget("registry.example/site:never")
        async with opened(tmp_path) as space:
            assert space.references.all() == [("registry.example/site:v1", TWO, 12.0)]

    now(Deferred.fromCoroutine(restart()))


def test_references_are_written_soon(tmp_path: Path) -> None:
    """A reference is on disk a second after it was learned."""

    async def killed() -> None:
        clock = Clock()
        async with opened(tmp_path / "space", reactor=clock) as space:
            space.references.remember("registry.example/site:v1", ONE, 1.0)
            clock.advance(1.0)
            copy = tmp_path / "copy"
            copy.mkdir()
            for path in (tmp_path / "space").glob("state*"):
                (copy / path.name).write_bytes(path.read_bytes())
        assert state_in(copy).references() == [("registry.example/site:v1", ONE, 1.0)]

    now(Deferred.fromCoroutine(killed()))


def test_a_damaged_row_is_left_out(tmp_path: Path) -> None:
    """An unreadable row does not prevent a blob space from opening."""
    state = state_in(tmp_path)
    state.change(
        recorded(a_record(ONE)),
        ("INSERT INTO blobs VALUES ('sha256:no', 1, 1, x'', 0, 1)", ()),
        ("INSERT INTO blobs VALUES (CAST(x'ff' AS TEXT), 1, 1, x'', 0, 1)", ()),
    )
    assert state.blobs() == [a_record(ONE)]
