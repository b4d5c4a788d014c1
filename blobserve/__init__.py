"""blobserve: serve the files of OCI image layers over HTTP.

`Blobserve` is the service, for applications that embed it; `load` reads a configuration into a
`Config`. They are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blobserve.config import Config
    from blobserve.configfile import load
    from blobserve.service import Blobserve

__all__ = ["Blobserve", "Config", "load"]

_HOMES = {
    "Blobserve": "blobserve.service",
    "Config": "blobserve.config",
    "load": "blobserve.configfile",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
