"""Secrets of webhooks: the credentials of a request, and the file that they are compared with."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from blobserve.concurrency.threads import Threads
from blobserve.configfile.secret_file import SecretLines, read_secrets
from blobserve.web.http.conditional import Fields

_EVERY = 1.0
"""Seconds between two looks at the file."""

_BEARER = b"bearer "
_SIGNATURE = b"sha256="

_log = Logger()


@attrs.frozen
class HookCredentials:
    """The credentials that a request shows."""

    words: tuple[bytes, ...] = attrs.field(repr=False)
    """Texts that may be a secret."""
    signature: bytes | None = attrs.field(default=None, repr=False)
    """The hexadecimal HMAC of the body, if the request has one."""

    @classmethod
    def of(cls, fields: Fields, last_segment: bytes) -> HookCredentials:
        """Return the credentials in the header fields and at the end of the path."""
        words = [last_segment] if last_segment else []
        authorization = fields.get(b"authorization", b"").strip()
        if authorization:
            words.append(authorization)
            if authorization[: len(_BEARER)].lower() == _BEARER:
                words.append(authorization[len(_BEARER) :].strip())
        signature = fields.get(b"x-hub-signature-256", b"").strip()
        is_signed = signature.startswith(_SIGNATURE)
        return cls(tuple(words), signature[len(_SIGNATURE) :].lower() if is_signed else None)


class Secrets:
    """The valid secrets. Comparisons take the same time for each text of a length."""

    def __init__(self, secrets: Sequence[bytes] = ()) -> None:
        self._secrets = tuple(secrets)
        # The digests have one length, so not even the length of a secret shows.
        self._salt = os.urandom(16)
        self._digests = [self._digest(secret) for secret in secrets]

    def has_any(self, words: Sequence[bytes]) -> bool:
        """Return whether a text is a secret."""
        found = False
        for word in words:
            digest = self._digest(word)
            for each in self._digests:
                found |= hmac.compare_digest(digest, each)
        return found

    def has_signed(self, signature: bytes, body: bytes) -> bool:
        """Return whether a signature is the HMAC-SHA256 of the body under a secret."""
        found = False
        for secret in self._secrets:
            expected = hmac.new(secret, body, hashlib.sha256).hexdigest().encode()
            found |= hmac.compare_digest(signature, expected)
        return found

    def _digest(self, word: bytes) -> bytes:
        return hashlib.blake2b(word, key=self._salt).digest()


class SecretFile:
    """The secrets of one file, which is read again when it has changed.

    Threads look at the file once a second.
    """

    def __init__(self, threads: Threads, reactor: IReactorTime) -> None:
        self.secrets = Secrets()
        """The secrets that are valid now."""
        self._threads = threads
        self._reactor = reactor
        self._path: Path | None = None
        self._seen: object = None
        self._timer: IDelayedCall | None = None
        self._is_stopped = False

    def follow(self, path: Path | None) -> Deferred[None]:
        """Use the secrets of this file from now on; None: there are none.

        Return a Deferred that fires when the file has been read.
        """
        self._cancel()
        if path != self._path:
            self._path, self._seen = path, None
        if path is None:
            self.secrets = Secrets()
        return Deferred.fromCoroutine(self._look(path))

    def stop(self) -> None:
        """End the looks at the file for good."""
        self._is_stopped = True
        self._cancel()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _look(self, path: Path | None) -> None:
        if path is None:
            return
        seen, lines = await self._threads.run(_read_if_changed, path, self._seen)
        if path != self._path:
            return  # Another file is used by now.
        if lines is not None:
            is_first, self._seen = self._seen is None, seen
            self.secrets = Secrets(lines.secrets)
            # The first problem is one of the configuration's warnings.
            if lines.problem and not is_first:
                _log.warn("webhooks.secretFile: {problem}", problem=lines.problem)
        if self._timer is None and not self._is_stopped:
            self._timer = self._reactor.callLater(_EVERY, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        Deferred.fromCoroutine(self._look(self._path)).addErrback(_log_failure)


def _read_if_changed(path: Path, seen: object) -> tuple[object, SecretLines | None]:
    """Return the state of a file, and its content unless that state was seen before."""
    state: tuple[object, ...]
    try:
        status = path.stat()
        state = (
            status.st_dev,
            status.st_ino,
            status.st_mode,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )
    except OSError as error:
        state = ("error", error.errno)
    return (state, None) if state == seen else (state, read_secrets(path))


def _log_failure(why: Any) -> None:
    _log.failure("cannot read the secrets of webhooks", why)
