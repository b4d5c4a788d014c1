"""`--verify`: an idle blob space is read and hashed completely."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import pytest_twisted

from blobserve.config import KIB, BlobSpaceRules, Limits
from blobserve.daemon.fsck_report import verified
from blobserve.errors import SpaceUnusable
from blobserve.store.blobs.fsck import Findings, audit
from blobserve.testing import make_image
from tests.store.blobs.test_recovery import changed, crashed, directory_of, flip
from tests.support.coded_layers import ask, codings_of, lease, site, text
from tests.support.parts.server import Server
from tests.support.spaces import made, on_disk, opened, take_in
from tests.system.test_plugin import twist

ONE = made(1)
CODED = site(text(1), text(2))
MANIFEST = make_image({"a": b"content"}).documents[0]


async def filled(location: Path) -> None:
    """Make a closed blob space with layers, codings and a manifest."""
    async with opened(location) as space:
        for layer in (ONE, CODED):
            await take_in(space, layer)
        blob = lease(space, CODED)
        for coding in (b"gzip", b"zstd"):
            ask(blob, coding)
        blob.release()
        await space.manifests.put(MANIFEST)


def look(location: Path) -> Findings:
    """Audit a blob space, and check that nothing in it has changed."""
    before = {path: _seen(path) for path in location.rglob("*") if path.name != "lock"}
    found = audit(location, Limits())
    assert {path: _seen(path) for path in location.rglob("*") if path.name != "lock"} == before
    return found


def _seen(path: Path) -> tuple[int, int, int, bytes]:
    status = path.lstat()
    content = path.read_bytes() if path.is_file() else b""
    return status.st_mode, status.st_ino, status.st_mtime_ns, content


@pytest_twisted.ensureDeferred
async def test_whole(tmp_path: Path) -> None:
    """An intact blob space has no findings, and its size is the one that is counted."""
    location = tmp_path / "space"
    await filled(location)
    found = look(location)
    assert (found.layers, found.entries, found.manifests) == (2, 3, 1)
    assert (found.damaged, found.notes, found.foreign) == ([], [], [])
    assert found.size > 100 * KIB
    async with opened(location) as space:
        assert found.counted == space.size
    assert on_disk(location) <= found.counted
    assert found.taken <= found.counted


def _content(location: Path) -> None:
    flip(directory_of(location, ONE) / "content", 50_000)


def _short_content(location: Path) -> None:
    os.truncate(directory_of(location, ONE) / "content", 1024)


def _index(location: Path) -> None:
    flip(directory_of(location, ONE) / "index", 5000)


def _no_index(location: Path) -> None:
    (directory_of(location, ONE) / "index").unlink()


def _manifest(location: Path) -> None:
    flip(location / "manifests" / "sha256" / MANIFEST.digest.hex, 5)


def _coding(location: Path) -> None:
    path = codings_of(location, CODED)
    flip(path, path.stat().st_size - 10)


def _state(location: Path) -> None:
    (location / "state").write_bytes(b"no database" * 1000)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_content, f"layer {ONE.digest}: its content does not match its index"),
        (_short_content, f"layer {ONE.digest}: its content has another size than recorded"),
        (_index, f"layer {ONE.digest}: its index differs from its record (it can be rebuilt)"),
        (_no_index, f"layer {ONE.digest}: its index differs from its record"),
        (_manifest, f"manifest {MANIFEST.digest}: its content does not match its digest"),
        (_coding, f"layer {CODED.digest}: a"),
        (_state, "the metadata database: it is not a database"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_f12_damage(tmp_path: Path, damage: Callable[[Path], None], says: str) -> None:
    """One changed byte is found, in any file."""
    await filled(tmp_path)
    damage(tmp_path)
    [damaged] = look(tmp_path).damaged
    assert damaged.startswith(says)
    lines, is_good = verified(BlobSpaceRules(tmp_path, 1 << 30), Limits())
    assert not is_good
    assert f"damaged: {damaged}" in lines


def _pulling(location: Path) -> None:
    (location / "ingest" / "abc").mkdir()
    (location / "ingest" / "abc" / "content").write_bytes(b"x" * 10_000)


def _unrecorded(location: Path) -> None:
    changed(location, f"DELETE FROM blobs WHERE digest = '{ONE.digest}'")


def _recorded_alone(location: Path) -> None:
    shutil.rmtree(directory_of(location, ONE))


def _torn_coding(location: Path) -> None:
    with codings_of(location, CODED).open("ab") as file:
        file.write(b"x" * 1000)


@pytest.mark.parametrize(
    ("leave", "says"),
    [
        (_pulling, "unfinished pulls in ingest: 1"),
        (_unrecorded, f"layer {ONE.digest}: not recorded; the next start verifies it"),
        (_recorded_alone, f"layer {ONE.digest}: recorded, but missing"),
        (_torn_coding, f"layer {CODED.digest}: its codings end with an incomplete record"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_left_by_a_crash(tmp_path: Path, leave: Callable[[Path], None], says: str) -> None:
    """Leftovers of a crash are reported as notes and not as damage."""
    await filled(tmp_path)
    leave(tmp_path)
    found = look(tmp_path)
    assert (found.damaged, found.notes) == ([], [says])


@pytest_twisted.ensureDeferred
async def test_a_crash_in_the_middle(tmp_path: Path) -> None:
    """Changes in the write-ahead log of a crashed process are read."""
    async with opened(tmp_path / "space") as space:
        await take_in(space, ONE)
        copy = crashed(tmp_path / "space", tmp_path / "copy")
    assert (copy / "state-wal").stat().st_size > 0
    found = look(copy)
    assert (found.damaged, found.notes, found.layers) == ([], [], 1)


@pytest_twisted.ensureDeferred
async def test_f11_foreign_files(tmp_path: Path) -> None:
    """Foreign files in a blob space are listed, but not followed and not counted."""
    location, elsewhere = tmp_path / "space", tmp_path / "elsewhere"
    await filled(location)
    counted = audit(location, Limits()).counted
    elsewhere.mkdir()
    (elsewhere / "content").write_bytes(b"x" * 1_000_000)
    digest = made(7).digest.hex
    (location / "README").write_text("foreign")
    (location / "blobs" / "md5").mkdir()
    (location / "blobs" / "sha256" / "x").write_text("foreign")
    (location / "blobs" / "sha256" / digest).symlink_to(elsewhere)
    (location / "manifests" / "sha256" / digest).symlink_to(elsewhere / "content")
    found = look(location)
    assert sorted(map(str, found.foreign)) == [
        "README",
        "blobs/md5",
        f"blobs/sha256/{digest}",
        "blobs/sha256/x",
        f"manifests/sha256/{digest}",
    ]
    assert (found.damaged, found.notes, found.counted) == ([], [], counted)


def test_nothing_there(tmp_path: Path) -> None:
    """A missing blob space is an error, and none is created."""
    for location in (tmp_path / "none", tmp_path):
        with pytest.raises(SpaceUnusable, match="there is no blob space there"):
            audit(location, Limits())
    assert os.listdir(tmp_path) == []
    (tmp_path / "VERSION").write_text("7\n")
    with pytest.raises(SpaceUnusable, match="not of format '1'"):
        audit(tmp_path, Limits())


# --- The command line -----------------------------------------------------------------------------


def test_on_the_command_line(tmp_path: Path, serve: Callable[..., Server]) -> None:
    """--verify refuses a blob space in use, and its exit code tells whether damage was found."""
    server = serve({"repos": {"a.example/site": {}}})
    command = ("blobserve", "--config", server.config, "--verify")
    done = twist(*command)
    assert done.returncode == 1
    assert f"already used by process {server.pid}" in done.stderr
    server.stop()
    done = twist(*command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith(f"{server.space}: 0 layers with 0 entries")
    assert done.stdout.splitlines()[-1] == "nothing is damaged"
    (server.space / "state").write_bytes(b"no database" * 1000)
    done = twist(*command)
    assert done.returncode == 1
    assert "damaged: the metadata database: it is not a database" in done.stdout
    shutil.rmtree(server.space)
    done = twist(*command)
    assert (done.returncode, os.path.exists(server.space)) == (1, False)
    assert "there is no blob space there" in done.stderr


def test_much_to_say() -> None:
    """A report on much damage stays short."""
    from blobserve.daemon.fsck_report import _lines

    found = Findings(damaged=[f"layer {n}: {os.strerror(errno.EIO)}" for n in range(1000)])
    lines = list(_lines(BlobSpaceRules(Path("/space")), found))
    assert len(lines) == 24
    assert "damaged: and 980 more" in lines
