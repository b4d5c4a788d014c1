"""The source for the repositories of one registry: OCI distribution-spec, "Pull".

Checks manifests against their digests. The log has the error codes of a registry, but no other text
of it.
"""

from __future__ import annotations

import math
import time
from typing import Any, Literal

import attrs
from twisted.internet.interfaces import IConsumer
from twisted.logger import Logger

from blobserve.concurrency.threads import Threads
from blobserve.config import Limits, RegistryRules
from blobserve.errors import (
    AddressRefused,
    BadImage,
    BlobserveError,
    ContentMismatch,
    ImageNotFound,
    MalformedReference,
    RegistryBusy,
    RegistryFailed,
)
from blobserve.metrics import Metrics
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference, Repository
from blobserve.oci.credentials.keychain import Credentials
from blobserve.oci.http import retry
from blobserve.oci.http.endpoints import Routes
from blobserve.oci.http.response import BodyTooLong, Request, Response
from blobserve.oci.http.retry import Transient, retry_after
from blobserve.oci.manifest import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from blobserve.oci.registry.blob_download import BlobDownload
from blobserve.oci.registry.range_read import PART_TRIES, RangeRead
from blobserve.oci.registry.session import Session
from blobserve.oci.source import Document, RefreshResult

_ACCEPT = ", ".join(MANIFEST_TYPES + INDEX_TYPES)
_GONE = (404, 410)
# URLs of storage are valid for minutes; several parts are read with one.
_STORAGE_LIFE = 30.0
_STORAGES = 1000
# HEAD is tried again later: it may be repaired, and rate limits do not count it.
_HEAD_BROKEN_FOR = 600.0

_log = Logger()


