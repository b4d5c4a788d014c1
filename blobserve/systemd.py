"""The protocols of systemd: states that it is told (sd_notify(3)), sockets that it passes
(sd_listen_fds(3))."""

from __future__ import annotations

import os
import re
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


_BY_NAME = re.compile(r"systemd:domain=[A-Z0-9]+:name=(.+)")
_FIRST_DESCRIPTOR = 3


def by_index(description: str, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return an endpoint description for each socket that `description` names.

    systemd may pass several sockets under one name, and Twisted takes only the last of them. So
    ``systemd:...:name=X`` becomes ``systemd:...:index=N`` for each, with the domain that the socket
    has. Any other description comes back alone, and so does a name that no socket has.
    """
    found = _BY_NAME.fullmatch(description)
    # Twisted removes LISTEN_PID when it takes the sockets, and leaves LISTEN_FDNAMES.
    own = str(os.getpid())
    if found is None or environ.get("LISTEN_PID", own) != own:
        return (description,)
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    return tuple(
        f"systemd:domain={_domain(_FIRST_DESCRIPTOR + index)}:index={index}"
        for index, name in enumerate(names)
        if name == found[1]
    ) or (description,)


def _domain(descriptor: int) -> str:
    """Return the address family of an open socket, as in ``AF_<family>``."""
    with socket.socket(fileno=os.dup(descriptor)) as passed:
        return passed.family.name.removeprefix("AF_")
