"""`twist blobserve`: the process around the service.

Options, signals, systemd, the log, and what is printed. An embedding application needs none of it.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import attrs
from twisted.application.service import IService, MultiService
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.interfaces import IAddress
from twisted.internet.task import LoopingCall
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

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}

_NO_CONFIG = "Name the configuration: --config FILE"

_log = Logger()


class Options(UsageOptions):
    """The command line of `twist blobserve`."""

    synopsis = "[options]"
    longdesc = (
        "Serves single files out of container image layers over HTTP. SIGHUP reads the"
        " configuration again, SIGTERM finishes what is being sent and ends. The log is lines of"
        " text on standard error, or in the file that twist's --log-file names."
    )
    optParameters = [["config", "c", None, "The configuration file, see etc/blobserve.yaml."]]  # noqa: N815, RUF012
    optFlags = [  # noqa: N815, RUF012
        ["check", None, "Only say whether the configuration can be used."],
        ["verify", None, "Only read and hash the whole blob space, and say what is damaged."],
    ]

    def parseArgs(self, *arguments: str) -> None:
        """Take nothing but options."""
        if arguments:
            raise UsageError(f"no option: {arguments[0]!r}. {_NO_CONFIG}")

    def postOptions(self) -> None:
        """Hold that there is a file to read, and have twist log as we do."""
        if not self["config"]:
            raise UsageError(_NO_CONFIG)
        twist: dict[str, Any] = self.parent or {}
        file: Any = twist.get("logFile", sys.stdout)
        self.log = LineLogObserver(sys.stderr if file is sys.stdout else file)
        twist["fileLogObserverFactory"] = lambda _file: self.log


def makeService(options: Options) -> IService:
    """The service that `twist` runs; ends the process if there is nothing to be run."""
    path = Path(options["config"])
    try:
        config = _configuration(path)
    except ConfigError as error:
        raise SystemExit(str(error)) from error
    if options["check"]:
        for warning in config.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        print(f"{path}: valid")
        raise SystemExit(0)
    if options["verify"]:
        _verify(config)
    # Only now: twist has installed the reactor that it was told to.
    from twisted.internet import reactor  # noqa: TID251

    return Daemon(reactor, path, config, options.log)


def _verify(config: Config) -> NoReturn:
    """Print what there is to say of the blob space, and end with 0 if that is good."""
    from blobserve.daemon.fsck_report import verified

    try:
        lines, is_good = verified(config.blob_space, config.limits)
    except (SpaceUnusable, OSError) as error:
        raise SystemExit(f"cannot verify: {error}") from error
    print("\n".join(lines))
    raise SystemExit(0 if is_good else 1)


def _configuration(path: Path) -> Config:
    config = load(path)
    return config if config.listen else attrs.evolve(config, listen=DEFAULT_LISTEN)


class Daemon(MultiService):
    """A blobserve service that has the process to itself."""

    def __init__(self, reactor: Any, path: Path, config: Config, log: LineLogObserver) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Here and not above: `--check` and `--help` should not wait for it.
        from blobserve.service import Blobserve

        _raise_descriptor_limit()
        self._reactor = reactor
        self._path = path
        self._logged = log
        self._blobserve = Blobserve(reactor, config)
        self._blobserve.setServiceParent(self)  # type: ignore[no-untyped-call]
        self._reloading = DeferredLock()
        self._reading = OwnThreads(reactor, 1, "blobserve-reload", is_awaited=False)
        self._watchdog = LoopingCall(notify, "WATCHDOG=1")
        self._watchdog.clock = reactor

    def startService(self) -> None:
        """Start serving, and listen to signals."""
        super().startService()  # type: ignore[no-untyped-call]
        self._reading.start()
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._reload))
        started = self._blobserve.when_started()
        started.addCallbacks(lambda _: self._started(), self._failed)

    def stopService(self) -> Deferred[Any]:
        """Say that the end is near, and drain."""
        notify("STOPPING=1")
        self._reading.stop()
        return super().stopService()  # type: ignore[no-any-return, no-untyped-call]

    def _started(self) -> None:
        # What the process is made of stays. To look it over with everything else, every so often,
        # would halt all threads for more than 20 ms.
        gc.collect()
        gc.freeze()
        notify("READY=1")
        interval = watchdog_interval()
        if interval is not None:
            self._watchdog.start(interval)
        for line in announcement(self._blobserve.config, self._blobserve.addresses):
            # Not sys.stdout, which twist makes a part of its log.
            print(line, file=sys.__stdout__, flush=True)

    def _failed(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return  # told to end before it had begun: it ends as it would have later
        if failure.check(BlobserveError, OSError):
            print(f"blobserve: {failure.value}", file=sys.__stderr__, flush=True)
        else:
            _log.failure("blobserve cannot start", failure=failure)
        # twist ends with 0 whatever happens, and SystemExit does not get out of a reactor.
        self._reactor.addSystemEventTrigger("after", "shutdown", os._exit, 1)
        # A start can fail before the reactor runs.
        self._reactor.callWhenRunning(self._reactor.stop)

    def _reload(self) -> None:
        self._logged.reopen()
        self._blobserve.reopen_logs()
        # One after another, or an older configuration could overtake a newer one.
        self._reloading.run(lambda: Deferred.fromCoroutine(self._read_again()))

    async def _read_again(self) -> None:
        notify("RELOADING=1")
        try:
            # A thousand repositories take longer to read than a request should wait for.
            self._blobserve.reload(await self._reading.run(_configuration, self._path))
        except ConfigError as error:
            for problem in error.problems:
                _log.error("configuration not loaded: {problem}", problem=problem)
        else:
            _log.info("configuration loaded: {path}", path=str(self._path))
        notify("READY=1")


def _raise_descriptor_limit() -> None:
    """Have as many descriptors as we may: the soft limit is low for the sake of select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def announcement(config: Config, addresses: list[IAddress]) -> list[str]:
    """What to print for whoever started this: where it listens, and a page that opens."""
    lines = [f"blobserve: listening on {_authority(each) or each}" for each in addresses]
    pages = [f"{key}:{rules.pre_pull[0]}/" for key, rules in config.repos.items() if rules.pre_pull]
    hosts = [host for each in addresses if (host := _authority(each))]
    if pages and hosts:
        lines.append(f"blobserve: http://{hosts[0]}/{pages[0]}")
    return lines


def _authority(address: IAddress) -> str | None:
    if not isinstance(address, (IPv4Address, IPv6Address)):
        return None
    host = _EVERYWHERE.get(address.host, address.host)
    return f"[{host}]:{address.port}" if ":" in host else f"{host}:{address.port}"
