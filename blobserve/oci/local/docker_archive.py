"""Docker archives, which ``docker save`` writes, presented as the files of an OCI image layout.

``manifest.json`` gives the paths of the configuration and layers of each image in the archive. From
these we make an index, and a manifest for each image with the unchanged layers. The same archive
always gives the same digests. Layers are hashed once, and again only after the file changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import attrs
from twisted.internet.defer import DeferredLock

from blobserve.concurrency.threads import Threads
from blobserve.config import MIB, Limits
from blobserve.errors import RegistryBusy, RegistryFailed
from blobserve.names.digest import Digest
from blobserve.oci.local.image_names import REF_NAME, ImageName
from blobserve.oci.local.oci_archive import ArchiveContents, OciArchive
from blobserve.oci.local.unpacking import Unpack
from blobserve.oci.manifest import INDEX_TYPES, MANIFEST_TYPES
from blobserve.oci.strict_json import parse_list, parse_object
from blobserve.tar.members import ArchiveMember

_NAME = "docker archive"
_STEP = 4 * MIB
"""Bytes that are hashed in one job: the longest that a stop of the server waits for."""

_NO_NAME = "<none>:<none>"
"""The name in Docker for an image without a name."""

_LONGEST_PLATFORM = 100
"""The limit of characters in a member of a platform; real ones have a tenth of it."""

_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_COMPRESSIONS = {b"\x1f\x8b": "+gzip", b"\x28\xb5": "+zstd"}


@attrs.frozen
class _SavedImage:
    """One image in ``manifest.json``."""

    names: tuple[str, ...]
    config: ArchiveMember
    layers: tuple[ArchiveMember, ...]


@attrs.frozen
class _Unusable:
    """One image in ``manifest.json`` that cannot be used."""

    names: tuple[str, ...]
    problem: str
    """The reason; quotes nothing of the archive."""
    digest: Digest
    """A digest in place of the manifest, which cannot be made."""


@attrs.frozen
class _DerivedLayout:
    """The files of a layout: made documents, members of the archive, and unusable images."""

    contents: ArchiveContents
    files: Mapping[str, bytes | ArchiveMember | _Unusable]


class DockerArchive:
    """The images of a Docker archive. See `blobserve.oci.local.directory.LayoutFiles`."""

    name = _NAME

    def __init__(
        self, path: Path, threads: Threads, limits: Limits, unpack: Unpack | None = None
    ) -> None:
        """See `OciArchive`."""
        self._archive = OciArchive(path, threads, limits, _NAME, unpack)
        self._threads = threads
        self._limits = limits
        self._made: _DerivedLayout | None = None
        self._hashed: dict[tuple[ArchiveContents, ArchiveMember], Digest] = {}
        self._lock = DeferredLock()

    async def ready(self) -> None:
        """See `LayoutFiles.ready`. Hashes new layers."""
        async with self._lock:
            contents = await self._archive.contents()
            if self._made is None or self._made.contents is not contents:
                self._made = await self._make(contents)

    def has(self, path: str) -> bool:
        """See `LayoutFiles.has`."""
        return path in self._known().files

    def read(self, path: str, offset: int, length: int) -> tuple[bytes, int]:
        """See `LayoutFiles.read`."""
        made = self._known()
        held = made.files.get(path)
        if held is None:
            raise FileNotFoundError(path)
        if isinstance(held, _Unusable):
            raise _failed(held.problem)
        if isinstance(held, bytes):
            return held[offset : offset + length], len(held)
        return self._archive.read_part(made.contents, held, offset, length), held.size

    async def close(self) -> None:
        """See `LayoutFiles.close`."""
        await self._archive.close()

    def _known(self) -> _DerivedLayout:
        if self._made is None:
            raise RegistryBusy(_NAME, 1.0)
        return self._made

    async def _make(self, contents: ArchiveContents) -> _DerivedLayout:
        files: dict[str, bytes | ArchiveMember | _Unusable] = {}
        listed: list[dict[str, object]] = []

        def name(entry: dict[str, object], names: tuple[str, ...]) -> None:
            listed.extend({**entry, "annotations": {REF_NAME: each}} for each in names)
            listed.extend([] if names else [entry])

        def add(
            media_type: str, digest: Digest, content: bytes | ArchiveMember | _Unusable
        ) -> dict[str, object]:
            files[f"blobs/{digest.algorithm}/{digest.hex}"] = content
            size = len(content) if isinstance(content, bytes) else getattr(content, "size", 1)
            return {"mediaType": media_type, "digest": str(digest), "size": size}

        for image in await self._threads.run(self._saved, contents):
            if isinstance(image, _Unusable):
                name(add(MANIFEST_TYPES[0], image.digest, image), image.names)
                continue
            described = [
                add(
                    _CONFIG_TYPE if part is image.config else await self._type(contents, part),
                    await self._digest(contents, part),
                    part,
                )
                for part in (image.config, *image.layers)
            ]
            manifest = _json(mediaType=MANIFEST_TYPES[0], config=described[0], layers=described[1:])
            entry = add(MANIFEST_TYPES[0], Digest.of(manifest), manifest)
            entry["platform"] = await self._threads.run(self._platform, contents, image.config)
            name(entry, image.names)
        files["index.json"] = _json(mediaType=INDEX_TYPES[0], manifests=listed)
        return _DerivedLayout(contents, files)

    def _platform(self, contents: ArchiveContents, config: ArchiveMember) -> dict[str, object]:
        """Return the valid members of the platform in a configuration. Blocks."""
        try:
            size = min(config.size, self._limits.manifest_size)
            read = parse_object(self._archive.read_part(contents, config, 0, size))
        except ValueError:
            return {}
        members = {each: read.get(each) for each in ("os", "architecture", "variant")}
        return {
            each: text
            for each, text in members.items()
            if isinstance(text, str) and len(text) <= _LONGEST_PLATFORM
        }

    async def _type(self, contents: ArchiveContents, part: ArchiveMember) -> str:
        start = await self._threads.run(self._archive.read_part, contents, part, 0, 2)
        return _LAYER_TYPE + _COMPRESSIONS.get(start, "")

    async def _digest(self, contents: ArchiveContents, part: ArchiveMember) -> Digest:
        known = self._hashed.get((contents, part))
        if known is not None:
            return known
        hash_ = hashlib.sha256()
        for at in range(0, part.size, _STEP):
            piece = self._threads.run(self._archive.read_part, contents, part, at, _STEP)
            await self._threads.run(hash_.update, await piece)
        digest = Digest("sha256", hash_.hexdigest())
        # Drop the hashes of an archive that was replaced.
        self._hashed = {key: each for key, each in self._hashed.items() if key[0] is contents}
        self._hashed[contents, part] = digest
        return digest

    def _saved(self, contents: ArchiveContents) -> list[_SavedImage | _Unusable]:
        """Return the images of the archive. Blocks.

        :raises RegistryFailed: when ``manifest.json`` is missing or invalid, or no image is usable.
        """
        part = self._archive.find(contents, "manifest.json")
        if part is None:
            is_layout = self._archive.find(contents, "index.json") is not None
            other = "it is an oci-archive" if is_layout else "docker save did not write it"
            raise RegistryFailed(_NAME, f"it has no manifest.json: {other}")
        if part.size > self._limits.manifest_size:
            raise RegistryFailed(_NAME, "its manifest.json is too large")
        content = self._archive.read_part(contents, part, 0, part.size)
        try:
            images = [self._image(contents, each) for each in parse_list(content)]
        except ValueError as error:
            raise _failed(str(error)) from error
        unusable = [each for each in images if isinstance(each, _Unusable)]
        if unusable and len(unusable) == len(images):
            raise _failed(unusable[0].problem)
        return images

    def _image(self, contents: ArchiveContents, value: object) -> _SavedImage | _Unusable:
        names: tuple[str, ...] = ()
        try:
            if not isinstance(value, dict):
                raise ValueError("an image in it is not a JSON object")
            names = _names(value)
            return self._saved_image(contents, value, names)
        except ValueError as error:
            # Every ValueError of this module has a text of ours.
            problem = str(error)
        except RegistryFailed as error:
            problem = error.problem
        return _Unusable(names, problem, Digest.of(json.dumps(value).encode()))

    def _saved_image(
        self, contents: ArchiveContents, value: Mapping[str, object], names: tuple[str, ...]
    ) -> _SavedImage:
        layers = _texts(value, "Layers")
        if len(layers) > self._limits.layers:
            raise ValueError(f"an image has {len(layers)} layers, more than {self._limits.layers}")
        config = value.get("Config")
        if not isinstance(config, str):
            raise ValueError("an image has no Config")
        return _SavedImage(
            names,
            self._member(contents, config, "configuration"),
            tuple(self._member(contents, layer, "layer") for layer in layers),
        )

    def _member(self, contents: ArchiveContents, path: str, kind: str) -> ArchiveMember:
        part = self._archive.find(contents, path)
        if part is None or not part.size:
            raise ValueError(f"a {kind} that it names is not in the archive, or is empty")
        return part


def _failed(problem: str) -> RegistryFailed:
    return RegistryFailed(_NAME, f"its manifest.json cannot be used: {problem}")


def _names(image: Mapping[str, object]) -> tuple[str, ...]:
    """Return the names of an image in canonical form."""
    names = [name for name in _texts(image, "RepoTags") if ":" in name and name != _NO_NAME]
    return tuple(str(ImageName.parse(name)) for name in names)


def _texts(value: Mapping[str, object], member: str) -> list[str]:
    listed = value.get(member)
    if listed is None:  # An image that was saved by its ID has no names.
        return []
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise ValueError(f"the {member} of an image are not a list of text")
    return listed


def _json(**members: object) -> bytes:
    return json.dumps({"schemaVersion": 2, **members}).encode()
