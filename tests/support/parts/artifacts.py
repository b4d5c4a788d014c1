"""Artifacts, as `oras push` writes them: files as they are, each with its title."""

from __future__ import annotations

import json
from collections.abc import Mapping

import attrs

from tests.support.parts.images import digest_of

TITLE = "org.opencontainers.image.title"
EMPTY = "application/vnd.oci.empty.v1+json"


@attrs.frozen
class Piece:
    """One layer of an artifact."""

    content: bytes = attrs.field(repr=False)
    title: str | None = None
    media_type: str = "application/vnd.oci.image.layer.v1.tar"
    """What `oras push` says of any file, unless it is told otherwise."""
    is_packed: bool = False
    """Whether it is said to be a directory."""
    unpack: str | None = None
    """What is said instead of that it is a directory."""

    @property
    def described(self) -> dict[str, object]:
        """The descriptor."""
        annotations = {} if self.title is None else {TITLE: self.title}
        unpack = "true" if self.is_packed else self.unpack
        if unpack is not None:
            annotations["io.deis.oras.content.unpack"] = unpack
        digest, size = digest_of(self.content), len(self.content)
        described = {"mediaType": self.media_type, "digest": digest, "size": size}
        return {**described, "annotations": annotations}


@attrs.frozen
class Artifact:
    """An artifact of these layers; anything that takes an `Image` takes one."""

    pieces: tuple[Piece, ...]
    config_type: str = EMPTY

    @classmethod
    def of(cls, files: Mapping[str, bytes]) -> Artifact:
        """An artifact of these files by title."""
        return cls(tuple(Piece(content, title) for title, content in files.items()))

    @property
    def media_type(self) -> str:
        """The media type of `manifest`."""
        return "application/vnd.oci.image.manifest.v1+json"

    @property
    def manifest(self) -> bytes:
        """The manifest."""
        document = {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "artifactType": "application/vnd.example.site",
            "config": {"mediaType": self.config_type, "digest": digest_of(b"{}"), "size": 2},
            "layers": [piece.described for piece in self.pieces],
        }
        return json.dumps(document).encode()

    @property
    def digest(self) -> str:
        """The digest of the manifest."""
        return digest_of(self.manifest)

    @property
    def blobs(self) -> tuple[bytes, ...]:
        """Everything that the manifest refers to."""
        return (b"{}", *(piece.content for piece in self.pieces))
