"""Sockets that systemd passes to this process, as Twisted endpoint descriptions.

See sd_listen_fds(3).
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping

_BY_NAME = re.compile(r"systemd:domain=[A-Z0-9]+:name=(.+)")
_FIRST_DESCRIPTOR = 3


def by_index(description: str, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return an endpoint description for each socket that `description` names.

    systemd may pass several sockets under one name, and Twisted takes only the last of them. So
    ``systemd:...:name=X`` becomes ``systemd:...:index=N`` for each, with the domain that the socket
    has. Any other description is returned unchanged, and so is one with an unknown name.
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
