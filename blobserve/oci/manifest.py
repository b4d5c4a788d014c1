"""Manifests and indexes: OCI image-spec and Docker schema 2.

Pure. It refuses every document that two readers might read differently. Callers have checked the
digest and size of a document. Layer `urls`, inline `data` and image configurations are ignored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import attrs

from blobserve.config import Limits
from blobserve.errors import BadImage, MalformedReference, PlatformNotFound
from blobserve.names.digest import Digest
from blobserve.names.platform import Platform
from blobserve.oci.artifact import LAYER_TYPE, TITLE, Kind, check_apart, kind_of, path_of
from blobserve.oci.image_kinds import named, types_of
from blobserve.oci.strict_json import parse_object

MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)

_CONFIG_TYPES = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
_SCHEMA_1_TYPES = {
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
}
_NO_FILES = "it is an artifact without titles, or it has layers that are not tar archives"
_NO_OBJECT = "a descriptor is not a JSON object"
_NO_SIZE = "the size in a descriptor is not a positive number of bytes"
_SHAPES = {"manifests": True, "layers": False}
# Plain web servers and some registries send these for any document; they mean nothing.
_GENERIC_TYPES = (
    "",
    "application/json",
    "text/plain",
    "application/octet-stream",
    "binary/octet-stream",  # Amazon S3, for an object without a type
)

_JsonObject = Mapping[str, object]


_USUAL_PLATFORM = Platform("linux", "amd64")


@attrs.frozen
class Descriptor:
    """The digest, size in bytes, media type and other claims about some content.

    See OCI image-spec descriptor.md.
    """

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    platform: Platform | None = None
    file: str | None = None
    """The path of a plain file of an artifact; None for a layer."""
    artifact_type: str = ""
    """The artifact type in an index; may be empty."""
    features: tuple[str, ...] = ()
    """The required features of the operating system in an index: ``os.features``."""

    @property
    def kept_as(self) -> Digest:
        """The digest that names the blob on disk.

        A file of an artifact has its own blob for each path, apart from a layer of the same bytes.
        """
        if self.file is None:
            return self.digest
        named = f"file {self.digest} {self.file}"
        # Hashed twice: no layer with a chosen content can have this digest.
        return Digest.of(hashlib.sha256(named.encode()).digest())

    @property
    def is_index(self) -> bool:
        """Return whether this names an index."""
        return self.media_type in INDEX_TYPES

    @property
    def is_image(self) -> bool:
        """Return whether this names an image or an index of images, and not an attestation."""
        return self.media_type in MANIFEST_TYPES + INDEX_TYPES and not self.is_attestation

    @property
    def is_attestation(self) -> bool:
        """Return whether this names an attestation, as BuildKit marks it in an index."""
        return (
            self.platform == _ATTESTATION_PLATFORM
            or "vnd.docker.reference.type" in self.annotations
        )

    @property
    def is_plain(self) -> bool:
        """Return whether this image is not an artifact and requires no special features.

        In an index, EROFS and Nydus images stand beside the plain image of their platform with a
        special feature. SOCI indexes and SBOMs have an artifact type.
        """
        return not self.features and self.artifact_type in ("", *_CONFIG_TYPES)


_ATTESTATION_PLATFORM = Platform("unknown", "unknown")


@attrs.frozen
class Manifest:
    """The layers of an image, lowest first, or the files and packed directories of an artifact.

    There may be no layers, or one layer twice. An image ends before its first unusable layer. Its
    lowest layer is always usable.
    """

    layers: tuple[Descriptor, ...]
    is_artifact: bool = False
    left_out: int = 0
    """The number of layers from the first unusable one on."""
    problem: str = ""
    """The fault of the first unusable layer."""


@attrs.frozen
class ImageIndex:
    """Several images under one name, one per platform, and other entries."""

    manifests: tuple[Descriptor, ...]

    def choose(self, platform: Platform | None) -> tuple[Descriptor, str | None]:
        """Return the image for `platform`, and a warning if the choice was arbitrary.

        None means linux/amd64 or, if there is none, the first image. If no image matches, an index
        without a platform is chosen; the caller limits the depth. Else an image without a platform
        is chosen. An image that is not plain is chosen only if no plain one fits.

        :raises PlatformNotFound: when no image fits.
        """
        images = [each for each in self.manifests if each.is_image]
        for is_plain in (True, False):
            found = _chosen([each for each in images if each.is_plain == is_plain], platform)
            if found is not None:
                return found
        raise PlatformNotFound(str(platform or "any platform"), "" if images else self._kind)

    @property
    def _kind(self) -> str:
        """Return a clause that describes an index without images; empty if none is known."""
        if self.manifests and all(each.is_attestation for each in self.manifests):
            return "it has nothing but attestations"
        types = [name for each in self.manifests for name in (each.artifact_type, each.media_type)]
        return named(types) or ""


def _chosen(
    images: Sequence[Descriptor], platform: Platform | None
) -> tuple[Descriptor, str | None] | None:
    """See `ImageIndex.choose`. Return None when none of these images fits."""
    fitting = [each for each in images if each.platform == (platform or _USUAL_PLATFORM)]
    if fitting:
        return fitting[0], None
    nested = [each for each in images if each.is_index and each.platform is None]
    if platform is None and images:
        return images[0], None if images[0] in nested else _arbitrary(images[0])
    without = nested or [each for each in images if each.platform is None]
    if not without:
        return None
    return without[0], None if nested or len(without) == 1 else _one_of_several(len(without))


def _arbitrary(image: Descriptor) -> str:
    chosen = image.platform or "the first image"
    return f"has no image for {_USUAL_PLATFORM}: chose {chosen}; set platform to choose another"


def _one_of_several(count: int) -> str:
    return f"has {count} images without a platform: chose the first of them"


def parse(content: bytes, media_type: str, limits: Limits) -> Manifest | ImageIndex:
    """Read a manifest or an index.

    `media_type` is the Content-Type of the source, with parameters; it may be empty.

    :raises BadImage: for any other document, for one that contradicts itself or its media type or
        exceeds a limit, and for an artifact without files to serve.
    """
    try:
        document = parse_object(content)
        if _is_index(document, media_type.partition(";")[0].strip().lower()):
            return ImageIndex(_entries(_listed(document, "manifests")))
        layers = _listed(document, "layers", limits.layers)
        if _is_image(document.get("config"), layers):
            return _image(layers)
        files = _files(layers, limits)
        if not files:
            kind = named(types_of(document, layers))
            raise ValueError(kind or _NO_FILES)
        return Manifest(files, is_artifact=True)
    except ValueError as error:
        # Every ValueError of this module has a text of ours.
        raise BadImage(f"manifest {Digest.of(content)}", str(error)) from error


def _is_image(config: object, layers: Sequence[object]) -> bool:
    """Return whether a manifest describes an image, by its configuration and lowest layer.

    The type of the configuration counts unless it is empty or generic.
    """
    media_type = config.get("mediaType", "") if isinstance(config, dict) else _CONFIG_TYPES[0]
    if not layers or media_type not in (*_CONFIG_TYPES, *_GENERIC_TYPES):
        return not layers
    is_layer = [LAYER_TYPE.fullmatch(_type_of(layer)) is not None for layer in layers]
    has_titles = any(TITLE in _annotations_of(layer) for layer in layers)
    if is_layer[0]:
        return media_type in _CONFIG_TYPES or not has_titles
    # Without titles, an unknown lowest layer is a fault in an image, not an artifact.
    return any(is_layer) and not has_titles


def _image(layers: Sequence[object]) -> Manifest:
    """Return the usable layers of an image.

    :raises ValueError: when the lowest cannot be used.
    """
    usable: list[Descriptor] = []
    for layer in layers:
        try:
            usable.append(_layer(layer))
        except ValueError as error:
            if not usable:
                raise
            return Manifest(tuple(usable), left_out=len(layers) - len(usable), problem=str(error))
    return Manifest(tuple(usable))


def _layer(value: object) -> Descriptor:
    layer = _descriptor(value, may_be_empty=True)
    if not LAYER_TYPE.fullmatch(layer.media_type):
        raise ValueError(named((layer.media_type,)) or "it has a layer that is not a tar archive")
    return layer


def _files(layers: Sequence[object], limits: Limits) -> tuple[Descriptor, ...]:
    """Return the files of an artifact, and its archives as layers.

    :raises ValueError: when one of them cannot be used.
    """
    files: dict[Descriptor, None] = {}
    has_titles = any(TITLE in _annotations_of(layer) for layer in layers)
    for layer in layers:
        if not isinstance(layer, dict):
            raise ValueError(_NO_OBJECT)
        kind = kind_of(_type_of(layer), _annotations_of(layer), has_titles)
        if kind is Kind.FILE:
            described = _descriptor(layer, may_be_empty=True)
            path = path_of(described.annotations[TITLE])
            if len(path.encode()) > limits.name_size:
                raise ValueError(f"a title in it is longer than {limits.name_size} bytes")
            files[attrs.evolve(described, file=path)] = None
        elif kind is Kind.ARCHIVE:
            files[_descriptor(layer, may_be_empty=True)] = None
    check_apart(layer.file for layer in files if layer.file is not None)
    return tuple(files)


def _is_index(document: _JsonObject, media_type: str) -> bool:
    """Return whether it is an index, on which its media types and members must agree."""
    own_type = document.get("mediaType", "")
    if not isinstance(own_type, str):
        raise ValueError("its media type is not text")
    is_schema_1 = document.get("schemaVersion") == 1 or "fsLayers" in document
    if is_schema_1 or not _SCHEMA_1_TYPES.isdisjoint((media_type, own_type)):
        raise ValueError("it is a Docker schema 1 manifest; push it again with a current tool")
    if document.get("schemaVersion") != 2:
        raise ValueError("it is not an OCI or Docker schema 2 manifest")
    verdicts = {_verdict(each) for each in (media_type, own_type) if each not in _GENERIC_TYPES}
    verdicts |= {is_index for member, is_index in _SHAPES.items() if member in document}
    if len(verdicts) > 1:
        raise ValueError("it is ambiguous: one part says manifest, another says index")
    if not verdicts:
        raise ValueError("it is neither a manifest nor an index")
    return verdicts.pop()


def _verdict(media_type: str) -> bool:
    if media_type not in MANIFEST_TYPES + INDEX_TYPES:
        raise ValueError(named((media_type,)) or "its media type is not an image type")
    return media_type in INDEX_TYPES


def _listed(document: _JsonObject, member: str, limit: int | None = None) -> list[object]:
    """Return the descriptors in a document, unparsed."""
    listed = document.get(member)
    if listed is None:  # Some tools write null for an empty list.
        return []
    if not isinstance(listed, list):
        raise ValueError(f"its {member} are not a list")
    if limit is not None and len(listed) > limit:
        raise ValueError(f"it has {len(listed)} {member}, more than {limit}")
    return listed


def _entries(listed: Sequence[object]) -> tuple[Descriptor, ...]:
    """Return the usable entries of an index.

    :raises ValueError: when there are entries, and none can be used.
    """
    usable: list[Descriptor] = []
    problem: ValueError | None = None
    for each in listed:
        try:
            usable.append(_descriptor(each))
        except ValueError as error:
            problem = problem or error
    if problem is not None and not usable:
        raise problem
    return tuple(usable)


def _type_of(value: object) -> str:
    """Return the media type of a descriptor; empty if it has none."""
    media_type = value.get("mediaType") if isinstance(value, dict) else None
    return media_type if isinstance(media_type, str) else ""


def _annotations_of(value: object) -> Mapping[str, str]:
    """Return the annotations of a descriptor; empty if it has none."""
    return _annotations(value.get("annotations")) if isinstance(value, dict) else {}


def _descriptor(value: object, may_be_empty: bool = False) -> Descriptor:
    if not isinstance(value, dict):
        raise ValueError(_NO_OBJECT)
    media_type, digest, size = (value.get(name) for name in ("mediaType", "digest", "size"))
    if not isinstance(media_type, str) or not isinstance(digest, str):
        raise ValueError("a descriptor has no media type or no digest")
    if type(size) is not int or size < 0 or not (size or may_be_empty):
        raise ValueError(_NO_SIZE)
    try:
        parsed = Digest.parse(digest)
    except MalformedReference as error:
        raise ValueError("a descriptor has a malformed digest") from error
    platform, artifact_type = value.get("platform"), value.get("artifactType")
    return Descriptor(
        media_type,
        parsed,
        size,
        _annotations(value.get("annotations")),
        _platform(platform),
        artifact_type=artifact_type if isinstance(artifact_type, str) else "",
        features=_features(platform),
    )


def _features(platform: object) -> tuple[str, ...]:
    """Return the required features of an operating system that are text."""
    listed = platform.get("os.features") if isinstance(platform, dict) else None
    return (
        tuple(each for each in listed if isinstance(each, str)) if isinstance(listed, list) else ()
    )


def _annotations(value: object) -> dict[str, str]:
    """Return the annotations that are text. Others are ignored, since annotations are hints."""
    members = value if isinstance(value, dict) else {}
    return {name: text for name, text in members.items() if isinstance(text, str)}


def _platform(value: object) -> Platform | None:
    """Return the platform, or None if it is invalid."""
    if not isinstance(value, dict):
        return None
    variant = value.get("variant")
    text = f"{value.get('os')}/{value.get('architecture')}" + (f"/{variant}" if variant else "")
    try:
        return Platform.parse(text)
    except ValueError:
        return None
