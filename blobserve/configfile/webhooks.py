"""The mapping ``webhooks``: the places of notifications, and the file with their secrets."""

from __future__ import annotations

import re
from pathlib import Path

from blobserve.config import WebhookRules
from blobserve.configfile import scalars
from blobserve.configfile.schema import ConfigValue, Keys, Parser, attributes
from blobserve.configfile.secret_file import read_secrets

_SEGMENT = r"[A-Za-z0-9._~!$&'()*+,;=:@-]+"
_PLACE = re.compile(rf"(?:/{_SEGMENT})+")

_NO_PLACE = "without listen and path, only an embedding application can take notifications"


def rules(keys: Keys) -> Parser[WebhookRules]:
    """Return the parser of the mapping; it warns if no registry can reach a place."""

    def read(value: ConfigValue) -> WebhookRules:
        found = WebhookRules(**attributes(value, keys, ("secretFile",)))
        if not found.listen and found.path is None:
            value.document.warnings.append(value.message(_NO_PLACE))
        return found

    return read


def place(value: ConfigValue) -> str:
    """Return the path of notifications on the main listeners."""
    written = scalars.filled(value)
    if not written.startswith("/"):
        raise value.wrong("expected a path that begins with /")
    if written == "/":
        raise value.wrong("it would hide every site: choose a path such as /-/hooks")
    if written.endswith("/"):
        raise value.wrong(f"expected a path without / at its end: write {written.rstrip('/')}")
    segments = written.split("/")
    if not _PLACE.fullmatch(written) or "." in segments or ".." in segments:
        raise value.wrong("expected a plain path such as /-/hooks, without query and encoding")
    return written


def secret_file(value: ConfigValue) -> Path:
    """Return the path of the file with the secrets.

    A file that is missing or unsafe is a warning: it is read again when it changes.
    """
    path = scalars.path(value)
    if problem := read_secrets(path).problem:
        value.document.warnings.append(value.message(problem))
    return path
