"""Layers with published indexes, as their reference writers made them; see README.md."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import attrs

from blobserve.oci.digest import Digest
from blobserve.oci.manifest import MANIFEST_TYPES, Descriptor
from blobserve.oci.source import Document
from blobserve.testing import MadeImage
from tests.layers import zstd

_HERE = Path(__file__).parent


@attrs.frozen
class Layer:
    """A layer, and what a manifest says of it."""

    blob: bytes = attrs.field(repr=False)
    media_type: str
    annotations: Mapping[str, str]

    @classmethod
    def named(cls, name: str) -> Layer:
        """The layer in a file of this directory."""
        said = json.loads((_HERE / "layers.json").read_text())[name]
        return cls((_HERE / name).read_bytes(), said["mediaType"], said["annotations"])

    @property
    def descriptor(self) -> Descriptor:
        """What a manifest says of it."""
        digest = Digest.of(self.blob)
        return Descriptor(self.media_type, digest, len(self.blob), dict(self.annotations))

    @property
    def tar(self) -> bytes:
        """The layer, decompressed."""
        if self.blob.startswith(b"\x1f\x8b"):
            return gzip.decompress(self.blob)
        return zstd.decompress(self.blob)

    @property
    def files(self) -> dict[str, bytes]:
        """What its tar has, hard links included."""
        archive = tarfile.open(fileobj=io.BytesIO(self.tar))
        names = [each for each in archive if each.isreg() or each.islnk()]
        return {each.name: archive.extractfile(each).read() for each in names}  # type: ignore[union-attr]

    @property
    def image(self) -> MadeImage:
        """An image of this layer alone."""
        layer, config = self.descriptor, b"{}"
        content = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPES[0],
                "config": {
                    "mediaType": "application/vnd.oci.image.config.v1+json",
                    "digest": str(Digest.of(config)),
                    "size": len(config),
                },
                "layers": [
                    {
                        "mediaType": layer.media_type,
                        "digest": str(layer.digest),
                        "size": layer.size,
                        "annotations": dict(layer.annotations),
                    }
                ],
            }
        ).encode()
        document = Document(Digest.of(content), MANIFEST_TYPES[0], content)
        blobs = {layer.digest: self.blob, Digest.of(config): config}
        return MadeImage((document,), (layer,), blobs)


NAMES = ("current.tar.gz", "inner.tar.gz", "legacy.tar.gz", "chunked.tar.zst")
