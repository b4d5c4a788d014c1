"""Where each repository's images come from, by the configuration of the moment.

Makes registries and archives as they are first asked for and keeps them, so that connections,
tokens and what is known of files are shared; remembers how each registry last answered, for whoever
looks at the server's health.
"""

from __future__ import annotations

import os
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IConsumer, IReactorTime

from blobserve.concurrency.threads import Threads
from blobserve.config import Config, LocalSource, RegistryRules
from blobserve.errors import BlobserveError, NotFound
from blobserve.metrics import Metrics
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference, Repository
from blobserve.oci.credentials.keychain import Keychain, SharedKeychain
from blobserve.oci.http.name_lookup import Names
from blobserve.oci.local.directory import LayoutDirectory, LayoutFiles
from blobserve.oci.local.docker_archive import DockerArchive
from blobserve.oci.local.layout import Layout
from blobserve.oci.local.oci_archive import OciArchive
from blobserve.oci.manifest import Descriptor
from blobserve.oci.registry.registry import Registry
from blobserve.oci.source import Document, RefreshResult, Source

T = TypeVar("T")


@attrs.frozen
class SourceThreads:
    """Where sources do what blocks: each kind of work has threads that no other kind can take."""

    disk: Threads
    """For images of this host."""
    credentials: Threads
    """For files of credentials and of authorities, and for credential helpers."""
    names: Threads
    """For the names of hosts that the configuration leads to."""
    unlisted_names: Threads
    """For names that anybody can ask for: those of registries that are not listed."""


class Sources:
    """Every source that one service has."""

    def __init__(
        self, reactor: IReactorTime, config: Config, threads: SourceThreads, metrics: Metrics
    ) -> None:
        self._reactor = reactor
        self._threads = threads
        self._disk = threads.disk
        self._names = Names(reactor, threads.names)
        self._unlisted_names = Names(reactor, threads.unlisted_names)
        self._metrics = metrics
        self._registries: dict[tuple[str, bool], Registry] = {}
        self._retired: list[Registry] = []
        self._answers: dict[str, _Answer] = {}
        self._files: dict[LocalSource, LayoutFiles] = {}
        self._config = config
        self._credentials = self._of_this_host(config)
        self.reload(config)

    def reload(self, config: Config) -> None:
        """Make every source anew when it is next asked for; what runs goes on as it began."""
        self._retired += self._registries.values()
        self._registries = {}
        self._answers = {}
        if config.docker_auth != self._config.docker_auth:
            self._credentials = self._of_this_host(config)
        self._credentials.forget_answers()
        sources = {rules.source for rules in config.repos.values()}
        if config.limits != self._config.limits:
            sources = set()
        # What is known of an archive can have taken long to find out.
        self._files = {each: files for each, files in self._files.items() if each in sources}
        self._config = config

    def for_repository(self, repository: Repository) -> Source:
        """The source of a repository; of one that is not listed, its registry asked anonymously."""
        rules = self._config.rules_for(repository)
        if rules is not None and rules.source is not None:
            return Layout(self._files_of(rules.source), self._disk, self._config.limits)
        is_listed = rules is not None and rules.listed
        key = repository.registry, is_listed
        if key not in self._registries:
            self._registries[key] = self._registry(*key)
        return _ObservedRegistry(
            self._registries[key], repository.registry, self._reactor, self._answers
        )

    def health(self) -> Mapping[str, object]:
        """How each registry that was asked since the last reload answered last."""
        now = self._reactor.seconds()
        return {
            name: {"last": answer.text, "secondsAgo": round(now - answer.time, 1)}
            for name, answer in sorted(self._answers.items())
        }

    async def close(self) -> None:
        """Close every connection, and end every credential helper."""
        self._credentials.stop()
        registries = [*self._retired, *self._registries.values()]
        self._retired, self._registries = [], {}
        await DeferredList([Deferred.fromCoroutine(each.close()) for each in registries])

    def _files_of(self, source: LocalSource) -> LayoutFiles:
        files = self._files.get(source)
        if files is None:
            files = self._files[source] = self._opened(source)
        return files

    def _opened(self, source: LocalSource) -> LayoutFiles:
        if source.form == "oci":
            return LayoutDirectory(source.path)
        make = OciArchive if source.form == "oci-archive" else DockerArchive
        return make(source.path, self._disk, self._config.limits)

    def _registry(self, host: str, is_listed: bool) -> Registry:
        rules = self._config.registries.get(host, RegistryRules())
        return Registry(
            self._reactor,
            host,
            rules,
            self._credentials if is_listed else None,
            # A registry is named by a repository that is listed. For all others it may be at a
            # private address only if its own entry says so: anybody can ask for them.
            is_listed or rules.allow_any_repo,
            self._threads.credentials,
            self._names if is_listed else self._unlisted_names,
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


@attrs.frozen
class _ObservedRegistry:
    """A registry, and a note of how it last answered. See `Source`."""

    _registry: Registry
    _name: str
    _clock: IReactorTime
    _answers: dict[str, _Answer]

    async def resolve(self, reference: Reference) -> Document:
        return await self._noted(self._registry.resolve(reference))

    async def refresh(self, reference: Reference, known: Digest) -> RefreshResult:
        return await self._noted(self._registry.refresh(reference, known))

    async def holds(self, repository: Repository, descriptor: Descriptor) -> bool:
        return await self._noted(self._registry.holds(repository, descriptor))

    async def fetch(
        self, repository: Repository, descriptor: Descriptor, consumer: IConsumer
    ) -> None:
        await self._noted(self._registry.fetch(repository, descriptor, consumer))

    async def read(
        self, repository: Repository, descriptor: Descriptor, start: int, length: int
    ) -> bytes:
        return await self._noted(self._registry.read(repository, descriptor, start, length))

    async def _noted(self, asking: Coroutine[Deferred[Any], Any, T]) -> T:
        text = "ok"
        try:
            return await asking
        except NotFound:
            raise  # as good an answer as any
        except BlobserveError as error:
            text = str(error)
            raise
        finally:
            self._answers[self._name] = _Answer(self._clock.seconds(), text)
