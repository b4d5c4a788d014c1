"""The tree of the entries of a layer, applied in their order like an extraction into a chroot.

The last entry of a name wins. A directory that is replaced loses its contents; a directory that is
repeated keeps them. Links on the way are followed inside the root. Keys are canonical: no key
passes through a link, so one lookup finds a key, and all keys above it are directories. A
`NodeStore` holds the nodes, so that the next layer can be applied on top of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from blobserve.errors import BadLayer
from blobserve.store.index.resolve import TooManyLinks, join, steps, walk
from blobserve.tar.header import DIRECTORY, LINK, OLD_SPARSE, REGULAR, SYMLINK, clean, split

if TYPE_CHECKING:
    from blobserve.config import Limits
    from blobserve.tar.reader import Member

WHITEOUT = b".wh."
"""The prefix of whiteout names. OCI image-spec layer.md, "Whiteouts"."""

_OPAQUE = b".wh..wh..opq"

MADE = frozenset((REGULAR, LINK, SYMLINK, DIRECTORY, OLD_SPARSE, b"3", b"4", b"6"))
"""The types of entries that create something in the tree, if only a name that is not served."""

_STEPS_PER_ENTRY = 8


class Node(NamedTuple):
    """A node of the tree: the number of its entry, or None for an implied directory."""

    entry: int | None
    type: bytes
    link: bytes


IMPLIED = Node(None, DIRECTORY, b"")


class NodeStore(Protocol):
    """A store for the nodes of a tree, by canonical key. The root has no key."""

    def get(self, key: bytes) -> Node | None:
        """Return the node at `key`."""
        ...

    def put(self, key: bytes, node: Node) -> None:
        """Set the node at `key`."""
        ...

    def clear(self, key: bytes) -> None:
        """Remove everything below `key`, but not `key` itself."""
        ...

    def remove(self, key: bytes) -> None:
        """Remove the node at `key`, which has nothing below it."""
        ...

    def set_aside(self, key: bytes, whiteout: int, is_opaque: bool) -> None:
        """Save the nodes that a whiteout is about to hide, for `hidden`, until the layer ends.

        These are the nodes below `key`, and `key` itself unless the whiteout is opaque.
        """
        ...

    def hidden(self, key: bytes, entry: int) -> Node | None:
        """Return the node at `key` that an entry still sees, since its whiteout comes later."""
        ...

    def links(self) -> Iterator[tuple[bytes, Node]]:
        """Yield all nodes of type hard link; later ones may change meanwhile."""
        ...


class LayerApplier:
    """Applies the entries of layers, in stream order, to a tree.

    For each layer, first call `apply_whiteout` for its whiteouts if there is a lower layer, then
    `apply` for its entries, then `finish`. So whiteouts hide files of lower layers only, wherever
    they are in the stream. Whiteouts, and names below them, are not entries.

    As in an extraction, a hard link takes its target as it is when the entry is applied. A whiteout
    later in the stream does not hide it. Entries and whiteouts share one numbering.
    """

    def __init__(self, nodes: NodeStore, limits: Limits) -> None:
        self._nodes = nodes
        self._limits = limits
        self._last: tuple[bytes, bytes | None] | None = None  # A directory as written, and its key.
        self._last_hidden: tuple[bytes, bytes | None] | None = None  # The same for a whiteout.
        self._pending = False  # Whether there are hard links to later names.
        self._steps = self._keys = self._implied = 0

    def apply_whiteout(self, name: bytes, number: int) -> None:
        """Remove the nodes that a whiteout hides; ignore names that are not whiteouts.

        Its path is resolved in the tree of the lower layers, links included, and not in its own
        layer.

        :raises BadLayer: when resolving the path exceeds a limit.
        """
        above, _, last = name.rstrip(b"/").rpartition(b"/")
        if not last.startswith(WHITEOUT):
            return
        if self._last_hidden is None or self._last_hidden[0] != above:
            self._last_hidden = above, self._found(clean(above))
        directory, hidden = self._last_hidden[1], last.removeprefix(WHITEOUT)
        if directory is None:
            return
        if last == _OPAQUE:
            self._last_hidden = None
            self._nodes.set_aside(directory, number, is_opaque=True)
            self._nodes.clear(directory)
        else:  # A part such as ``..`` is not found, so nothing is hidden.
            self._remove(join(directory, hidden), number)

    def apply(self, member: Member) -> None:
        """Apply an entry as an extraction would, or ignore it if it cannot be created.

        :raises BadLayer: when the tree exceeds a limit.
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
        """Resolve hard links to later names; links without a target stay links."""
        self._last = self._last_hidden = None
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
        """Create the directories of a name; return its key, or None if the name is not served."""
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
        """Create a directory if it is missing; return its key, or None if that is impossible."""
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
        """Return the key of a directory, or None if it does not exist."""
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
            self._last_hidden = None
        self._nodes.set_aside(key, whiteout, is_opaque=False)
        if node.type == DIRECTORY:
            self._nodes.clear(key)
        self._nodes.remove(key)

    def _target(self, link: bytes, entry: int | None = None) -> bytes | None:
        """Return the key of a hard link's target, without following its last part.

        See `_get` for `entry`.
        """
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
        """Return the node at `key`; with `entry`, also one that only a later whiteout hides."""
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
            raise BadLayer("its directories take too much space")
        before = self._nodes.get(key)
        if before is not None and before.type != node.type:
            self._last = None
            if before.type == DIRECTORY:
                self._nodes.clear(key)
        self._nodes.put(key, node)
