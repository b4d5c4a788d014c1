"""From a reference to the layers that are served: manifests and indexes, followed by digest.

Documents come from the blob space if it has them, else from a source. No layer is fetched.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from blobserve.config import Limits, RepositoryRules
from blobserve.errors import BadImage, ContentMismatch, NoLayers, NotCached
from blobserve.names.digest import Digest
from blobserve.names.platform import Platform
from blobserve.names.reference import Reference
from blobserve.oci.manifest import Descriptor, ImageIndex, parse
from blobserve.oci.source import Document, Source
from blobserve.store.blobspace import BlobSpace
from blobserve.store.space.provenance import Access

_DOCUMENTS = 3
"""The longest way allowed: an index, an index nested in it, and a manifest."""


@attrs.frozen
class Image:
    """An image: the layers that are served, and how they were chosen."""

    digest: Digest
    """The digest of the manifest or index that the reference names."""
    served: tuple[Descriptor, ...]
    """The layers that are served, the lowest first; at least one."""
    layers: int
    """The number of layers of the image; an artifact, which is served whole, counts as one."""
    platform: Platform | None
    """The platform of the rules."""
    warnings: tuple[str, ...]
    """The arbitrary parts of the choice; each a clause without its subject."""
    is_artifact: bool = False
    digests: tuple[Digest, ...] = attrs.field(
        init=False,
        default=attrs.Factory(
            lambda self: tuple(layer.kept_as for layer in self.served), takes_self=True
        ),
    )
    """The digests by which the blob space has the layers that are served, the lowest first."""

    def suits(self, rules: RepositoryRules) -> bool:
        """Return whether `rules` would choose it."""
        layers = self.layers if rules.layers == "all" else 1
        is_chosen = self.is_artifact or len(self.served) == layers
        return self.platform == rules.platform and is_chosen


class ImageReader:
    """Reads images."""

    def __init__(self, space: BlobSpace, limits: Callable[[], Limits]) -> None:
        self._space = space
        self._limits = limits

    async def read(
        self,
        reference: Reference,
        rules: RepositoryRules,
        source: Source | None,
        is_trusted: bool = False,
    ) -> tuple[Image, list[Document]]:
        """Return the image that `reference` names, and the documents on the way to it.

        Without a source only the blob space is asked. The blob space gives only documents that the
        repository has shown before, or all of them if `is_trusted`.

        :raises NotCached: when a document is missing and there is no source.
        :raises NoLayers: when the image has no layers.
        """
        access = Access.NONE if is_trusted else Access.needed(rules)
        document = await self._document(reference, source, access)
        documents, warnings = [document], []
        limits = self._limits()
        while isinstance(
            parsed := parse(document.content, document.media_type, limits), ImageIndex
        ):
            if len(documents) == _DOCUMENTS:
                raise BadImage(str(reference), "its indexes are nested more than once")
            chosen, warning = parsed.choose(rules.platform)
            document = await self._document(reference.at(chosen.digest), source, access)
            if len(document.content) != chosen.size:
                raise ContentMismatch(str(chosen.digest), "its size is not that of its index")
            documents.append(document)
            warnings += [warning] if warning else []
        if not parsed.layers:
            raise NoLayers(str(reference))
        layers = 1 if parsed.is_artifact else len(parsed.layers) + parsed.left_out
        is_whole = parsed.is_artifact or rules.layers == "all"
        if is_whole and parsed.left_out:
            raise BadImage(f"manifest {document.digest}", parsed.problem)
        served = parsed.layers if is_whole else parsed.layers[:1]
        if len(served) < layers:
            warnings.append(_several(reference, layers))
        image = Image(
            documents[0].digest,
            served,
            layers,
            rules.platform,
            tuple(warnings),
            parsed.is_artifact,
        )
        return image, documents

    async def _document(
        self, reference: Reference, source: Source | None, access: Access
    ) -> Document:
        digest, covers = reference.digest, self._space.provenance.covers
        if digest is not None and (not access or covers(digest, reference.repository, access)):
            held = await self._space.manifests.get(digest)
            if held is not None:
                return held
        if source is None:
            raise NotCached(str(reference))
        return await source.resolve(reference)


def _several(reference: Reference, layers: int) -> str:
    return (
        f"has {layers} layers, of which the first alone is served: "
        f'repos."{reference.repository}".layers: all serves them together'
    )
