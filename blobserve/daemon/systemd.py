"""States that systemd is told: ready, stopping, alive. See sd_notify(3). Silent without systemd."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


def notify(state: str, environ: Mapping[str, str] = os.environ) -> None:
    """Send lines such as ``READY=1`` to whoever started this process and wants to know."""
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
            return  # nothing of this server depends on being heard


def watchdog_interval(environ: Mapping[str, str] = os.environ) -> float | None:
    """Seconds between signs of life that systemd asks of this process: half of its patience."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 2e6 if microseconds.isdecimal() and int(microseconds) else None
