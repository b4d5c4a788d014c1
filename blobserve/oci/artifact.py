"""Artifacts: manifests whose layers are plain files, each under its title, as ``oras push`` writes.

Pure: where their files are served, by their annotations. OCI image-spec manifest.md, "Guidelines
for Artifact Usage". A title is a path below the root of what is served, and a promise to whoever
pushed it: one that means nothing there, or two that mean the same, are refused and not mended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

TITLE = "org.opencontainers.image.title"

_UNPACK = "io.deis.oras.content.unpack"
_WHITEOUT = ".wh."
_DEEPEST = 100


def is_packed(annotations: Mapping[str, str]) -> bool:
    """Whether a layer is said to be a directory, packed, and not a file."""
    return annotations.get(_UNPACK) == "true"


def path_of(title: str) -> str:
    """The path that a title means, without what means nothing.

    :raises ValueError: when it means none.
    """
    parts = [part for part in title.split("/") if part not in ("", ".")]
    if not parts:
        raise ValueError("a file in it has an empty title")
    if ".." in parts:
        raise ValueError("the title of a file in it climbs by ..")
    if "\0" in title or any("\ud800" <= character <= "\udfff" for character in title):
        raise ValueError("the title of a file in it is not text")
    if any(part.startswith(_WHITEOUT) for part in parts):
        raise ValueError("the title of a file in it is that of a whiteout")
    if len(parts) > _DEEPEST:
        raise ValueError("the title of a file in it is nested too deep")
    return "/".join(parts)


def check_apart(paths: Iterable[str]) -> None:
    """Hold that files have different paths, and that none is in the place of a directory.

    :raises ValueError: otherwise.
    """
    seen: set[str] = set()
    for path in paths:
        if path in seen:
            raise ValueError("two files in it have the same title")
        seen.add(path)
    for path in seen:
        parts = path.split("/")
        if any("/".join(parts[:end]) in seen for end in range(1, len(parts))):
            raise ValueError("the title of one file in it is a directory in that of another")
