"""The source of each repository, by the current configuration.

Registries and local files are opened on first use and kept, so that requests share connections,
tokens and indexes. The last answer of each registry is kept for the readiness probe.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

import attrs
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IConsumer, IReactorTime
from twisted.logger import Logger

from blobserve.concurrency.background import Background
from blobserve.concurrency.threads import Threads
from blobserve.config import Config, LocalSource, RegistryRules
from blobserve.errors import BlobserveError, NotFound
from blobserve.metrics import Metrics
from blobserve.names.digest import Digest
from blobserve.names.proxy import Proxies, UnusableProxy
from blobserve.names.reference import Reference, Repository
from blobserve.oci.credentials.keychain import Keychain, SharedKeychain
from blobserve.oci.http.endpoints import Routes
from blobserve.oci.http.name_lookup import Names
from blobserve.oci.local.unpacking import Unpack
from blobserve.oci.manifest import Descriptor
from blobserve.oci.registry.registry import Registry
from blobserve.oci.source import Document, RefreshResult, Source

if TYPE_CHECKING:
    from blobserve.oci.local.directory import LayoutFiles

_log = Logger()

UNLISTED_REGISTRIES = 64
"""The limit of unlisted registries that are kept; the least recently used one is dropped."""

T = TypeVar("T")


@attrs.frozen
class SourceThreads:
    """The threads for blocking work of sources, one pool for each kind of work."""

    disk: Threads
    """For local images."""
    credentials: Threads
    """For files with credentials or certificates, and for credential helpers."""
    names: Threads
    """For lookups of host names that the configuration leads to."""
    unlisted_names: Threads
    """For lookups of host names that clients choose: unlisted registries."""


class Sources:
    """All sources of one service."""

    def __init__(
        self,
        reactor: IReactorTime,
        config: Config,
        threads: SourceThreads,
        metrics: Metrics,
        unpack: Unpack | None = None,
    ) -> None:
        """`unpack` is for local archives that are compressed as a whole."""
        self._reactor = reactor
        self._unpack = unpack
        self._closing = Background(threads.disk)
        self._threads = threads
        self._disk = threads.disk
        names = Names(reactor, threads.names)
        unlisted_names = Names(reactor, threads.unlisted_names)
        proxies = Proxies.from_environment(os.environ)
        for proxy in (proxies.https, proxies.http):
            if isinstance(proxy, UnusableProxy):
                fields = {"setting": proxy.setting, "problem": proxy.problem}
                _log.error("{setting} cannot be used: {problem}", **fields)
        self._routes = Routes(names, proxies)
        self._unlisted_routes = Routes(unlisted_names, proxies, names)
        self._metrics = metrics
        self._listed: dict[str, _Known] = {}
        self._unlisted: OrderedDict[str, _Known] = OrderedDict()
        # Only pulls that still use a retired registry keep it alive.
        self._retired: WeakSet[Registry] = WeakSet()
        self._files: dict[LocalSource, LayoutFiles] = {}
        self._config = config
        self._credentials = self._of_this_host(config)
        self.reload(config)

    def reload(self, config: Config) -> None:
        """Reopen every source on its next use; running requests keep the old one."""
        for known in [*self._listed.values(), *self._unlisted.values()]:
            self._retire(known)
        self._listed = {}
        self._unlisted.clear()
        if config.docker_auth != self._config.docker_auth:
            self._credentials = self._of_this_host(config)
        self._credentials.forget_answers()
        sources = config.sources
        if config.limits != self._config.limits:
            sources = set()
        # An archive can take long to index, so unchanged ones are kept.
        for each in self._files.keys() - sources:
            self._closing.do(self._files.pop(each).close())
        self._config = config

    def for_repository(self, repository: Repository) -> Source:
        """Return the source of a repository; unlisted ones get no credentials."""
        rules = self._config.pull_rules_for(repository)
        if rules is not None and rules.source is not None:
            # Imported late: many servers have no local images.
            from blobserve.oci.local.layout import Layout

            return Layout(self._files_of(rules.source), self._disk, self._config.limits)
        if rules is not None and rules.listed:
            known = self._of_listed(repository.registry)
        else:
            known = self._of_unlisted(repository.registry)
        return _ObservedRegistry(known, self._reactor)

    def health(self) -> Mapping[str, object]:
        """Return the last answer of each registry since the last reload.

        Unlisted registries are included as far as they are kept.
        """
        now = self._reactor.seconds()
        answers: dict[str, _Answer] = {}
        for name, known in [*self._unlisted.items(), *self._listed.items()]:
            last, other = known.last, answers.get(name)
            if last is not None and (other is None or other.time <= last.time):
                answers[name] = last
        return {
            name: {"last": answer.text, "secondsAgo": round(now - answer.time, 1)}
            for name, answer in sorted(answers.items())
        }

    async def close_files(self) -> None:
        """Close all local files; remove what was made of them from the blob space."""
        for files in self._files.values():
            self._closing.do(files.close())
        self._files.clear()
        await self._closing.quiet()

    async def close(self) -> None:
        """Close all connections, and kill running credential helpers."""
        self._credentials.stop()
        known = [*self._listed.values(), *self._unlisted.values()]
        registries = [*self._retired, *(each.registry for each in known)]
        self._retired.clear()
        self._listed = {}
        self._unlisted.clear()
        await DeferredList([Deferred.fromCoroutine(each.close()) for each in registries])

    def _of_listed(self, host: str) -> _Known:
        if host not in self._listed:
            self._listed[host] = _Known(self._registry(host, is_listed=True))
        return self._listed[host]

    def _of_unlisted(self, host: str) -> _Known:
        """Return the registry for unlisted repositories. Clients may name any host."""
        if host not in self._unlisted:
            self._unlisted[host] = _Known(self._registry(host, is_listed=False))
        self._unlisted.move_to_end(host)
        if len(self._unlisted) > UNLISTED_REGISTRIES:
            self._retire(self._unlisted.popitem(last=False)[1])
        return self._unlisted[host]

    def _retire(self, known: _Known) -> None:
        self._retired.add(known.registry)
        known.registry.retire()

    def _files_of(self, source: LocalSource) -> LayoutFiles:
        files = self._files.get(source)
        if files is None:
            files = self._files[source] = self._opened(source)
        return files

    def _opened(self, source: LocalSource) -> LayoutFiles:
        # Imported when they are needed, for a quick start.
        limits = self._config.limits
        if source.form == "oci":
            from blobserve.oci.local.directory import LayoutDirectory

            return LayoutDirectory(source.path)
        if source.form == "oci-archive":
            from blobserve.oci.local.oci_archive import OciArchive

            return OciArchive(source.path, self._disk, limits, unpack=self._unpack)
        from blobserve.oci.local.docker_archive import DockerArchive

        return DockerArchive(source.path, self._disk, limits, self._unpack)

    def _registry(self, host: str, is_listed: bool) -> Registry:
        rules = self._config.registries.get(host, RegistryRules())
        return Registry(
            self._reactor,
            host,
            rules,
            self._credentials if is_listed else None,
            # A listed repository may have its registry at a private address. Clients choose the
            # others, so these need `allowAnyRepo` in the entry of the registry.
            is_listed or rules.allow_any_repo,
            self._threads.credentials,
            self._routes if is_listed else self._unlisted_routes,
            self._config.limits,
            self._metrics,
        )

    def _of_this_host(self, config: Config) -> SharedKeychain:
        keychain = Keychain(config.docker_auth, os.environ)
        return SharedKeychain(keychain, self._threads.credentials)


@attrs.frozen
class _Answer:
    time: float
    text: str


@attrs.define
class _Known:
    """A registry and its last answer."""

    registry: Registry
    last: _Answer | None = None


@attrs.frozen
class _ObservedRegistry:
    """A registry that records its last answer. See `Source`.

    Registries know no scopes, so that all scopes of a repository share its tokens.
    """

    _known: _Known
    _clock: IReactorTime

    @property
    def _registry(self) -> Registry:
        return self._known.registry

    async def resolve(self, reference: Reference) -> Document:
        return await self._noted(self._registry.resolve(reference.within("")))

    async def refresh(self, reference: Reference, known: Digest) -> RefreshResult:
        return await self._noted(self._registry.refresh(reference.within(""), known))

    async def holds(self, repository: Repository, descriptor: Descriptor) -> bool:
        return await self._noted(self._registry.holds(repository.within(""), descriptor))

    async def fetch(
        self, repository: Repository, descriptor: Descriptor, consumer: IConsumer
    ) -> None:
        await self._noted(self._registry.fetch(repository.within(""), descriptor, consumer))

    async def read(
        self, repository: Repository, descriptor: Descriptor, start: int, length: int
    ) -> bytes:
        return await self._noted(
            self._registry.read(repository.within(""), descriptor, start, length)
        )

    async def _noted(self, asking: Coroutine[Deferred[Any], Any, T]) -> T:
        text = "ok"
        try:
            return await asking
        except NotFound:
            raise  # The registry works: it gave an answer.
        except BlobserveError as error:
            text = str(error)
            raise
        finally:
            self._known.last = _Answer(self._clock.seconds(), text)
