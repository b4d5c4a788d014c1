"""Where each repository's images come from, by the configuration of the moment.

Makes registries and layouts as they are first asked for and keeps them, so that connections and
tokens are shared; remembers how each last answered, for whoever looks at the server's health.
"""

from __future__ import annotations

import os
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IConsumer, IReactorTime

from blobserve.config import Config, RegistryRules
from blobserve.errors import BlobserveError, NotFound
from blobserve.metrics import Metrics
from blobserve.oci.credentials import Keychain
from blobserve.oci.digest import Digest
from blobserve.oci.layout import Layout
from blobserve.oci.manifest import Descriptor
from blobserve.oci.reference import Reference, Repository
from blobserve.oci.registry import Registry
from blobserve.oci.source import Document, Refreshed, Source
from blobserve.threads import Threads

T = TypeVar("T")


class Sources:
    """Every source that one service has."""

    def __init__(
        self, reactor: IReactorTime, config: Config, disk: Threads, metrics: Metrics
    ) -> None:
        self._reactor = reactor
        self._disk = disk
        self._metrics = metrics
        self._registries: dict[tuple[str, bool], Registry] = {}
        self._retired: list[Registry] = []
        self._answers: dict[str, _Answer] = {}
        self._config = config
        self._keychain = Keychain(config.docker_auth, os.environ)
        self.reload(config)

    def reload(self, config: Config) -> None:
        """Make every source anew when it is next asked for; what runs goes on as it began."""
        self._retired += self._registries.values()
        self._registries = {}
        self._answers = {}
        if config.docker_auth != self._config.docker_auth:
            self._keychain = Keychain(config.docker_auth, os.environ)
        self._keychain.forget_answers()
        self._config = config
        hosts = {key.partition("/")[0] for key, rules in config.repos.items() if not rules.source}
        self._named = frozenset(hosts | set(config.registries))

    def for_repository(self, repository: Repository) -> Source:
        """The source of a repository; of one that is not listed, its registry asked anonymously."""
        rules = self._config.rules_for(repository)
        if rules is not None and rules.source is not None:
            return Layout(rules.source, self._disk, self._config.limits)
        is_listed = rules is not None and rules.listed
        key = repository.registry, is_listed
        if key not in self._registries:
            self._registries[key] = self._registry(*key)
        return _Observed(self._registries[key], repository.registry, self._reactor, self._answers)

    def health(self) -> Mapping[str, object]:
        """How each registry that was asked since the last reload answered last."""
        now = self._reactor.seconds()
        return {
            name: {"last": answer.text, "secondsAgo": round(now - answer.time, 1)}
            for name, answer in sorted(self._answers.items())
        }

    async def close(self) -> None:
        """Close every connection."""
        registries = [*self._retired, *self._registries.values()]
        self._retired, self._registries = [], {}
        await DeferredList([Deferred.fromCoroutine(each.close()) for each in registries])

    def _registry(self, host: str, is_listed: bool) -> Registry:
        return Registry(
            self._reactor,
            host,
            self._config.registries.get(host, RegistryRules()),
            self._keychain if is_listed else None,
            self._named,
            self._disk,
            self._config.limits,
            self._metrics,
        )


@attrs.frozen
class _Answer:
    time: float
    text: str


@attrs.frozen
class _Observed:
    """A registry, and a note of how it last answered. See `Source`."""

    _registry: Registry
    _name: str
    _clock: IReactorTime
    _answers: dict[str, _Answer]

    async def resolve(self, reference: Reference) -> Document:
        return await self._noted(self._registry.resolve(reference))

    async def refresh(self, reference: Reference, known: Digest) -> Refreshed:
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
