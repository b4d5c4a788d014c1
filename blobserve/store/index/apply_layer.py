"""The tree that entries make, replayed in their order as an extraction in a chroot would.

The last entry of a name wins; a directory that is replaced loses what is in it, a directory that
comes again does not; links on the way are followed inside the root. Keys are canonical: no key
passes through a link, so a key that is there answers in one look-up, and the keys on the way to it
are directories, all of them there. Pure: where nodes are kept comes in as `NodeStore`, so that the
replay of a next layer may go on over what the one before left.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from blobserve.errors import BadLayer
from blobserve.store.index.resolve import TooManyLinks, join, steps, walk
from blobserve.tar.header import DIRECTORY, LINK, REGULAR, SYMLINK
from blobserve.tar.names import clean, split

if TYPE_CHECKING:
    from blobserve.config import Limits
    from blobserve.tar.reader import Member

WHITEOUT = b".wh."
"""What the name of a whiteout begins with. OCI image-spec layer.md, "Whiteouts"."""

_OPAQUE = b".wh..wh..opq"

MADE = frozenset((REGULAR, LINK, SYMLINK, DIRECTORY, b"3", b"4", b"6"))
"""The types of the entries that make something."""

_STEPS_PER_ENTRY = 8


class Node(NamedTuple):
    """What is at a key: the entry whose type and body it has, or None for an implied directory."""

    entry: int | None
    type: bytes
    link: bytes


IMPLIED = Node(None, DIRECTORY, b"")


class NodeStore(Protocol):
    """Where the nodes of a tree are kept, by canonical key. The root has no key."""

    def get(self, key: bytes) -> Node | None:
        """The node at `key`."""
        ...

    def put(self, key: bytes, node: Node) -> None:
        """Put a node at `key`, in place of what is there."""
        ...

    def clear(self, key: bytes) -> None:
        """Remove everything below `key`, and not `key` itself."""
        ...

    def remove(self, key: bytes) -> None:
        """Remove the node at `key`; there is nothing below it."""
        ...

    def set_aside(self, key: bytes, whiteout: int, is_opaque: bool) -> None:
        """Keep what this whiteout is about to hide, `key` itself only if it is not opaque.

        Until the end of the layer, for `hidden`.
        """
        ...

    def hidden(self, key: bytes, entry: int) -> Node | None:
        """Return the node that was at `key` for an entry, and that a later whiteout hides."""
        ...

    def links(self) -> Iterator[tuple[bytes, Node]]:
        """All nodes of type hard link; those that come after may be changed meanwhile."""
        ...


class LayerApplier:
    """Applies the entries of one layer after another, in stream order, to a tree.

    Of each layer first the whiteouts, by `apply_whiteout`, if there is a lower one; then its
    entries, by `apply`; then `finish`. Whiteouts so hide what lower layers have, never what their
    own has, wherever in it they stand; they are no entries, nor is what is below a name that looks
    like one.

    A hard link takes what its target is when its entry comes, as in an extraction: what a whiteout
    further on in the stream hides is still there for it. An entry, or a whiteout, is named by its
    number, the same counting for both.
    """

    def __init__(self, nodes: NodeStore, limits: Limits) -> None:
        self._nodes = nodes
        self._limits = limits
        self._last: tuple[bytes, bytes | None] | None = None  # A directory as written, and its key.
        self._hiding: tuple[bytes, bytes | None] | None = None  # The same, where it is not made.
        self._pending = False  # Hard links to what had not come yet.
        self._steps = self._keys = self._implied = 0

    def apply_whiteout(self, name: bytes, number: int) -> None:
        """Remove what a whiteout of this name hides; nothing if it hides nothing, or is none.

        Its path is one of the tree of the lower layers, links included: what its own layer puts in
        their place does not count.

        :raises BadLayer: when finding it goes beyond a limit.
        """
        above, _, last = name.rstrip(b"/").rpartition(b"/")
        if not last.startswith(WHITEOUT):
            return
        if self._hiding is None or self._hiding[0] != above:
            self._hiding = above, self._found(clean(above))
        directory, hidden = self._hiding[1], last.removeprefix(WHITEOUT)
        if directory is None:
            return
        if last == _OPAQUE:
            self._hiding = None
            self._nodes.set_aside(directory, number, is_opaque=True)
            self._nodes.clear(directory)
        else:  # What is no name, as ``..``, is not there to be hidden.
            self._remove(join(directory, hidden), number)

    def apply(self, member: Member) -> None:
        """Do what extracting this entry would do. Entries that cannot be made are left out.

        :raises BadLayer: when the tree goes beyond a limit.
        """
        if member.type not in MADE:
            return
        key = self._place(member.name)
        if key is None:
            return
        if member.type != LINK:
            self._put(key, Node(member.seq, member.type, member.link))
        else:
            self._link(key, member)

    def finish(self) -> None:
        """Resolve the hard links to names that came later; those that lead nowhere stay links."""
        self._last = self._hiding = None
        if not self._pending:
            return
        self._pending = False
        for key, node in self._nodes.links():
            for _ in range(self._limits.link_hops):
                target = self._target(node.link)
                found = self._get(target) if target else None
                if found is None or found.type == DIRECTORY:
                    break
                node = found
                if node.type != LINK:
                    self._nodes.put(key, node)
                    break

    def _link(self, key: bytes, member: Member) -> None:
        target = self._target(member.link, member.seq)
        if target is None or target == key:
            return
        found = self._get(target, member.seq)
        if found is None or found.type == LINK:
            self._pending = True
            found = Node(member.seq, LINK, member.link)
        if found.type != DIRECTORY:
            self._put(key, found)

    def _place(self, name: bytes) -> bytes | None:
        """The key for an entry of this name, its directories made; None if it is not to be made."""
        above, _, last = name.rstrip(b"/").rpartition(b"/")
        if last in (b"", b".", b".."):
            above, _, last = b"/".join(clean(name)).rpartition(b"/")
        if not last or last.startswith(WHITEOUT):
            return None
        if self._last is None or self._last[0] != above:
            self._last = above, self._directory(clean(above))
        key = self._last[1]
        return None if key is None else join(key, last)

    def _directory(self, parts: list[bytes]) -> bytes | None:
        """The key of a directory, made if it is missing; None for one that cannot be."""
        if any(part.startswith(WHITEOUT) for part in parts):
            return None
        key = b""
        try:
            while parts:
                key, node, parts = walk(parts, self._get, self._limits, key)
                if node is not None and node.type != DIRECTORY:
                    self._put(key, IMPLIED)
                while parts and parts[0] != b"..":
                    key = join(key, parts.pop(0))
                    self._put(key, IMPLIED)
        except TooManyLinks:
            return None
        return key

    def _found(self, parts: list[bytes]) -> bytes | None:
        """The key of a directory; None if it is not there."""
        if any(part.startswith(WHITEOUT) for part in parts):
            return None
        try:
            key, node, missing = walk(parts, self._get, self._limits)
        except TooManyLinks:
            return None
        is_there = not missing and (node is None or node.type == DIRECTORY)
        return key if is_there else None

    def _remove(self, key: bytes, whiteout: int) -> None:
        node = self._get(key)
        if node is None:
            return
        if node.type in (DIRECTORY, SYMLINK):
            self._hiding = None
        self._nodes.set_aside(key, whiteout, is_opaque=False)
        if node.type == DIRECTORY:
            self._nodes.clear(key)
        self._nodes.remove(key)

    def _target(self, link: bytes, entry: int | None = None) -> bytes | None:
        """The key a hard link means: its last component is not followed. See `_get` for `entry`."""
        *above, last = split(link) or [b".."]
        if last == b"..":
            return None
        try:
            key, node, missing = walk(above, partial(self._get, entry=entry), self._limits)
        except TooManyLinks:
            return None
        if node is not None and node.type != DIRECTORY:
            return None
        return join(key, b"/".join([*missing, last]))

    def _get(self, key: bytes, entry: int | None = None) -> Node | None:
        """Return the node at `key`; with `entry`, also one that a whiteout hides only after it."""
        node = self._nodes.get(key)
        if node is None and entry is not None:
            node = self._nodes.hidden(key, entry)
        self._steps += steps(node)
        if self._steps > _STEPS_PER_ENTRY * self._limits.entries:
            raise BadLayer("its links are too tangled")
        return node

    def _put(self, key: bytes, node: Node) -> None:
        limits = self._limits
        self._keys += len(key)
        self._implied += node.entry is None
        if len(key) > limits.name_size or key.count(b"/") >= limits.depth:
            raise BadLayer("its directories are nested too deep")
        if self._implied > limits.entries or self._keys > limits.names_size:
            raise BadLayer("its directories take too much room")
        before = self._nodes.get(key)
        if before is not None and before.type != node.type:
            self._last = None
            if before.type == DIRECTORY:
                self._nodes.clear(key)
        self._nodes.put(key, node)
