"""Artifacts: manifests with plain files as layers, each with a title, as ``oras push`` writes.

Pure. Annotations and media types decide which layers are files, which are archives, and the paths
of the files. A title is a path below the root of the image. An invalid title is refused, and so are
two equal ones. See OCI image-spec manifest.md, "Guidelines for Artifact Usage".
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
    r"application/vnd\.(?:oci\.image\.layer\.(?:nondistributable\.)?v1\.tar"
    r"(?:\+(?!encrypted)[a-z0-9]+)?"
    r"|docker\.image\.rootfs\.(?:foreign\.)?diff\.tar(?:\.[a-z0-9]+)?)"
)
"""The media types of the layers of images."""

_ANY_TYPE = "application/vnd.oci.image.layer.v1.tar"
"""The default media type in ``oras push``, for files of any type."""

_COMPRESSED = ("gzip", "zstd")
_ARCHIVES = (".tar", ".tar+gzip", ".tar+zstd", ".tar.gzip")


class Kind(Enum):
    """The meaning of one layer of an artifact."""

    FILE = auto()
    """A file, served under its title."""
    ARCHIVE = auto()
    """A tar archive, compressed or not; its files are served under their own names."""
    NOTHING = auto()
    """Content that is not served."""


def kind_of(media_type: str, annotations: Mapping[str, str], has_titles: bool) -> Kind:
    """Return the meaning of a layer.

    If the annotation ``io.deis.oras.content.unpack`` is present, it decides; oras writes it for a
    directory. For a directory, oras-py writes only the media type of a compressed layer. Flux, Helm
    and others give an archive their own media type and no title.

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
    """Return the path of a title in canonical form.

    :raises ValueError: when the title is not a valid path.
    """
    parts = [part for part in title.split("/") if part not in ("", ".")]
    if not parts:
        raise ValueError("a file in it has an empty title")
    if ".." in parts:
        raise ValueError("the title of a file in it contains ..")
    if "\0" in title or any("\ud800" <= character <= "\udfff" for character in title):
        raise ValueError("the title of a file in it is not text")
    if any(part.startswith(_WHITEOUT) for part in parts):
        raise ValueError("the title of a file in it is the name of a whiteout")
    if len(parts) > _DEEPEST:
        raise ValueError("the title of a file in it has too many directories")
    return "/".join(parts)


def check_apart(paths: Iterable[str]) -> None:
    """Check that all paths differ, and that no file has the path of a directory.

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
            raise ValueError("the title of one file in it is a directory in the title of another")
