"""Notifications to systemd on a real socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobserve.daemon.systemd import notify, watchdog_interval


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """A socket like that of systemd, and its name in NOTIFY_SOCKET."""
    name = f"@blobserve-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0", 1))
        listening.settimeout(5)
        yield name, listening


def test_systemd_hears_us(listener: tuple[str, socket.socket]) -> None:
    """A state is sent to the socket in NOTIFY_SOCKET."""
    name, listening = listener
    notify("READY=1", {"NOTIFY_SOCKET": name})
    assert listening.recv(100) == b"READY=1"


def test_nobody_needs_to_listen(tmp_path: Path) -> None:
    """Without systemd, or if its socket is gone, a notification does nothing."""
    notify("READY=1", {})
    notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "none")})


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "x"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_the_watchdog_is_fed_twice_in_its_time(
    environ: dict[str, str], seconds: float | None
) -> None:
    """The watchdog is notified twice in the interval of systemd, if it watches this process."""
    assert watchdog_interval(environ) == seconds
