"""The names of files in earlier versions that stay reachable after a deploy.

They are collected in a thread, from the indexes of the versions, into one `NameTable` for a tag. It
answers in one step which version is the newest one with a file.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator

from blobserve.config import KeepVersions, RepositoryRules
from blobserve.errors import PathNotFound
from blobserve.store.blobs.filesystem import Filesystem
from blobserve.store.index.entry import Entry, EntryKind
from blobserve.store.index.name_table import NameTable
from blobserve.web.content.lookup import joined
from blobserve.web.hosting.content_hash import BUNDLER_FOLDERS
from blobserve.web.http.caching import is_immutable_path
from blobserve.web.http.media_types import is_html, served_type

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
    return is_html(served_type(name, entry.is_text, rules))


def collected(
    names: NameTable,
    version: int,
    filesystem: Filesystem,
    top: list[tuple[bytes, Entry]],
    rules: RepositoryRules,
    keep: KeepVersions,
    most_entries: Callable[[], int],
) -> Iterator[None]:
    """Add the names of one version, in steps; each step may block, and run in any thread.

    :param top: the result of `roots`, which looks up and so does not run in a thread.
    """
    found: list[bytes] = []
    for name, entry in _files(filesystem, top, most_entries):
        if stays_reachable(name, rules, keep) and not is_document(name, entry, rules):
            found.append(name)
        if len(found) >= _SLICE:
            names.add(found, version)
            found = []
            yield
            if names.is_full:
                return
    names.add(found, version)


def roots(
    filesystem: Filesystem, rules: RepositoryRules, keep: KeepVersions
) -> list[tuple[bytes, Entry]]:
    """Return each folder or file, by its path from the root of the site, with files to collect."""
    workdir, found = rules.workdir.encode(), []
    for root in _roots(rules, keep):
        try:
            found.append((root, filesystem.lookup(joined(workdir, root))))
        except PathNotFound:
            continue
    return found


def _files(
    filesystem: Filesystem, top: list[tuple[bytes, Entry]], most_entries: Callable[[], int]
) -> Iterator[tuple[bytes, Entry]]:
    """Yield each file below `top`, by its path from the root of the site."""
    for root, entry in top:
        if entry.kind is EntryKind.FILE:
            yield root, entry
        else:
            yield from _below(filesystem, root, entry, most_entries)


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
