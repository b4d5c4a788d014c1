"""The names of local images: finds the image that a reference names.

Pure. A layout or an archive may hold images of several repositories under one tag. A repository may
serve the images that are named after it. If there are none, it may serve those that are named after
a repository with the same last path component. Each repository with the file as its source may also
serve the images without a repository in their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import attrs

from blobserve.errors import MalformedReference
from blobserve.names.reference import DOCKER_HUB, Repository, canonical_registry
from blobserve.oci.manifest import Descriptor, ImageIndex

REF_NAME = "org.opencontainers.image.ref.name"
"""The annotation with a tag or a whole name: OCI image-spec annotations.md."""

CONTAINERD_NAME = "io.containerd.image.name"
"""The annotation in which Docker, containerd and BuildKit write the whole name."""

_SHOWN = 5
_LONGEST_SHOWN = 300


@attrs.frozen(cache_hash=True)
class ImageName:
    """One name of an image; `repository` is empty for a tag alone."""

    repository: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> ImageName:
        """Read a tag (``v1``) or a name (``site:v1``, ``registry.example/team/site:v1``).

        A name without a registry is one of Docker Hub. A name without a tag has the tag
        ``latest``, or an empty tag if it has a digest. A malformed name is read too, and matches
        nothing.
        """
        name, has_digest, _ = text.partition("@")
        if "/" not in name and ":" not in name and not has_digest:
            return cls("", name)
        head, colon, tag = name.rpartition(":")
        if not colon or "/" in tag:
            head, tag = name, "" if has_digest else "latest"
        return cls(_canonical(head), tag)

    def __str__(self) -> str:
        return f"{self.repository}:{self.tag}" if self.repository else self.tag


@attrs.frozen
class NamedEntry:
    """One image of an index, with its names."""

    image: Descriptor
    reference: ImageName | None
    """The name in `REF_NAME`."""
    containerd: ImageName | None
    """The name in `CONTAINERD_NAME`."""

    @classmethod
    def of(cls, image: Descriptor) -> NamedEntry:
        """Read the names of an image from its annotations."""
        texts = map(image.annotations.get, (REF_NAME, CONTAINERD_NAME))
        return cls(image, *[ImageName.parse(text) if text else None for text in texts])

    @property
    def names(self) -> tuple[ImageName, ...]:
        """The names. A tag alone is left out if the other name is a whole one."""
        known = [name for name in (self.reference, self.containerd) if name is not None]
        return tuple([name for name in known if name.repository] or known)

    @property
    def repositories(self) -> set[str]:
        """The repositories that the names give."""
        return {name.repository for name in self.names} - {""}


class ImageNames:
    """The images of an index that one repository may serve, by name."""

    def __init__(self, index: ImageIndex, repository: Repository) -> None:
        self._repository = str(repository)
        self._all = [NamedEntry.of(each) for each in index.manifests]
        held = {each for entry in self._all for each in entry.repositories}
        last = _last(self._repository)
        alike = {each for each in held if _last(each) == last}
        self._counting = ({self._repository} & held or alike) | {""}
        """This repository if it is named, else those with its last path component; also `""`."""
        self._own = [
            each
            for each in self._all
            if not each.repositories or each.repositories & self._counting
        ]
        self._tagged: dict[str, list[NamedEntry]] = {}
        for entry in self._own:
            for tag in {name.tag for name in entry.names if name.repository in self._counting}:
                self._tagged.setdefault(tag, []).append(entry)

    @property
    def own(self) -> tuple[Descriptor, ...]:
        """All images that the repository may serve."""
        return tuple(each.image for each in self._own)

    @property
    def are_all_own(self) -> bool:
        """Return whether the repository may serve all images of the index."""
        return len(self._own) == len(self._all)

    def find(self, tag: str) -> tuple[Descriptor, ...]:
        """Return the image that a tag names, or one image per platform; empty if there is none.

        The first match counts:

        1. The last image with the whole name in `REF_NAME`, else in `CONTAINERD_NAME`.
        2. The last image with the tag in another repository with the same last path component. If
           there are several such repositories, all must name the same image.
        3. The images with the tag alone: a single image, or one per platform.
        4. The only image of an index without names. Every tag names it.
        """
        wanted, tagged = ImageName(self._repository, tag), self._tagged.get(tag, [])
        exact = [each for each in tagged if each.reference == wanted]
        exact = exact or [each for each in tagged if each.containerd == wanted]
        if exact:
            return _newest(exact)
        alike = [each for each in tagged if each.repositories]
        if alike:
            repositories = {each for entry in alike for each in entry.repositories}
            is_clear = len(repositories & self._counting) == 1
            return _newest(alike) if is_clear else _only_one(alike)
        if tagged:
            return _one_each(tagged)
        return () if any(each.names for each in self._all) else _only_one(self._all)

    def shared(self) -> Iterator[tuple[Descriptor, ...]]:
        """Yield the images of each tag that names one image per platform."""
        for tag in self._tagged:
            found = self.find(tag)
            if len(found) > 1:
                yield found

    def described(self) -> tuple[tuple[str, ...], int]:
        """Return a few names of the index for a message, and the number of the others."""
        images: dict[ImageName, set[str]] = {}
        for entry in self._all:
            for name in entry.names:
                images.setdefault(name, set()).add(str(entry.image.digest))
        if not images:
            count = len(self._all)
            counted = {0: "no image", 1: "one image without a name"}
            return (counted.get(count, f"{count} images without a name"),), 0
        shown = [name for name in images if _is_presentable(str(name))][:_SHOWN]
        texts = [
            f"{name} ({len(images[name])} images)" if len(images[name]) > 1 else str(name)
            for name in shown
        ]
        return tuple(texts), len(images) - len(shown)


def _canonical(repository: str) -> str:
    """Return a repository in canonical form: Docker omits its own registry."""
    registry, slash, _ = repository.partition("/")
    if not slash or canonical_registry(registry) is None:
        repository = f"{DOCKER_HUB}/{repository}"
    try:
        return str(Repository.parse(repository))
    except MalformedReference:
        return repository


def _last(repository: str) -> str:
    return repository.rpartition("/")[2]


def _is_presentable(text: str) -> bool:
    return len(text) <= _LONGEST_SHOWN and text.isascii() and text.isprintable()


_FITNESS: tuple[Callable[[Descriptor], bool], ...] = (
    lambda each: each.is_image and each.is_plain,
    lambda each: each.is_image,
    lambda each: True,
)


def _distinct(entries: Sequence[NamedEntry]) -> list[Descriptor]:
    """Return the images of these entries, each once; only the fittest kind of `_FITNESS`."""
    for is_fit in _FITNESS:
        # Backwards, so that an image takes the place of its last entry.
        fitting = {each.image.digest: each.image for each in entries[::-1] if is_fit(each.image)}
        if fitting:
            return list(fitting.values())[::-1]
    return []


def _only_one(entries: Sequence[NamedEntry]) -> tuple[Descriptor, ...]:
    """Return the image of these entries, if all name the same one."""
    images = _distinct(entries)
    return tuple(images) if len(images) == 1 else ()


def _one_each(entries: Sequence[NamedEntry]) -> tuple[Descriptor, ...]:
    """Return the image of these entries, or one image per platform; empty if ambiguous."""
    images = _distinct(entries)
    platforms = {each.platform for each in images}
    is_clear = len(images) == 1 or (len(platforms) == len(images) and None not in platforms)
    return tuple(images) if is_clear else ()


def _newest(entries: Sequence[NamedEntry]) -> tuple[Descriptor, ...]:
    """Return the last image of these entries, or the last one of each platform."""
    images = _distinct(entries)
    platforms = {each.platform: each for each in images}
    return tuple(images[-1:]) if None in platforms else tuple(platforms.values())
