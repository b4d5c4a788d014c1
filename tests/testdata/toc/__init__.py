"""Layers with published indexes, as their reference writers made them; see README.md."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs

from blobserve.names.digest import Digest
from blobserve.oci.manifest import MANIFEST_TYPES, Descriptor
from blobserve.oci.source import Document
from blobserve.testing import MadeImage
from tests.support.layers import zstd

_HERE = Path(__file__).parent


@attrs.frozen
class Layer:
    """A layer, and its media type and annotations in a manifest."""

    blob: bytes = attrs.field(repr=False)
    media_type: str
    annotations: Mapping[str, str]

    @classmethod
    def named(cls, name: str) -> Layer:
        """Read a layer from a file of this directory."""
        said = json.loads((_HERE / "layers.json").read_text())[name]
        return cls((_HERE / name).read_bytes(), said["mediaType"], said["annotations"])

    @property
    def descriptor(self) -> Descriptor:
        """Return the descriptor of the layer in a manifest."""
        digest = Digest.of(self.blob)
        return Descriptor(self.media_type, digest, len(self.blob), dict(self.annotations))

    @property
    def tar(self) -> bytes:
        """Return the decompressed layer."""
        if self.blob.startswith(b"\x1f\x8b"):
            return gzip.decompress(self.blob)
        return zstd.decompress(self.blob)

    @property
    def files(self) -> dict[str, bytes]:
        """Return the files in the tar stream, hard links included."""
        with tarfile.open(fileobj=io.BytesIO(self.tar)) as archive:
            members = [each for each in archive if each.isreg() or each.islnk()]
            files = [(each.name, archive.extractfile(each)) for each in members]
            return {name: file.read() for name, file in files if file is not None}

    @property
    def image(self) -> MadeImage:
        """Return an image of this layer alone."""
        return image_of(self)


def image_of(*layers: Layer) -> MadeImage:
    """Return an image of these layers, the lowest first."""
    descriptors, config = tuple(layer.descriptor for layer in layers), b"{}"
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
                    "mediaType": each.media_type,
                    "digest": str(each.digest),
                    "size": each.size,
                    "annotations": dict(each.annotations),
                }
                for each in descriptors
            ],
        }
    ).encode()
    document = Document(Digest.of(content), MANIFEST_TYPES[0], content)
    blobs = {Digest.of(blob): blob for blob in (config, *(layer.blob for layer in layers))}
    return MadeImage((document,), descriptors, blobs)


NAMES = ("current.tar.gz", "inner.tar.gz", "legacy.tar.gz", "chunked.tar.zst")

Entry = dict[str, object]


def retold(layer: Layer, change: Callable[[list[Entry]], object]) -> Layer:
    """Change the table of a layer, with a matching digest in the annotations."""
    if not layer.media_type.endswith("zstd"):
        return _with_table(layer, _changed(_estargz_table(layer), change))
    start, length = position(layer)
    table = _changed(zstd.decompress(layer.blob[start : start + length]), change)
    return chunked(layer.blob[: start - 8], table)


def chunked(before: bytes, table: bytes) -> Layer:
    """Return a zstd:chunked layer with these bytes before its table."""
    packed = zstd.compress(table)
    frame = b"\x50\x2a\x4d\x18" + len(packed).to_bytes(4, "little") + packed
    name = "io.github.containers.zstd-chunked.manifest-"
    said = {
        name + "checksum": str(Digest.of(packed)),
        name + "position": f"{len(before) + 8}:{len(packed)}:{len(table)}:1",
    }
    return Layer(before + frame, "application/vnd.oci.image.layer.v1.tar+zstd", said)


def position(layer: Layer) -> tuple[int, int]:
    """Return the offset and length of the table of a layer in either format."""
    if layer.media_type.endswith("zstd"):
        said = layer.annotations["io.github.containers.zstd-chunked.manifest-position"].split(":")
        return int(said[0]), int(said[1])
    footer = layer.blob[-51:]
    size = 51 if footer.startswith(b"\x1f\x8b") else 47
    start = int(re.search(rb"([0-9a-f]{16})STARGZ", footer)[1], 16)  # type: ignore[index]
    return start, len(layer.blob) - size - start


def estargz(before: bytes, table: bytes, name: str = "stargz.index.json") -> Layer:
    """Return an eStargz layer with these bytes before its table."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        head = tarfile.TarInfo(name)
        head.size = len(table)
        archive.addfile(head, io.BytesIO(table))
    extra = b"SG\x16\x00%016xSTARGZ" % len(before)
    footer = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0" + extra + b"\x01\0\0\xff\xff" + bytes(8)
    said = {"containerd.io/snapshot/stargz/toc.digest": str(Digest.of(table))}
    blob = before + gzip.compress(stream.getvalue(), mtime=0) + footer
    return Layer(blob, "application/vnd.oci.image.layer.v1.tar+gzip", said)


def _with_table(layer: Layer, table: bytes) -> Layer:
    return estargz(layer.blob[: position(layer)[0]], table)


def _estargz_table(layer: Layer) -> bytes:
    return layer.files["stargz.index.json"]


def _changed(table: bytes, change: Callable[[list[Entry]], object]) -> bytes:
    document = json.loads(table)
    change(document["entries"])
    return json.dumps(document).encode()
