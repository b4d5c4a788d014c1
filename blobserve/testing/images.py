"""Images made from files; the same files always give the same bytes."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Mapping

import attrs

from blobserve.names.digest import Digest
from blobserve.oci.manifest import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from blobserve.oci.source import Document

_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"


@attrs.frozen
class MadeImage:
    """An image, or an index of images, with its documents and blobs."""

    documents: tuple[Document, ...]
    """The manifest or index, then the manifests of the images in the index."""
    layers: tuple[Descriptor, ...]
    blobs: Mapping[Digest, bytes] = attrs.field(repr=False)

    @property
    def digest(self) -> Digest:
        """The digest of the image's manifest, or of the index."""
        return self.documents[0].digest


def make_image(*layers: Mapping[str, bytes]) -> MadeImage:
    """Return an image of these layers, lowest first; each maps paths to contents.

    The same files always give the same bytes.
    """
    blobs = [gzip.compress(_tar(files), mtime=0) for files in layers]
    config = b"{}"
    made = tuple(Descriptor(_LAYER_TYPE, Digest.of(blob), len(blob)) for blob in blobs)
    document = _document(
        MANIFEST_TYPES[0],
        config=_fields(Descriptor(_CONFIG_TYPE, Digest.of(config), len(config))),
        layers=[_fields(layer) for layer in made],
    )
    return MadeImage((document,), made, {Digest.of(blob): blob for blob in (config, *blobs)})


def make_index(images: Mapping[str, MadeImage]) -> MadeImage:
    """Return an index of images or indexes, by platform (``linux/arm64``; empty: none)."""
    listed = []
    for platform, image in images.items():
        top = image.documents[0]
        fields = _fields(Descriptor(top.media_type, top.digest, len(top.content)))
        if platform:
            names = ("os", "architecture", "variant")
            fields["platform"] = dict(zip(names, platform.split("/"), strict=False))
        listed.append(fields)
    made = images.values()
    return MadeImage(
        (
            _document(INDEX_TYPES[0], manifests=listed),
            *(document for image in made for document in image.documents),
        ),
        tuple(layer for image in made for layer in image.layers),
        {digest: blob for image in made for digest, blob in image.blobs.items()},
    )


def _document(media_type: str, **members: object) -> Document:
    content = json.dumps({"schemaVersion": 2, "mediaType": media_type, **members}).encode()
    return Document(Digest.of(content), media_type, content)


def _fields(descriptor: Descriptor) -> dict[str, object]:
    return {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }


def _tar(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()
