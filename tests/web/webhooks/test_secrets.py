"""Secrets of webhooks: credentials, comparisons, and the file that is read again."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from blobserve.configfile.secret_file import read_secrets
from blobserve.testing import InlineThreads
from blobserve.web.webhooks.secrets import HookCredentials, SecretFile, Secrets


def signed(secret: bytes, body: bytes) -> bytes:
    """Return the value of X-Hub-Signature-256."""
    return b"sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest().encode()


@pytest.mark.parametrize(
    ("authorization", "segment", "valid"),
    [
        (b"Bearer one", b"", True),
        (b"bearer   one ", b"", True),
        (b"one", b"", True),
        (b"", b"one", True),
        (b"wrong", b"two", True),
        (b"Bearer two", b"hooks", True),
        (b"", b"", False),
        (b"Bearer ", b"", False),
        (b"Bearer", b"", False),
        (b"Basic one", b"", False),
        (b"on", b"onee", False),
        (b"Bearer One", b"", False),
    ],
)
def test_words(authorization: bytes, segment: bytes, valid: bool) -> None:
    """A bearer token, a bare Authorization and the last segment may each be a secret."""
    shown = HookCredentials.of({b"authorization": authorization}, segment)
    assert Secrets([b"one", b"two"]).has_any(shown.words) is valid
    assert shown.signature is None
    assert not Secrets().has_any(shown.words)


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        (signed(b"two", b"body"), True),
        (signed(b"two", b"body").upper().replace(b"SHA", b"sha"), True),
        (signed(b"three", b"body"), False),
        (signed(b"two", b"other"), False),
        (b"sha256=", False),
        (b"sha256=\xff", False),
        (b"sha1=00", None),
        (b"", None),
    ],
)
def test_signature(value: bytes, valid: bool | None) -> None:
    """The signature is the HMAC-SHA256 of the body under one of the secrets."""
    shown = HookCredentials.of({b"x-hub-signature-256": value}, b"")
    assert (shown.signature is None) is (valid is None)
    if shown.signature is not None:
        assert Secrets([b"one", b"two"]).has_signed(shown.signature, b"body") is valid


def test_nothing_shown() -> None:
    """Neither secrets nor credentials appear when objects are printed."""
    fields = {b"authorization": b"geheim", b"x-hub-signature-256": b"sha256=0815"}
    shown = HookCredentials.of(fields, b"")
    assert "geheim" not in repr(shown)
    assert "0815" not in repr(shown)
    assert "geheim" not in repr(Secrets([b"geheim"]))


def write(path: Path, content: str, mode: int = 0o600) -> Path:
    """Write a file of secrets."""
    path.write_text(content)
    path.chmod(mode)
    return path


def test_lines(tmp_path: Path) -> None:
    """Each line is a secret; blanks around it and empty lines do not count."""
    lines = read_secrets(write(tmp_path / "s", "one\r\n\n  two \n"))
    assert (lines.secrets, lines.problem) == ((b"one", b"two"), None)


@pytest.mark.parametrize(
    ("content", "mode", "problem"),
    [
        (None, 0, "cannot read {}: No such file or directory"),
        ("", 0o600, "{} has no secret"),
        ("\n \n", 0o600, "{} has no secret"),
        ("x" * 70_000, 0o600, "{} is larger than 64 KiB"),
        ("one", 0o644, "{} is open to every user (chmod o-rw)"),
        ("one", 0o640, None),
    ],
)
def test_problems(tmp_path: Path, content: str | None, mode: int, problem: str | None) -> None:
    """A file that is missing, empty, too large or open to every user is reported."""
    path = tmp_path / "s"
    if content is not None:
        write(path, content, mode)
    assert read_secrets(path).problem == (problem and problem.format(path))


def test_no_file(tmp_path: Path) -> None:
    """A directory or a pipe is no file of secrets, and is not waited for."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        assert read_secrets(path).problem == f"{path} is not a file"


def test_read_again(tmp_path: Path) -> None:
    """The file is read again a second after it changed, also when it was replaced or missing."""
    path, clock = tmp_path / "s", Clock()
    file = SecretFile(InlineThreads(), clock)
    file.follow(path)
    assert not file.secrets.has_any([b"one"])
    write(path, "one\n")
    clock.advance(1)
    assert file.secrets.has_any([b"one"])
    before = file.secrets
    clock.advance(1)
    assert file.secrets is before
    write(tmp_path / "new", "two\n").rename(path)
    clock.advance(1)
    assert file.secrets.has_any([b"two"])
    assert not file.secrets.has_any([b"one"])
    path.unlink()
    clock.advance(1)
    assert not file.secrets.has_any([b"two"])
    file.stop()
    assert not clock.getDelayedCalls()


def test_another_file(tmp_path: Path) -> None:
    """A reload uses the secrets of another file, or none, at once."""
    clock = Clock()
    file = SecretFile(InlineThreads(), clock)
    file.follow(write(tmp_path / "a", "one"))
    file.follow(write(tmp_path / "b", "two"))
    assert file.secrets.has_any([b"two"])
    assert not file.secrets.has_any([b"one"])
    assert len(clock.getDelayedCalls()) == 1
    file.follow(None)
    assert not file.secrets.has_any([b"two"])
    assert not clock.getDelayedCalls()
