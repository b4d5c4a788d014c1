"""blobserve: serve the files of OCI image layers over HTTP.

`Blobserve` is the service, for applications that embed it; it gives an `ImageLease` on the files of
an image. `load` reads a configuration into a `Config`. They are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blobserve.config import Config
    from blobserve.configfile import load
    from blobserve.image_lease import ImageLease
    from blobserve.service import Blobserve

__all__ = ["Blobserve", "Config", "ImageLease", "load"]

_HOMES = {
    "Blobserve": "blobserve.service",
    "Config": "blobserve.config",
    "ImageLease": "blobserve.image_lease",
    "load": "blobserve.configfile",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
