"""`twist blobserve`: the process around the service.

Options, signals, systemd, the log and the output. Embedding applications do not need it.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import attrs
from twisted.application.service import IService, MultiService
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.interfaces import IAddress
from twisted.internet.task import LoopingCall, react
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

from blobserve.concurrency.threads import OwnThreads
from blobserve.config import DEFAULT_LISTEN, Config
from blobserve.configfile import load
from blobserve.daemon.log_observer import LineLogObserver
from blobserve.daemon.systemd import notify, watchdog_interval
from blobserve.errors import BlobserveError, ConfigError, SpaceUnusable
from blobserve.store.disk.owner_lock import exposure

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}

_DEFAULT_PORTS = {"http": "80", "https": "443"}
_MOST_SITES = 5
"""Sites with a URL in the output of a start."""

_NO_CONFIG = "Name the configuration: --config FILE"

_log = Logger()


class Options(UsageOptions):
    """The command line of `twist blobserve`."""

    synopsis = "[options]"
    longdesc = (
        "Serves the files of container image layers over HTTP. SIGHUP reloads the"
        " configuration. SIGTERM finishes the current responses and stops. The log goes to"
        " standard error, or to the file of twist's --log-file."
    )
    optParameters = [  # noqa: N815, RUF012
        ["config", "c", None, "The configuration file, see etc/blobserve.yaml."],
        ["image", None, None, "With --check: also check the hosting rules of this image."],
    ]
    optFlags = [  # noqa: N815, RUF012
        ["check", None, "Validate the configuration and exit."],
        ["verify", None, "Read and hash the whole blob space, print damage, and exit."],
    ]

    def parseArgs(self, *arguments: str) -> None:
        """Refuse arguments other than options."""
        if arguments:
            raise UsageError(f"not an option: {arguments[0]!r}. {_NO_CONFIG}")

    def postOptions(self) -> None:
        """Check that there is a configuration, and set the log observer of twist."""
        if not self["config"]:
            raise UsageError(_NO_CONFIG)
        if self["image"] and not self["check"]:
            raise UsageError("--image needs --check")
        twist: dict[str, Any] = self.parent or {}
        file: Any = twist.get("logFile", sys.stdout)
        self.log = LineLogObserver(sys.stderr if file is sys.stdout else file)
        twist["fileLogObserverFactory"] = lambda _file: self.log


def makeService(options: Options) -> IService:
    """Return the service for `twist`; exit if the options ask for no server, or on an error."""
    path = Path(options["config"])
    try:
        config = _configuration(path)
    except ConfigError as error:
        raise SystemExit(str(error)) from error
    if options["check"]:
        for warning in config.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        if exposed := exposure(config.blob_space.location):
            print(f"warning: {path}: blobSpace.location: {exposed}", file=sys.stderr)
        print(f"{path}: valid")
        if options["image"]:
            _check_image(config, options["image"])
        raise SystemExit(0)
    if options["verify"]:
        _verify(config)
    # Imported late: by now twist has installed the reactor of its options.
    from twisted.internet import reactor  # noqa: TID251

    return Daemon(reactor, path, config, options.log)


def _verify(config: Config) -> NoReturn:
    """Print the report of the blob space, and exit: 0 if nothing is damaged."""
    from blobserve.daemon.fsck_report import verified

    try:
        lines, is_good = verified(config.blob_space, config.limits)
    except (SpaceUnusable, OSError) as error:
        raise SystemExit(f"cannot verify: {error}") from error
    print("\n".join(lines))
    raise SystemExit(0 if is_good else 1)


def _check_image(config: Config, image: str) -> NoReturn:
    """Print the report about the hosting rules of an image, and exit: 0 if it has no problem."""
    # Imported late: by now twist has installed the reactor of its options.
    from blobserve.daemon.rule_check import rule_report

    async def check(reactor: Any) -> None:
        try:
            report = await rule_report(reactor, config, image)
        except BlobserveError as error:
            print(f"cannot check {image}: {error}", file=sys.stderr)
            raise SystemExit(1) from error
        print("\n".join(report.summary))
        for problem in report.problems:
            print(problem, file=sys.stderr)
        raise SystemExit(1 if report.problems else 0)

    react(lambda reactor: Deferred.fromCoroutine(check(reactor)))
    raise SystemExit(0)  # `react` has exited.


def _configuration(path: Path) -> Config:
    config = load(path)
    return config if config.listen else attrs.evolve(config, listen=DEFAULT_LISTEN)


class Daemon(MultiService):
    """A blobserve service with a process of its own."""

    def __init__(self, reactor: Any, path: Path, config: Config, log: LineLogObserver) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        _use_monotonic_clock(reactor)
        # Modules stay for ever. Searching them for garbage would take a tenth of the start.
        with _without_collections():
            # Imported late: `--check` and `--help` are fast without it.
            from blobserve.service import Blobserve

            self._blobserve = Blobserve(reactor, config)
        _raise_descriptor_limit()
        self._reactor = reactor
        self._path = path
        self._logged = log
        self._blobserve.setServiceParent(self)  # type: ignore[no-untyped-call]
        self._reloading = DeferredLock()
        self._reading = OwnThreads(reactor, 1, "blobserve-reload", is_awaited=False)
        self._watchdog = LoopingCall(notify, "WATCHDOG=1")
        self._watchdog.clock = reactor

    def startService(self) -> None:
        """Start the service, and handle signals."""
        super().startService()  # type: ignore[no-untyped-call]
        self._reading.start()
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._reload))
        started = self._blobserve.when_started()
        started.addCallbacks(lambda _: self._started(), self._failed)
        self._blobserve.when_lost().addErrback(self._failed)

    def stopService(self) -> Deferred[Any]:
        """Notify systemd, and drain."""
        notify("STOPPING=1")
        self._reading.stop()
        return super().stopService()  # type: ignore[no-any-return, no-untyped-call]

    def _started(self) -> None:
        # Objects of the start stay for ever. Without freezing them, each full garbage collection
        # would stop all threads for more than 20 ms. One collection before would take as long, and
        # find nearly nothing.
        gc.freeze()
        notify("READY=1")
        interval = watchdog_interval()
        if interval is not None:
            self._watchdog.start(interval)
        for line in announcement(self._blobserve.config, self._blobserve.addresses):
            # twist redirects sys.stdout to its log.
            print(line, file=sys.__stdout__, flush=True)

    def _failed(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return  # Stopped before the start was complete: this is a normal end.
        if failure.check(BlobserveError, OSError):
            print(f"blobserve: {failure.value}", file=sys.__stderr__, flush=True)
        else:
            _log.failure("blobserve cannot start", failure=failure)
        # twist always exits with 0, and a reactor does not pass SystemExit on.
        self._reactor.addSystemEventTrigger("after", "shutdown", os._exit, 1)
        # A start can fail before the reactor runs.
        self._reactor.callWhenRunning(self._reactor.stop)

    def _reload(self) -> None:
        self._logged.reopen()
        self._blobserve.reopen_logs()
        # One at a time, or an older configuration could overtake a newer one.
        self._reloading.run(lambda: Deferred.fromCoroutine(self._read_again()))

    async def _read_again(self) -> None:
        notify("RELOADING=1")
        try:
            # In a thread: reading a thousand repositories would delay requests.
            self._blobserve.reload(await self._reading.run(_configuration, self._path))
        except ConfigError as error:
            for problem in error.problems:
                _log.error("configuration not loaded: {problem}", problem=problem)
        else:
            _log.info("configuration loaded: {path}", path=str(self._path))
        notify("READY=1")


@contextmanager
def _without_collections() -> Iterator[None]:
    """Collect no garbage during the context."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _use_monotonic_clock(reactor: Any) -> None:
    """Make a reactor use a monotonic clock. No call may be scheduled on it before.

    Twisted uses the time of day. If that is set back by an hour, no timer fires for an hour, and
    systemd kills the server because its watchdog gets no message.
    """
    reactor.seconds = time.monotonic


