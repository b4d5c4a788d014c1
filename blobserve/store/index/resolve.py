"""Path resolution in a tree as in a chroot: canonical keys and links.

The same code serves lookups and the application of layers.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import TYPE_CHECKING, Protocol, TypeVar

from blobserve.tar.header import DIRECTORY, SYMLINK, split

if TYPE_CHECKING:
    from blobserve.config import Limits


class LinkNode(Protocol):
    """The members of a node that `walk` needs."""

    @property
    def type(self) -> bytes: ...

    @property
    def link(self) -> bytes: ...


N = TypeVar("N", bound=LinkNode)

_LINK_PER_STEP = 16


class TooManyLinks(Exception):
    """Following links took more hops or steps than the limit."""


def join(key: bytes, name: bytes) -> bytes:
    """Return the key of `name` in the directory at `key`."""
    return key + b"/" + name if key else name


def parted(key: bytes) -> tuple[bytes, bytes]:
    """Split a key into the key of its directory and its name there; the inverse of `join`."""
    directory, _, name = key.rpartition(b"/")
    return directory, name


def walk(
    parts: list[bytes], get: Callable[[bytes], N | None], limits: Limits, start: bytes = b""
) -> tuple[bytes, N | None, list[bytes]]:
    """Follow `parts` from the directory at `start`, and every link, as far as possible.

    Returns the key that was reached, its node (None for a directory that was not looked up), and
    the remaining parts. Parts remain if the node is not a directory or the next name is missing.

    :raises TooManyLinks: when that takes too many steps.
    """
    key, node = start, None
    todo = parts[::-1]  # Reversed, since a hostile link has more than a thousand parts.
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
    """Return the key of the last of the nested `names` that exists, its number and its node."""
    whole = join(key, b"/".join(names))
    node = get(whole)
    if node is not None:
        return whole, len(names), node
    # A key exists only if all keys above it do. They are prefixes of the whole key, so the search
    # bisects its bytes and does not join a thousand names ten times. The first probe is the
    # directory of the last name, where most paths end. Later probes are at growing distances from
    # the start, where a long path usually meets a link.
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
    """Return the cost of a lookup with this result, for limits on lookups."""
    # Following a link of a thousand parts takes a thousand lookups.
    return 1 if found is None else 1 + len(found.link or b"") // _LINK_PER_STEP
