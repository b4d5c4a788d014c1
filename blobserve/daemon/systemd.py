"""State notifications for systemd: sd_notify(3). Without systemd they do nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


def notify(state: str, environ: Mapping[str, str] = os.environ) -> None:
    """Send lines such as ``READY=1`` to the service manager, if it set a socket for them."""
    name = environ.get("NOTIFY_SOCKET", "")
    if not name:
        return
    # An at sign stands for the NUL byte of the abstract name space, unix(7).
    address = "\0" + name[1:] if name.startswith("@") else name
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        out.setblocking(False)
        try:
            out.sendto(state.encode(), address)
        except OSError:
            return  # The server does not depend on notifications.


def watchdog_interval(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return the seconds between watchdog notifications: half of systemd's timeout."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 2e6 if microseconds.isdecimal() and int(microseconds) else None