def _raise_descriptor_limit() -> None:
    """Raise the limit of file descriptors; the soft limit is low only because of select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def announcement(config: Config, addresses: list[IAddress]) -> list[str]:
    """Return the lines to print after the start: the addresses, and URLs of pages.

    The sites come first. A page by path follows if a repository has a tag that is pulled at start.
    """
    lines = [f"listening on {_authority(each) or each}" for each in addresses]
    found = [(index, host) for index, each in enumerate(addresses) if (host := _authority(each))]
    if found:
        index, authority = found[0]
        # One description can have several sockets of systemd. Their scheme is not known.
        is_tls = len(config.listen) == len(addresses) and config.listen[index].startswith("ssl:")
        lines += _pages(config, "https" if is_tls else "http", authority)
    return [f"blobserve: {line}" for line in lines]


def _pages(config: Config, scheme: str, authority: str) -> list[str]:
    """Return URLs of pages, on a server with this host and port."""
    _, _, port = authority.rpartition(":")
    end = "" if port == _DEFAULT_PORTS[scheme] else f":{port}"
    here = authority.removesuffix(f":{port}") + end
    # The host of a preview depends on a tag, and a site with `redirect` has no page.
    sites = [
        f"{scheme}://{here if each.host == '*' else each.host + end}{quote(each.prefix)}/"
        for each in config.sites.values()
        if each.image and not each.host.startswith("*.")
    ]
    shown = sites[:_MOST_SITES]
    if len(sites) > _MOST_SITES:
        shown.append(f"and {len(sites) - _MOST_SITES} more sites")
    by_path = (f"{key}:{each.pre_pull[0]}" for key, each in config.repos.items() if each.pre_pull)
    return shown + [f"{scheme}://{here}/{name}/" for name in islice(by_path, 1)]


def _authority(address: IAddress) -> str | None:
    if not isinstance(address, (IPv4Address, IPv6Address)):
        return None
    host = _EVERYWHERE.get(address.host, address.host)
    return f"[{host}]:{address.port}" if ":" in host else f"{host}:{address.port}"
