"""The way of a hostile layer through a site: from a registry, into a blob space, to a client."""

from __future__ import annotations

import re
from urllib.parse import quote_from_bytes

from blobserve.errors import PathNotFound
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference
from blobserve.store.blobs.filesystem import ImageFilesystem
from blobserve.store.blobspace import BlobState
from blobserve.store.index.entry import Entry, EntryKind
from tests.faults.hostile.case import Case
from tests.support.parts.images import Image, Layer, digest_of
from tests.support.sites import TAG, Serving, packed
from tests.support.spaces import names_in


def image_of(case: Case) -> Image:
    """Return an image with this layer alone."""
    return Image((Layer(case.blob, digest_of(case.blob), case.compression),))


def found(filesystem: ImageFilesystem, path: bytes) -> Entry | None:
    """Look up a path; return None if nothing can be served there."""
    try:
        return filesystem.lookup(path)
    except PathNotFound:
        return None


async def hold(site: Serving, case: Case) -> None:
    """Pull this layer through the site, and check the answers against the case."""
    reference = str(site.source.push(Reference.parse(TAG), packed(image_of(case))))
    digest = Digest.of(case.blob)
    if case.problem is None:
        await _serves(site, reference, digest, case)
    else:
        answer = await site.fetch(f"/{reference}/")
        assert (answer.status, answer.headers["cache-control"]) == (502, "no-store")
        assert re.search(case.problem, answer.body.decode()), answer.body
        assert site.space.state_of(digest) is BlobState.UNKNOWN
    assert names_in(site.space._location.root, "ingest") == []


async def _serves(site: Serving, reference: str, digest: Digest, case: Case) -> None:
    assert (await site.fetch(f"/{reference}/there/is/no/such/file")).status == 404
    blob = site.space.blobs.acquire(digest)
    assert blob is not None
    try:
        for path, content in case.answers.items():
            entry = found(blob.filesystem, path)
            is_file = entry is not None and entry.kind is EntryKind.FILE
            assert is_file == (content is not None), path
            if entry is not None and is_file:
                assert blob.filesystem.file(entry).read(0, entry.size) == content, path
            answer = await site.fetch(f"/{reference}/{quote_from_bytes(path)}")
            if b".." in path.split(b"/") or b"\0" in path:
                assert answer.status == 404, path
            elif is_file:
                assert (answer.status, answer.body) == (200, content), path
            else:
                is_bare = entry is not None and path.strip(b"/.") and not path.endswith(b"/")
                assert answer.status == (301 if is_bare else 404), path
    finally:
        blob.release()