class Registry:
    """A source for all repositories of one registry. See `Source` for the methods.

    Only the registry itself can refuse access, not a host that it redirects to.

    :param host: `host` or `host:port`, as in references.
    :param credentials: None to be anonymous.
    :param may_be_private: whether `host` and the hosts in `rules.allow_hosts` may have addresses
        that are not public. One without a port stands for ports 80 and 443.
    :param threads: the pool that reads the file of certificates.
    :param routes: the ways to reach hosts; ``proxy`` in `rules` overrides its proxies.
    :param user_agent: the value of User-Agent.
    """

    def __init__(
        self,
        reactor: Any,
        host: str,
        rules: RegistryRules,
        credentials: Credentials | None,
        may_be_private: bool,
        threads: Threads,
        routes: Routes,
        limits: Limits,
        metrics: Metrics,
        user_agent: str = "blobserve",
    ) -> None:
        self._reactor = reactor
        self._name = host
        self._limits = limits
        self._storage: dict[tuple[Repository, Digest], tuple[str, float]] = {}
        self._head_failed = {"manifest": -math.inf, "blob": -math.inf}
        self._session = Session(
            reactor,
            host,
            rules,
            credentials,
            may_be_private,
            threads,
            routes,
            limits,
            metrics,
            user_agent,
        )

    async def resolve(self, reference: Reference) -> Document:
        """See `Source.resolve`."""
        return await self._session.run(lambda: self._resolve(reference))

    async def refresh(self, reference: Reference, known: Digest) -> RefreshResult:
        """See `Source.refresh`. Tries once, since callers ask again later."""
        return await self._session.run(lambda: self._refresh(reference, known), tries=1)

    async def holds(self, repository: Repository, descriptor: Descriptor) -> bool:
        """See `Source.holds`."""
        return await self._session.run(lambda: self._holds(repository, descriptor))

    async def fetch(
        self, repository: Repository, descriptor: Descriptor, consumer: IConsumer
    ) -> None:
        """See `Source.fetch`."""

        async def ask(headers: dict[str, str]) -> Response:
            return await self._session.run(lambda: self._blob(repository, descriptor, headers))

        transfer = BlobDownload(ask, self._name, descriptor, consumer, self._reactor)
        await self._session.until_closed(transfer.run())

    async def read(
        self, repository: Repository, descriptor: Descriptor, start: int, length: int
    ) -> bytes:
        """See `Source.read`. Retries a truncated part a few times."""
        part = RangeRead(self._name, descriptor, start, length)
        return await self._session.run(lambda: self._part(repository, part), PART_TRIES)

    def retire(self) -> None:
        """Let running pulls continue, and keep no idle connections after them."""
        self._session.retire()

    async def close(self) -> None:
        """Cancel running calls, which raise StoreClosed, and close all connections."""
        await self._session.close()

    async def _resolve(self, reference: Reference) -> Document:
        request = _manifest_request("GET", reference)
        response = await self._session.ask(reference.repository, request)
        return await self._document(reference, response)

    async def _refresh(self, reference: Reference, known: Digest) -> RefreshResult:
        repository = reference.repository
        head = await self._head("manifest", repository, _manifest_request("HEAD", reference))
        announced = _announced(head) if head is not None and head.status == 200 else None
        if head is not None and announced == known:
            return RefreshResult(known, retry.rate_limit_pause(head.value))
        # Storage may refuse HEAD but answer GET, and digests in headers may be wrong. So a GET
        # decides unless the HEAD says "unchanged".
        get = _manifest_request("GET", reference, **{"If-None-Match": f'"{known}"'})
        response = await self._session.ask(repository, get)
        if response.status == 304:
            await response.discard()
            digest = known
        else:
            digest = (await self._document(reference, response)).digest
        if announced is None or digest == known:
            self._note_broken_head("manifest")
        return RefreshResult(digest, retry.rate_limit_pause(response.value))

    async def _holds(self, repository: Repository, descriptor: Descriptor) -> bool:
        # Not followed: a redirect means that the registry has the blob.
        head = Request("HEAD", _blob_url(repository, descriptor), is_followed=False)
        if await self._head("blob", repository, head) is not None:
            return True
        one_byte = {"Range": "bytes=0-0"} if descriptor.size else {}
        response = await self._session.ask(
            repository, attrs.evolve(head, method="GET", headers=one_byte)
        )
        if response.status in _GONE:
            await response.discard()
            return False
        if not 200 <= response.status < 400:
            raise await self._refusal(repository, response)
        response.abandon()
        self._note_broken_head("blob")
        return True

    async def _head(
        self, kind: Literal["manifest", "blob"], repository: Repository, request: Request
    ) -> Response | None:
        """Return a success or redirect in response to a HEAD; None if a GET has to decide.

        :raises Transient: when the registry cannot be reached, or asks for a retry.
        :raises RegistryBusy: when a refusal has a Retry-After.
        """
        if self._head_is_broken(kind):
            return None
        try:
            response = await self._session.ask(repository, request)
        except Transient as failure:
            if failure.retry_after is not None:
                raise attrs.evolve(failure, is_busy=True) from failure
            if failure.is_busy or not failure.was_asked:
                raise
            return None
        except (RegistryFailed, AddressRefused):
            return None
        await response.discard()
        if 200 <= response.status < 400:
            return response
        seconds = retry_after(response.value("retry-after"), time.time())
        if seconds is not None:
            raise RegistryBusy(self._name, seconds)
        return None

    def _head_is_broken(self, kind: Literal["manifest", "blob"]) -> bool:
        """Return whether a GET recently succeeded after a failed HEAD."""
        # A negative time means that the clock was set back.
        return bool(0 <= self._reactor.seconds() - self._head_failed[kind] < _HEAD_BROKEN_FOR)

    def _note_broken_head(self, kind: Literal["manifest", "blob"]) -> None:
        if not self._head_is_broken(kind):
            _log.info(
                "{registry}: HEAD of a {kind} fails; using GET", registry=self._name, kind=kind
            )
            self._head_failed[kind] = self._reactor.seconds()

    async def _blob(
        self, repository: Repository, descriptor: Descriptor, headers: dict[str, str]
    ) -> Response:
        request = Request("GET", _blob_url(repository, descriptor), headers)
        response = await self._session.ask(repository, request)
        if response.status in (401, 403) and response.origin == self._session.origin:
            raise await self._refusal(repository, response)
        return response

    async def _part(self, repository: Repository, part: RangeRead) -> bytes:
        """Return a part, from the URL of the last redirect for this blob if that is recent."""
        key = repository, part.descriptor.digest
        url, until = self._storage.pop(key, ("", 0.0))
        if self._reactor.seconds() < until:
            response = await self._session.ask_storage(Request("GET", url, part.headers))
            if response.status in (200, 206):
                self._storage[key] = url, until
                return await part.receive(response)
            response.abandon()
        response = await self._blob(repository, part.descriptor, part.headers)
        if response.origin != self._session.origin and response.status in (200, 206):
            self._remember(key, response.url)
        return await part.receive(response)

    def _remember(self, key: tuple[Repository, Digest], url: str) -> None:
        if len(self._storage) >= _STORAGES:
            self._storage.clear()
        self._storage[key] = url, self._reactor.seconds() + _STORAGE_LIFE

    async def _document(self, reference: Reference, response: Response) -> Document:
        if response.status in _GONE:
            await response.discard()
            raise ImageNotFound(str(reference))
        if response.status != 200:
            raise await self._refusal(reference.repository, response)
        limit, wanted = self._limits.manifest_size, reference.digest
        try:
            content = await response.read(limit)
        except BodyTooLong as error:
            raise BadImage(str(reference), f"its manifest exceeds {limit} bytes") from error
        digest = Digest.of(content, wanted.algorithm if wanted else "sha256")
        if wanted is not None and digest != wanted:
            raise ContentMismatch(str(wanted), "its manifest has another digest")
        media_type = (response.value("content-type") or "").partition(";")[0].strip().lower()
        return Document(digest, media_type, content)

    async def _refusal(self, repository: Repository, response: Response) -> BlobserveError:
        error = await self._session.refusal(repository, response)
        status, code = response.status, await response.error_code()
        _log.info("{name}: {status} {code}", name=str(repository), status=status, code=code)
        return error


def _manifest_request(method: str, reference: Reference, **fields: str) -> Request:
    url = f"/v2/{reference.repository.path}/manifests/{reference.digest or reference.tag}"
    return Request(method, url, {"Accept": _ACCEPT, **fields})


def _blob_url(repository: Repository, descriptor: Descriptor) -> str:
    return f"/v2/{repository.path}/blobs/{descriptor.digest}"


def _announced(response: Response) -> Digest | None:
    try:
        return Digest.parse(response.value("docker-content-digest") or "")
    except MalformedReference:
        return None
