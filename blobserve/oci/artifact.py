"""Artifacts: manifests whose layers are plain files, each under its title, as ``oras push`` writes.

Pure: which layers are files and which are archives of files, and where the files are served, by
annotations and media types. OCI image-spec manifest.md, "Guidelines for Artifact Usage". A title is
a path below the root of what is served, and a promise to whoever pushed it: one that means nothing
there, or two that mean the same, are refused and not mended.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import Enum, auto

TITLE = "org.opencontainers.image.title"

_UNPACK = "io.deis.oras.content.unpack"
_WHITEOUT = ".wh."
_DEEPEST = 100


LAYER_TYPE = re.compile(
    r"application/vnd\.(?:oci\.image\.layer\.(?:nondistributable\.)?v1\.tar(?:\+[a-z0-9]+)?"
    r"|docker\.image\.rootfs\.(?:foreign\.)?diff\.tar(?:\.[a-z0-9]+)?)"
)
"""The media types of the layers of images."""

_ANY_TYPE = "application/vnd.oci.image.layer.v1.tar"
"""The media type that ``oras push`` gives to every file, whatever is in it."""

_COMPRESSED = ("gzip", "zstd")
_ARCHIVES = (".tar", ".tar+gzip", ".tar+zstd", ".tar.gzip")


class Kind(Enum):
    """The meaning of one layer of an artifact."""

    FILE = auto()
    """A file, as it is, under its title."""
    ARCHIVE = auto()
    """A tar archive of files under their own names, compressed or not."""
    NOTHING = auto()
    """Something that no path leads to."""


def kind_of(media_type: str, annotations: Mapping[str, str], has_titles: bool) -> Kind:
    """Return the meaning of a layer.

    The annotation ``io.deis.oras.content.unpack``, which oras writes for a directory, decides
    where it is there. oras-py writes only the media type of a compressed layer for a directory.
    Flux, Helm and others give an archive a type of their own and no title.

    :param has_titles: whether any layer of the artifact has a title.
    """
    is_titled = TITLE in annotations
    unpack = annotations.get(_UNPACK)
    if unpack == "true":
        return Kind.ARCHIVE
    is_layer = LAYER_TYPE.fullmatch(media_type) is not None
    if is_titled:
        is_directory = unpack is None and is_layer and media_type.endswith(_COMPRESSED)
        return Kind.ARCHIVE if is_directory else Kind.FILE
    if media_type == _ANY_TYPE and has_titles:
        return Kind.NOTHING
    return Kind.ARCHIVE if is_layer or media_type.endswith(_ARCHIVES) else Kind.NOTHING


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
