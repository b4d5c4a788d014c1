"""Images made from files, as values and as OCI image layouts on disk, always with the same bytes.

These are ordinary images made by `tarfile`. `tests.support.layers` makes hostile and odd tar
streams, which `Layer.of_tar` accepts.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import attrs

from tests.support.layers import Compression, compress

_OCI = "application/vnd.oci.image."
_DOCKER = "application/vnd.docker."
_OCI_LAYER = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}
_DOCKER_LAYER = {"gzip": ".gzip", "zstd": ".zstd", "none": ""}


def digest_of(content: bytes) -> str:
    """Return the digest of `content` as text."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


@attrs.frozen
class Link:
    """A symbolic link to `target`, among the files of a layer."""

    target: str


Files = Mapping[str, "bytes | Link"]


def tar_of(files: Files) -> bytes:
    """Return an uncompressed tar of `files` in this order, with their directories."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        made: set[str] = set()
        for name, content in files.items():
            for parent in reversed(list(Path(name).parents)[:-1]):
                if str(parent) not in made:
                    made.add(str(parent))
                    archive.addfile(_entry(f"{parent}/", tarfile.DIRTYPE, 0o755))
            if isinstance(content, Link):
                link = _entry(name, tarfile.SYMTYPE, 0o777)
                link.linkname = content.target
                archive.addfile(link)
            else:
                entry = _entry(name, tarfile.REGTYPE, 0o644)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.mtime = kind, mode, 1_600_000_000
    return entry


def files_below(directory: Path) -> dict[str, bytes]:
    """Return every regular file below `directory` by its relative path, sorted."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


@attrs.frozen
class Layer:
    """One layer, compressed as in a registry."""

    blob: bytes = attrs.field(repr=False)
    diff_id: str
    compression: Compression = "gzip"

    @classmethod
    def of(cls, files: Files, compression: Compression = "gzip") -> Layer:
        """Return a layer of these files."""
        return cls.of_tar(tar_of(files), compression)

    @classmethod
    def of_tar(cls, tar: bytes, compression: Compression = "gzip") -> Layer:
        """Return a layer of this tar stream, with any content."""
        return cls(compress(tar, compression), digest_of(tar), compression)

    @property
    def digest(self) -> str:
        """The digest of the compressed bytes."""
        return digest_of(self.blob)


@attrs.frozen
class Image:
    """An image of these layers, the lowest first, with OCI or Docker media types."""

    layers: tuple[Layer, ...]
    docker: bool = False
    platform: str = "linux/amd64"
    """os/architecture or os/architecture/variant."""

    @classmethod
    def of(cls, files: Files, compression: Compression = "gzip", **options: object) -> Image:
        """Return an image of one layer with these files."""
        return cls((Layer.of(files, compression),), **options)  # type: ignore[arg-type]

    @property
    def media_type(self) -> str:
        """The media type of `manifest`."""
        return (
            _DOCKER + "distribution.manifest.v2+json" if self.docker else _OCI + "manifest.v1+json"
        )

    @property
    def config(self) -> bytes:
        """Return the configuration of the image."""
        layers = [layer.diff_id for layer in self.layers]
        return _json({**_platform(self.platform), "rootfs": {"type": "layers", "diff_ids": layers}})

    @property
    def manifest(self) -> bytes:
        """Return the manifest of the image."""
        config = _DOCKER + "container.image.v1+json" if self.docker else _OCI + "config.v1+json"
        return _json(
            {
                "schemaVersion": 2,
                "mediaType": self.media_type,
                "config": _descriptor(config, self.config),
                "layers": [_descriptor(self._layer_type(each), each.blob) for each in self.layers],
            }
        )

    @property
    def digest(self) -> str:
        """The digest of the manifest."""
        return digest_of(self.manifest)

    @property
    def blobs(self) -> tuple[bytes, ...]:
        """All blobs that the manifest refers to."""
        return (self.config, *(layer.blob for layer in self.layers))

    def _layer_type(self, layer: Layer) -> str:
        if self.docker:
            return _DOCKER + "image.rootfs.diff.tar" + _DOCKER_LAYER[layer.compression]
        return _OCI + "layer.v1.tar" + _OCI_LAYER[layer.compression]


@attrs.frozen
class Index:
    """Images for several platforms under one tag."""

    images: tuple[Image, ...]
    docker: bool = False

    @property
    def media_type(self) -> str:
        """The media type of `manifest`."""
        if self.docker:
            return _DOCKER + "distribution.manifest.list.v2+json"
        return _OCI + "index.v1+json"

    @property
    def manifest(self) -> bytes:
        """Return the index as JSON."""
        images = [
            {**_descriptor(each.media_type, each.manifest), "platform": _platform(each.platform)}
            for each in self.images
        ]
        return _json({"schemaVersion": 2, "mediaType": self.media_type, "manifests": images})

    @property
    def digest(self) -> str:
        """The digest of the index."""
        return digest_of(self.manifest)

    @property
    def blobs(self) -> tuple[bytes, ...]:
        """All blobs that the index and its images refer to."""
        return tuple(blob for image in self.images for blob in (image.manifest, *image.blobs))


def write_layout(directory: Path, tags: Mapping[str, Image | Index]) -> Path:
    """Write an OCI image layout of these tags into `directory`, and return it."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    for image in tags.values():
        for blob in (image.manifest, *image.blobs):
            (blobs / digest_of(blob).removeprefix("sha256:")).write_bytes(blob)
    (directory / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    manifests = [
        {
            **_descriptor(image.media_type, image.manifest),
            "annotations": {"org.opencontainers.image.ref.name": tag},
        }
        for tag, image in tags.items()
    ]
    (directory / "index.json").write_bytes(_json({"schemaVersion": 2, "manifests": manifests}))
    return directory


def _descriptor(media_type: str, content: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}


def _platform(text: str) -> dict[str, str]:
    return dict(zip(("os", "architecture", "variant"), text.split("/"), strict=False))


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
