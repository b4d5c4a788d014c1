"""Paths in a tree: canonical keys, and where links lead, as in a chroot.

Pure, and the same for the tree that is being made and the one that is served.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import TYPE_CHECKING, Protocol, TypeVar

from blobserve.tar.header import DIRECTORY, SYMLINK
from blobserve.tar.names import split

if TYPE_CHECKING:
    from blobserve.config import Limits


class LinkNode(Protocol):
    """What `walk` must know of a node."""

    @property
    def type(self) -> bytes: ...

    @property
    def link(self) -> bytes: ...


N = TypeVar("N", bound=LinkNode)

_LINK_PER_STEP = 16


class TooManyLinks(Exception):
    """Following links took more hops, or more steps, than anyone should need."""


def join(key: bytes, name: bytes) -> bytes:
    """The key of `name` in the directory at `key`."""
    return key + b"/" + name if key else name


def parted(key: bytes) -> tuple[bytes, bytes]:
    """The key of the directory that `key` is in, and its name there. Undoes `join`."""
    directory, _, name = key.rpartition(b"/")
    return directory, name


def walk(
    parts: list[bytes], get: Callable[[bytes], N | None], limits: Limits, start: bytes = b""
) -> tuple[bytes, N | None, list[bytes]]:
    """Go from the directory at `start` through `parts` as far as they lead, following every link.

    Returns the key that was reached, the node there (None: a directory that was not looked at), and
    the parts that are left: none when all of them are there; else the way went on from something
    that is no directory, or to a name that is missing.

    :raises TooManyLinks: when that takes too long.
    """
    key, node = start, None
    todo = parts[::-1]  # Taken from its end: a hostile link has more than a thousand components.
    hops = turns = 0
    while todo:
        turns += 1
        if turns > limits.depth:
            raise TooManyLinks
        if todo[-1] == b"..":
            todo.pop()
            key, node = key.rpartition(b"/")[0], None
            continue
        names = todo[::-1] if b".." not in todo else list(takewhile(b"..".__ne__, todo[::-1]))
        reached, there, found = _descend(key, names, get)
        if found is None:
            break
        del todo[len(todo) - there :]
        key, node = reached, found
        if found.type == SYMLINK:
            hops += 1
            if hops > limits.link_hops:
                raise TooManyLinks
            key = b"" if found.link.startswith(b"/") else key.rpartition(b"/")[0]
            node = None
            todo += reversed(split(found.link))
        elif found.type != DIRECTORY or there < len(names):
            break
    return key, node, todo[::-1]


def _descend(
    key: bytes, names: list[bytes], get: Callable[[bytes], N | None]
) -> tuple[bytes, int, N | None]:
    """Return how far `names` lead, each within the one before: the key, how many, and the node."""
    whole = join(key, b"/".join(names))
    node = get(whole)
    if node is not None:
        return whole, len(names), node
    # A key is there only if all keys on the way to it are. They are the whole one, cut at a slash:
    # bisect its bytes, or a path of a thousand names would be put together ten times. First probe
    # where most paths end, the directory of a name that is missing; then by growing steps from the
    # start, where a long path that leads through links turns off.
    start = end = len(key) + 1 if key else 0
    probe, missing, step = whole.rfind(b"/", start), len(whole), 1
    while probe >= 0:
        found = get(whole[:probe])
        if found is None:
            missing = probe
        else:
            end, node, step = probe, found, 4 * step
        middle = min(end + step, (end + missing) // 2)
        probe = whole.rfind(b"/", end + 1, middle + 1)
        if probe < 0:
            probe = whole.find(b"/", middle + 1, missing)
    if node is None:
        return key, 0, None
    return whole[:end], whole.count(b"/", start, end) + 1, node


def steps(found: LinkNode | None) -> int:
    """What a look-up with this outcome counts for, where there may be only so many."""
    # To follow a link of a thousand components is the work of as many look-ups.
    return 1 if found is None else 1 + len(found.link or b"") // _LINK_PER_STEP
