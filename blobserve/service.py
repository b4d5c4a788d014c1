"""The service: creates, connects, starts and stops all parts.

It is the only composition root. Signals, systemd and output belong to `blobserve.daemon.plugin`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import attrgetter
from typing import Any, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.logger import Logger
from twisted.web.resource import IResource
from twisted.web.server import Site

from blobserve.concurrency.singleflight import Call
from blobserve.concurrency.threads import OwnThreads
from blobserve.config import Config
from blobserve.configfile import ConfigSource, load
from blobserve.errors import CannotOpen, ConfigError, Forbidden, SpaceUnusable, StoreClosed
from blobserve.image_lease import ImageLease
from blobserve.metrics import Metrics
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference
from blobserve.oci.credentials.keychain import CREDENTIAL_THREADS
from blobserve.oci.http.name_lookup import NAME_THREADS, UNLISTED_NAME_THREADS
from blobserve.oci.sources import Sources, SourceThreads
from blobserve.prepull import PrePull
from blobserve.socket_activation import by_index
from blobserve.store.blobspace import BlobSpace
from blobserve.store.refstore import RefStore
from blobserve.store.unpacker import Unpacker
from blobserve.web.content.leased_body import SharedLease
from blobserve.web.health import Readiness, metrics_site, probe_site
from blobserve.web.http.mount import NOWHERE, Mount
from blobserve.web.resource import MountedImage
from blobserve.web.server.access_log import AccessLog
from blobserve.web.site import make_site
from blobserve.web.webhooks.admission import Admission, HookGate
from blobserve.web.webhooks.resource import PushReceiver, WebhookResource, WebhookSite
from blobserve.web.webhooks.secrets import SecretFile

_DISK_THREADS = 4

# Keys that need a restart, each with its attribute of `Config`.
_NEEDS_RESTART = {
    "listen": "listen",
    "blobSpace.location": "blob_space.location",
    "limits.parallelDownloads": "limits.parallel_downloads",
    "limits.parallelChunkReads": "limits.parallel_chunk_reads",
    "accessLog": "access_log",
    "webhooks.listen": "webhooks.listen",
    "prometheusAddr": "prometheus_addr",
    "readinessProbeAddr": "readiness_addr",
}

_log = Logger()


class Blobserve(Service):
    """A server of files in images. One process may run several, each with its own blob space.

    An embedding application mounts `resource`, and starts and stops this `IService`. A service can
    be started only once. Without ``listen`` or ``port`` in its configuration it does not listen.
    The process can end without `stopService`; then the last second of the access log and of the
    metadata on disk is lost, as in a crash.

    The reactor's clock measures timeouts and ages. In Twisted it is the time of day, unless the
    application replaces it. Times that are shown, logged or stored are always the time of day.

    :param config: a `Config`, a mapping in the form of a configuration file, or the path of such a
        file. The file is read at once.
    :raises ConfigError: with all problems of the configuration.
    """

    def __init__(self, reactor: Any, config: ConfigSource) -> None:
        self._reactor = reactor
        self._config = config = load(config)
        self._compute = OwnThreads(reactor, _compute_threads(), "blobserve-compute")
        self._disk = OwnThreads(reactor, _DISK_THREADS, "blobserve-disk")
        self.metrics = Metrics()
        # Their jobs may hang for minutes, and a stop need not wait for them.
        asking = partial(OwnThreads, reactor, is_awaited=False)
        self._credentials = asking(CREDENTIAL_THREADS, "blobserve-credentials")
        self._names = asking(NAME_THREADS, "blobserve-names")
        self._unlisted_names = asking(UNLISTED_NAME_THREADS, "blobserve-unlisted-names")
        threads = SourceThreads(self._disk, self._credentials, self._names, self._unlisted_names)
        self._space = BlobSpace(
            reactor,
            config.blob_space,
            lambda: self._config.limits,
            self._compute,
            self.metrics,
            self._disk,
            time.time,
        )
        unpacker = Unpacker(self._space, lambda: self._config.limits, reactor)
        self._sources = Sources(reactor, config, threads, self.metrics, unpacker.unpack)
        self._store = RefStore(
            self._space,
            self._sources.for_repository,
            lambda repository: self._config.pull_rules_for(repository),
            reactor,
            self.metrics,
            lambda: self._config.limits,
            time.time,
            lambda name: self._config.tags_named(name),
        )
        self._logging = OwnThreads(reactor, 1, "blobserve-log")
        self._access_log = AccessLog(
            config.access_log, reactor, self._logging, self.metrics.lost_lines
        )
        self._site = make_site(
            self._store,
            lambda: self._config,
            reactor,
            self._disk,
            self.metrics,
            self._access_log,
            time.time,
        )
        self._secret_file = SecretFile(self._disk, reactor)
        self._admission = Admission(
            lambda: self._secret_file.secrets, lambda: self._config, self.metrics, reactor
        )
        self._site.take_webhooks(
            self._webhooks(HookGate(self._admission, self._admission.place, is_whole=False))
        )
        everywhere = HookGate(self._admission, tuple, is_whole=True)
        self.webhooks = self._webhooks(everywhere)
        """The resource that takes notifications of registries, for an application to mount."""
        self._hook_site = WebhookSite(
            self.webhooks,
            self._site.request_log,
            lambda: self._config,
            reactor,
            self.metrics,
        )
        # Hosting rules apply from the moment of a switch, so they are read before a request comes.
        self._store.references.on_switch(
            lambda tag, old, new: self._site.images.responder.read_rules(tag)
        )
        self._store.references.on_versions(self._site.images.responder.versions_changed)
        self._readiness = Readiness(
            reactor,
            config.blob_space.location,
            self._disk,
            self._sources.health,
            lambda: {
                name: str(pinned) for name, pinned in self._store.references.pins.names.items()
            },
        )
        self._own_sites = (
            metrics_site(self.metrics, lambda: self._config, reactor),
            probe_site(self._readiness.health, self.metrics, lambda: self._config, reactor),
        )
        self._ports: list[IListeningPort] = []
        self._own_ports: list[IListeningPort] = []
        self._hook_ports: list[IListeningPort] = []
        self._pre_pull = PrePull(self._store)
        self._leases: set[ImageLease] = set()
        self._start = Call[None]()
        self._starting: Deferred[None] | None = None
        self._is_serving = False
        self._end: Call[None] | None = None
        self._lost = Call[None]()
        self._space.when_lost = self._lose

    @property
    def config(self) -> Config:
        """The current configuration."""
        return self._config

    @property
    def resource(self) -> IResource:
        """The resource that an application mounts; the same object each time."""
        return self._site.images

    @property
    def addresses(self) -> list[IAddress]:
        """The addresses that the service listens on, once it has started."""
        return [port.getHost() for port in self._ports]

    @property
    def probe_addresses(self) -> list[IAddress]:
        """The addresses of metrics and probes, in this order, as far as configured."""
        return [port.getHost() for port in self._own_ports]

    @property
    def webhook_addresses(self) -> list[IAddress]:
        """The addresses of the listeners for notifications alone."""
        return [port.getHost() for port in self._hook_ports]

    def site(self, name: str) -> IResource:
        """Return a resource for one site or one image, with its root at the place of the resource.

        It works at the root of a server, as the child of a resource, and below a Klein route with
        ``branch=True``.

        A site of the configuration answers as at its own host, whatever the host of the request. It
        follows a reload, and is 404 while the configuration does not have it.

        An image answers as below the URL that names it, and its repository needs an entry in
        ``repos``. No URL shows the reference, so no response is immutable because of it.

        :param name: a key of ``sites`` without wildcard, such as ``app.example.com``; or a
            reference: ``<registry>/<repository>:<tag>`` or ``@<digest>``.
        :raises MalformedReference: when it is neither.
        """
        if name in self._config.sites:
            return MountedImage(self._site.images, lambda: self._mount_of(name))
        mount = Mount.of_image(Reference.parse(name))
        return MountedImage(self._site.images, lambda: mount)

    def blob_for(self, reference: str | Reference, read_only: bool = False) -> Deferred[ImageLease]:
        """Return a lease on an image, whose files can be read; pull the image if necessary.

        Waits for the start of the service, and as long as a pull takes; cancelling ends this wait
        only. A `read_only` call starts neither a pull nor a look-up.

        :raises MalformedReference: when it is no reference.
        :raises Forbidden: when the configuration does not allow the repository.
        :raises NotFound: when there is no such image; read-only, when it is not in the blob space.
        :raises StoreClosed: when the service is not started, or stops.
        :raises BlobserveError: when the pull fails in another way; the next call starts anew.
        """
        return Deferred.fromCoroutine(self._blob_for(reference, read_only))

    def on_switch(self, callback: Callable[[str, str | None, str], object]) -> Callable[[], None]:
        """Call ``callback(reference, old, new)`` each time a tag switches to another digest.

        The call comes when the new image can be served, in the thread of the reactor. `old` is
        None for a tag that was not known. An error is logged, also that of an awaitable that the
        callback returns. Return a function that ends the calls.
        """
        return self._store.references.on_switch(
            lambda tag, old, new: callback(str(tag), None if old is None else str(old), str(new))
        )

    def pin(self, name: str, digest: str) -> Deferred[None]:
        """Serve an image for a site or a tag, whatever its registry says, until `unpin`.

        An earlier version that is kept needs no registry, and serves at once; any other image of
        the repository is pulled first. The pin survives restarts. The Deferred fires when the image
        is served and the pin is stored. See docs/reference/versions.md.

        :param name: a key of ``sites`` with an image by tag, or a reference by tag. The pin of a
            reference is also a pin of all sites with that tag.
        :param digest: the digest of the image, such as ``sha256:...``.
        :raises MalformedReference: when `name` or `digest` is none.
        :raises Forbidden: when the configuration has neither a site nor a repository of this name.
        :raises VersionPurged: when the image was purged.
        :raises NotFound: when there is no such image.
        :raises StoreClosed: when the service is not started, or stops.
        :raises BlobserveError: when the image cannot be pulled in another way.
        """
        return Deferred.fromCoroutine(self._pin(name, digest))

    def unpin(self, name: str) -> Deferred[bool]:
        """End a pin; the Deferred gives whether there was one.

        The tag is looked up again at once, and the pinned image serves until it has moved.

        :param name: the name that `pin` was called with.
        :raises MalformedReference: when it is neither a site nor a reference by tag.
        :raises StoreClosed: when the service is not started, or stops.
        """
        return Deferred.fromCoroutine(self._unpin(name))

    def purge(self, name: str, digest: str) -> Deferred[None]:
        """Make one image of a repository unreachable, at once and for ever.

        It is no longer an earlier version of any tag, ``dpl`` does not choose it, its URL by digest
        is 404, and no tag moves to it again. The Deferred fires when that is stored. See
        docs/reference/versions.md.

        :param name: a key of ``sites``, or a reference of the repository.
        :raises MalformedReference: when `name` or `digest` is none.
        :raises StoreClosed: when the service is not started, or stops.
        """
        return Deferred.fromCoroutine(self._purge(name, digest))

    def when_started(self) -> Deferred[None]:
        """Return a Deferred that fires when the service accepts requests, or fails.

        :raises SpaceUnusable: when the blob space cannot be used, or another process uses it.
        :raises CannotOpen: when an address is taken, or the access log cannot be written.
        :raises CancelledError: when the service was stopped first.
        """
        return self._start.wait()

    def when_lost(self) -> Deferred[None]:
        """Return a Deferred that fails when the blob space is lost while the service runs.

        The service stops by itself then, so that it does not write over the files of another owner.

        :raises SpaceUnusable: when another process owns the blob space, or another is in its place.
        """
        return self._lost.wait()

    def startService(self) -> None:
        """See `IService.startService`. Returns at once; see `when_started`."""
        super().startService()  # type: ignore[no-untyped-call]
        self._starting = Deferred.fromCoroutine(self._begin())
        _forward(self._starting, self._start)

    def stopService(self) -> Deferred[None]:
        """See `IService.stopService`. Fires when everything is released; idempotent.

        Pulls are cancelled, and requests that wait for them fail at once. Responses that are being
        sent have ``drainTimeout`` to finish.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        if self._end is None:
            self._end = Call()
            _forward(Deferred.fromCoroutine(self._release()), self._end)
        return self._end.wait()

    def reload(self, config: ConfigSource) -> None:
        """Use another configuration from the next request on. An error changes nothing.

        :raises ConfigError: when it is invalid, or changes a key that needs a restart.
        """
        new = load(config)
        changed = [
            f"{key}: needs a restart"
            for key, attribute in _NEEDS_RESTART.items()
            if attrgetter(attribute)(new) != attrgetter(attribute)(self._config)
        ]
        if changed:
            raise ConfigError(tuple(changed))
        self._config = new
        self._space.reconfigure(new.blob_space)
        self._warn()
        self._sources.reload(new)
        self._site.images.responder.prepare()
        for site in (self._site, self._hook_site, *self._own_sites):
            site.flush()
        if self._is_serving:
            self._secret_file.follow(new.webhooks.secret_file)
            self._store.reload()
            Deferred.fromCoroutine(self._pre_pull.follow(self._config))

    def reopen_logs(self) -> None:
        """Reopen the access log, after rotation has moved the old file away."""
        self._access_log.reopen()

    def _mount_of(self, key: str) -> Mount:
        site = self._config.sites.get(key)
        if site is None or (site.is_wildcard and site.image and not site.image.is_fixed):
            return NOWHERE
        if site.redirect is not None:
            return Mount.to_host(site.redirect, site)
        return Mount.of_site(site, None)

    async def _blob_for(self, reference: str | Reference, read_only: bool) -> ImageLease:
        parsed = Reference.parse(reference) if isinstance(reference, str) else reference
        await self._opened()
        lease = await self._store.blob_for(parsed, read_only)
        shared = SharedLease(lease, self._disk, self._reactor, math.inf)
        return ImageLease(shared, self._leases)

    async def _pin(self, name: str, digest: str) -> None:
        pinned = Digest.parse(digest)
        key = self._name_of(name)
        await self._opened()
        await self._store.pin(key, pinned)

    async def _unpin(self, name: str) -> bool:
        await self._opened()
        # A pin may have the name of a site that the configuration no longer has.
        is_pinned = name in self._store.references.pins.names
        return await self._store.unpin(name if is_pinned else self._name_of(name))

    async def _purge(self, name: str, digest: str) -> None:
        purged = Digest.parse(digest)
        site = self._config.sites.get(name)
        image = site.image if site else None
        repository = image.repository if image else Reference.parse(name).repository
        await self._opened()
        await self._store.purge(repository, purged)

    def _name_of(self, name: str) -> str:
        """Return the canonical name of a pin.

        :raises MalformedReference: when it is neither a site with a tag nor a reference by tag.
        :raises Forbidden: when the configuration has nothing of this name.
        """
        key = name if name in self._config.sites else str(Reference.parse(name))
        if not self._config.tags_named(key):
            raise Forbidden(key)
        return key

    async def _opened(self) -> None:
        if self._starting is None:
            raise StoreClosed
        await self._start.wait()

    def _lose(self, error: SpaceUnusable) -> None:
        self.stopService()
        self._lost.fail(error)

    async def _begin(self) -> None:
        self._warn()
        for pool in self._pools:
            pool.start()
        with _opening("accessLog.file", self._config.access_log.file):
            self._access_log.open()
        for key, address, site in zip(
            ("prometheusAddr", "readinessProbeAddr"),
            (self._config.prometheus_addr, self._config.readiness_addr),
            self._own_sites,
            strict=True,
        ):
            if address is not None:
                with _opening(key, f"{address.host}:{address.port}"):
                    port = self._reactor.listenTCP(address.port, site, interface=address.host)
                self._own_ports.append(port)
        await self._space.open()
        await self._store.open()
        self._site.images.responder.prepare()
        await self._secret_file.follow(self._config.webhooks.secret_file)
        await self._listen("listen", self._config.listen, self._site, self._ports)
        await self._listen(
            "webhooks.listen", self._config.webhooks.listen, self._hook_site, self._hook_ports
        )
        self._is_serving = True
        self._readiness.listening(Deferred.fromCoroutine(self._pre_pull.follow(self._config)))

    async def _listen(
        self, key: str, descriptions: Sequence[str], site: Site, ports: list[IListeningPort]
    ) -> None:
        """Let a site listen at all endpoints of a configuration key."""
        for description in descriptions:
            with _opening(key, description):
                for each in by_index(description):
                    endpoint = serverFromString(self._reactor, each)
                    ports.append(await endpoint.listen(site))

    def _webhooks(self, gate: HookGate) -> WebhookResource:
        receiver = PushReceiver(self._store, lambda: self._config)
        return WebhookResource(receiver, gate, self._site.request_log, self._site.images.pace)

    async def _release(self) -> None:
        if self._starting is None:
            return
        self._is_serving = False
        self._starting.cancel()
        self._readiness.draining()
        steps: Sequence[Callable[[], Coroutine[Deferred[Any], Any, None]]] = (
            lambda: _stop_listening((*self._hook_ports, *self._ports)),
            self._end_webhooks,
            self._drain,
            self._release_leases,
            self._sources.close_files,
            self._space.close,
            self._sources.close,
            self._close_own_ports,
            self._close_log,
            self._stop_threads,
        )
        for step in steps:
            # A failed step does not stop the others: a running thread would keep the process alive.
            releasing = Deferred.fromCoroutine(step())
            await releasing.addErrback(lambda why: _log.failure("cannot stop cleanly", failure=why))

    async def _end_webhooks(self) -> None:
        self._secret_file.stop()
        self._hook_site.close()

    async def _close_own_ports(self) -> None:
        await _stop_listening(self._own_ports)
        for site in self._own_sites:
            site.close()

    async def _close_log(self) -> None:
        await self._access_log.close()

    async def _drain(self) -> None:
        drained = self._site.drain(self._config.drain_timeout)
        # Requests that wait for a pull fail now, not at the end of the drain.
        await self._store.close()
        await drained

    async def _release_leases(self) -> None:
        for lease in list(self._leases):
            lease.release()

    async def _stop_threads(self) -> None:
        for pool in self._pools:
            await pool.stopped()

    @property
    def _pools(self) -> tuple[OwnThreads, ...]:
        asking = self._credentials, self._names, self._unlisted_names
        return *asking, self._compute, self._disk, self._logging

    def _warn(self) -> None:
        for warning in self._config.warnings:
            _log.warn("{warning}", warning=warning)


def _compute_threads() -> int:
    """Return the number of compute threads.

    One core is left to the reactor, unless a pull would then lack its two threads.
    """
    cores = os.cpu_count() or 1
    return max(min(2, cores), cores - 1)


def _forward(work: Deferred[None], call: Call[None]) -> None:
    """Complete `call` with the outcome of `work`."""
    work.addCallbacks(call.succeed, lambda failure: call.fail(cast("Exception", failure.value)))


@contextmanager
def _opening(key: str, subject: str) -> Iterator[None]:
    """Turn errors inside into `CannotOpen` with the configuration key."""
    try:
        yield
    except LookupError as error:
        problem = "systemd passed no such socket"
        raise CannotOpen(key, subject, problem) from error
    except (CannotListenError, OSError) as error:
        cause = getattr(error, "socketError", error)
        problem = getattr(cause, "strerror", None) or str(cause)
        raise CannotOpen(key, subject, problem) from error


async def _stop_listening(ports: Sequence[IListeningPort]) -> None:
    await DeferredList([maybeDeferred(port.stopListening) for port in ports])
