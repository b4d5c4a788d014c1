"""The names of files in earlier versions: one table for all versions of a tag.

A table answers in one step which version is the newest one with a file. It is made in a thread,
from the indexes of the versions. Only files that stay reachable are in it, see `stays_reachable`.
"""

from __future__ import annotations

import fnmatch
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator

from blobserve.config import KeepVersions, RepositoryRules
from blobserve.errors import PathNotFound
from blobserve.store.blobs.filesystem import Filesystem
from blobserve.store.index.entry import Entry, EntryKind
from blobserve.web.content.lookup import joined
from blobserve.web.hosting.content_hash import BUNDLER_FOLDERS
from blobserve.web.http.caching import is_immutable_path
from blobserve.web.http.media_types import content_type, is_html

MOST_NAMES = 1_000_000
"""Names in one table; beyond that, files of the oldest versions are left out."""

MOST_IN_MEMORY = 50_000
"""Names that a table holds as they are; beyond that, it holds hashes, which take less memory."""

_SLICE = 1000
_MOST_DEPTH = 64

_WILDCARD = re.compile(r"[*?\[]")


def stays_reachable(path: bytes, rules: RepositoryRules, keep: KeepVersions) -> bool:
    """Return whether earlier versions may answer for a path, judged by the path alone.

    `path` is decoded and relative to the root of the site.
    """
    if not path or path.endswith(b"/"):
        return False
    if keep.paths is None:
        return path.startswith(BUNDLER_FOLDERS) or is_immutable_path(path, rules)
    text = path.decode("utf-8", "backslashreplace")
    return any(fnmatch.fnmatchcase(text, glob) for glob in keep.paths)


def is_document(name: bytes, entry: Entry, rules: RepositoryRules) -> bool:
    """Return whether a file is an HTML document, which is always of the current version."""
    found = rules.file_type(name)
    kind = found.media_type.encode() if found else content_type(name, entry.is_text)
    return is_html(kind)


class VersionNames:
    """The names in several versions, each with the number of the newest version that has it."""

    def __init__(self) -> None:
        self.is_full = False
        """Whether names were left out."""
        self.size = 0
        """The number of names."""
        self._names: dict[bytes, int] = {}
        self._hashes: sqlite3.Connection | None = None

    def get(self, name: bytes) -> int | None:
        """Return the number of the newest version with a file of this name.

        A name that no version has may give a number as well, if two hashes are equal.
        """
        if self._hashes is None:
            return self._names.get(name)
        query = "SELECT version FROM names WHERE hash = ?"
        row = self._hashes.execute(query, (hash(name),)).fetchone()
        return None if row is None else int(row[0])

    def add(self, names: Iterable[bytes], version: int) -> None:
        """Add names of a version; versions are added by number, the newest first."""
        if self.is_full:
            return
        if self._hashes is None:
            for name in names:
                self._names.setdefault(name, version)
            self.size = len(self._names)
            if self.size > MOST_IN_MEMORY:
                self._hashes = _hash_table()
                self._insert(self._names.items())
                self._names = {}
        else:
            self._insert((name, version) for name in names)
        self.is_full = self.size >= MOST_NAMES

    def _insert(self, rows: Iterable[tuple[bytes, int]]) -> None:
        if self._hashes is not None:
            hashed = ((hash(name), version) for name, version in rows)
            self._hashes.executemany("INSERT OR IGNORE INTO names VALUES (?, ?)", hashed)
            [self.size] = self._hashes.execute("SELECT count(*) FROM names").fetchone()


def _hash_table() -> sqlite3.Connection:
    # In autocommit mode, since the table is only in memory.
    database = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode = OFF")
    database.execute("CREATE TABLE names (hash INTEGER PRIMARY KEY, version INTEGER NOT NULL)")
    return database


def collected(
    names: VersionNames,
    version: int,
    filesystem: Filesystem,
    rules: RepositoryRules,
    keep: KeepVersions,
    most_entries: Callable[[], int],
) -> Iterator[None]:
    """Add the names of one version, in steps; each step may block."""
    found: list[bytes] = []
    for name, entry in _files(filesystem, rules, keep, most_entries):
        if stays_reachable(name, rules, keep) and not is_document(name, entry, rules):
            found.append(name)
        if len(found) >= _SLICE:
            names.add(found, version)
            found = []
            yield
            if names.is_full:
                return
    names.add(found, version)


def _files(
    filesystem: Filesystem,
    rules: RepositoryRules,
    keep: KeepVersions,
    most_entries: Callable[[], int],
) -> Iterator[tuple[bytes, Entry]]:
    """Yield each file below the folders that matter, by its path from the root of the site."""
    workdir = rules.workdir.encode()
    for root in _roots(rules, keep):
        try:
            directory = filesystem.lookup(joined(workdir, root))
        except PathNotFound:
            continue
        if directory.kind is EntryKind.FILE:
            yield root, directory
        else:
            yield from _below(filesystem, root, directory, most_entries)


def _below(
    filesystem: Filesystem, root: bytes, top: Entry, most_entries: Callable[[], int]
) -> Iterator[tuple[bytes, Entry]]:
    """Yield each file below a directory. Links are followed, but not back to a folder above."""
    # The real paths of the directories above tell whether a link leads back.
    todo: list[tuple[bytes, Entry, tuple[bytes, ...]]] = [(root, top, ())]
    left = most_entries()
    while todo and left > 0:
        path, directory, above = todo.pop()
        if directory.path in above or len(above) > _MOST_DEPTH:
            continue
        for last, entry in filesystem.entries(directory, most_entries()):
            left -= 1
            name = joined(path, last)
            if entry.kind is EntryKind.FILE:
                yield name, entry
            else:
                todo.append((name, entry, (*above, directory.path)))


def _roots(rules: RepositoryRules, keep: KeepVersions) -> list[bytes]:
    """Return the folders, from the root of the site, that have all files that stay reachable."""
    globs = rules.immutable_paths if keep.paths is None else keep.paths
    roots = {_folder(glob) for glob in globs}
    if keep.paths is None:
        roots |= {folder.rstrip(b"/") for folder in BUNDLER_FOLDERS}
    return sorted(each for each in roots if not any(_is_below(each, other) for other in roots))


def _folder(glob: str) -> bytes:
    """Return the folder of a glob up to its first wildcard, or the whole path without one."""
    found = _WILDCARD.search(glob)
    folder = glob if found is None else glob[: found.start()].rpartition("/")[0]
    return folder.strip("/").encode("utf-8", "surrogateescape")


def _is_below(folder: bytes, other: bytes) -> bool:
    return folder != other and (not other or folder.startswith(other + b"/"))
