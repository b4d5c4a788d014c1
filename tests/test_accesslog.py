"""The access log: one line per request, whatever clients send."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from pathlib import Path
from typing import Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from blobserve.config import AccessLogRules
from blobserve.web.accesslog import AccessLog, Served, client_address

SERVED = Served(
    time=1_700_000_000.25,
    address="192.0.2.1",
    method=b"GET",
    target=b"/r.example/x:v1/a?b=c",
    version=b"HTTP/1.1",
    status=200,
    sent=1234,
    duration=0.0125,
    cache="hit",
    digest="sha256:" + "0" * 64,
    request_id="id-1",
    referer=None,
    agent=b"curl/8",
)


class Stand:
    """An access log in a directory, and its clock."""

    def __init__(self, directory: Path, form: Literal["text", "json", "off"] = "text") -> None:
        self.clock = Clock()
        self.file = directory / "access.log"
        self.log = AccessLog(AccessLogRules(form, str(self.file)), self.clock)
        self.log.open()

    def lines(self) -> list[str]:
        """What has been written."""
        return self.file.read_text("ascii").splitlines()


def test_a_line_of_text(tmp_path: Path) -> None:
    """A line has what common log readers expect, and duration, cache result, digest and id."""
    stand = Stand(tmp_path)
    stand.log.write(SERVED)
    stand.log.close()
    assert stand.lines() == [
        '192.0.2.1 - - [14/Nov/2023:22:13:20 +0000] "GET /r.example/x:v1/a?b=c HTTP/1.1" 200 1234'
        f' "-" "curl/8" 0.012500 hit sha256:{"0" * 64} id-1'
    ]


def test_a_line_of_json(tmp_path: Path) -> None:
    """As JSON a line is one object with a field for everything."""
    stand = Stand(tmp_path, "json")
    stand.log.write(attrs.evolve(SERVED, agent=b'"\xff\n', digest=None))
    stand.log.close()
    [line] = stand.lines()
    expected = attrs.asdict(SERVED) | {"agent": '"\\xff\n', "digest": None}
    expected |= {"method": "GET", "target": "/r.example/x:v1/a?b=c", "version": "HTTP/1.1"}
    assert json.loads(line) == expected


def test_a_log_that_is_off(tmp_path: Path) -> None:
    """An access log that is off makes no file."""
    stand = Stand(tmp_path, "off")
    stand.log.write(SERVED)
    stand.log.reopen()
    stand.log.close()
    assert not stand.file.exists()


@given(target=st.binary(max_size=60), agent=st.binary(max_size=60))
def test_nothing_a_client_sends_ends_a_line_or_a_field(
    tmp_path_factory: pytest.TempPathFactory, target: bytes, agent: bytes
) -> None:
    """Whatever bytes a client sends, its request is one line with the same number of fields."""
    for form in ("text", "json"):
        stand = Stand(tmp_path_factory.mktemp("log"), form)  # type: ignore[arg-type]
        stand.log.write(attrs.evolve(SERVED, target=target, agent=agent, referer=agent))
        stand.log.close()
        content = stand.file.read_bytes()
        assert re.fullmatch(rb"[\x20-\x7e]*\n", content)
        if form == "text":
            assert content.count(b'"') == 6
            field = content.split(b'"')[5].decode("unicode_escape").encode("latin-1")
            assert field == agent


def test_lines_are_written_within_a_second(tmp_path: Path) -> None:
    """Lines are gathered and written together, a second after the first at the latest."""
    stand = Stand(tmp_path)
    stand.log.write(SERVED)
    stand.clock.advance(0.9)
    stand.log.write(SERVED)
    assert stand.lines() == []
    stand.clock.advance(0.1)
    assert len(stand.lines()) == 2
    assert stand.clock.getDelayedCalls() == []


def test_a_full_buffer_is_written_at_once(tmp_path: Path) -> None:
    """No more than 64 KiB wait to be written."""
    stand = Stand(tmp_path)
    for _ in range(10):
        stand.log.write(attrs.evolve(SERVED, target=b"x" * 10_000))
    assert stand.file.stat().st_size > 65_536
    stand.log.close()
    assert len(stand.lines()) == 10
    assert stand.clock.getDelayedCalls() == []


def test_reopening_follows_a_rotation(tmp_path: Path) -> None:
    """After the file was moved away, a log that is reopened goes on in a new one; none is lost."""
    stand = Stand(tmp_path)
    stand.log.write(SERVED)
    moved = stand.file.rename(tmp_path / "access.log.1")
    stand.log.reopen()
    stand.log.write(SERVED)
    stand.log.close()
    assert len(moved.read_text().splitlines()) == 1
    assert len(stand.lines()) == 1


def test_a_log_that_cannot_be_reopened_goes_on(tmp_path: Path) -> None:
    """When the new file cannot be made, lines go on into the old one."""
    (tmp_path / "d").mkdir()
    stand = Stand(tmp_path / "d")
    moved = (tmp_path / "d").rename(tmp_path / "e")
    stand.log.reopen()
    stand.log.write(SERVED)
    stand.log.close()
    assert len((moved / "access.log").read_text().splitlines()) == 1


def test_a_log_that_cannot_be_opened(tmp_path: Path) -> None:
    """A file that cannot be made is an error before anything is served."""
    log = AccessLog(AccessLogRules("text", str(tmp_path / "none" / "a.log")), Clock())
    with pytest.raises(OSError, match="No such file"):
        log.open()


def test_a_disk_that_is_full_loses_lines_and_nothing_else() -> None:
    """Lines that cannot be written are lost, and writing goes on when it can."""
    clock = Clock()
    log = AccessLog(AccessLogRules("text", "/dev/full"), clock)
    log.open()
    log.write(SERVED)
    clock.advance(1)
    log.write(SERVED)
    log.close()


def test_the_file_is_not_for_everybody(tmp_path: Path) -> None:
    """An access log is made readable by its owner and group alone."""
    previous = os.umask(0)
    try:
        assert Stand(tmp_path).file.stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(previous)


TRUSTED = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.0.2.1", [b"198.51.100.1"], "192.0.2.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [b"198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [b"203.0.113.9, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [b"198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", [b"198.51.100.1", b"10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", [b"203.0.113.9, evil\n, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", [b""], "10.0.0.1"),
        ("10.0.0.1", [b"10.0.0.3"], "10.0.0.3"),
        ("::ffff:10.0.0.1", [b"2001:db8::1"], "2001:db8::1"),
        ("fd00::1", [b"2001:db8::1"], "2001:db8::1"),
        ("-", [b"198.51.100.1"], "-"),
    ],
)
def test_who_asks(peer: str, forwarded: list[bytes], address: str) -> None:
    """X-Forwarded-For is believed as far as proxies that are trusted have written it."""
    assert client_address(peer, forwarded, TRUSTED) == address


def test_nobody_is_trusted_unasked() -> None:
    """Without trustedProxies the header says nothing."""
    assert client_address("10.0.0.1", [b"198.51.100.1"], []) == "10.0.0.1"
