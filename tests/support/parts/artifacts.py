"""Artifacts in the form of `oras push`: plain files, each with a title."""

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
    """The default media type of `oras push`."""
    is_packed: bool = False
    """Whether the annotation says that it is a directory."""
    unpack: str | None = None
    """Another value for that annotation."""

    @property
    def described(self) -> dict[str, object]:
        """Return the descriptor."""
        annotations = {} if self.title is None else {TITLE: self.title}
        unpack = "true" if self.is_packed else self.unpack
        if unpack is not None:
            annotations["io.deis.oras.content.unpack"] = unpack
        digest, size = digest_of(self.content), len(self.content)
        described = {"mediaType": self.media_type, "digest": digest, "size": size}
        return {**described, "annotations": annotations}


@attrs.frozen
class Artifact:
    """An artifact of these layers, usable in place of an `Image`."""

    pieces: tuple[Piece, ...]
    config_type: str = EMPTY

    @classmethod
    def of(cls, files: Mapping[str, bytes]) -> Artifact:
        """Return an artifact of these files by title."""
        return cls(tuple(Piece(content, title) for title, content in files.items()))

    @property
    def media_type(self) -> str:
        """The media type of `manifest`."""
        return "application/vnd.oci.image.manifest.v1+json"

    @property
    def manifest(self) -> bytes:
        """Return the manifest."""
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
        """All blobs that the manifest refers to."""
        return (b"{}", *(piece.content for piece in self.pieces))
