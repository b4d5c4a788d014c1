"""The units for systemd, checked by systemd."""

from __future__ import annotations

import ipaddress
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.parts.programs import program

ETC = Path(__file__).resolve().parents[2] / "etc"


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """Copy the shipped units, with a program that exists on this machine."""
    service = (ETC / "blobserve.service").read_text()
    installed = service.replace("/opt/blobserve/bin/twist", program("true"))
    assert installed != service
    (tmp_path / "blobserve.service").write_text(installed)
    (tmp_path / "blobserve.socket").write_text((ETC / "blobserve.socket").read_text())
    return [tmp_path / "blobserve.service", tmp_path / "blobserve.socket"]


def analyze(*arguments: str | Path) -> str:
    """Run `systemd-analyze`; return its output and fail on an error."""
    return subprocess.run(
        [program("systemd-analyze"), *arguments],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        text=True,
    ).stdout


def test_the_units_are_understood(units: list[Path]) -> None:
    """systemd understands every line of the shipped units."""
    assert analyze("verify", "--man=no", *units) == ""


@pytest.mark.parametrize("choice", ["IPAddressDeny", "MemoryMax", "TasksMax"])
def test_the_choices_are_understood(units: list[Path], choice: str) -> None:
    """Each commented choice of the service is off, and systemd understands it when it is on."""
    service = units[0].read_text()
    [line] = re.findall(rf"^#?{choice}=.*$", service, re.MULTILINE)
    assert line.startswith("#")
    units[0].write_text(service.replace(line, line[1:]))
    assert analyze("verify", "--man=no", *units) == ""


def test_link_local_addresses_can_be_denied() -> None:
    """The commented IPAddressDeny has the link-local networks of IPv4 and IPv6, and no other."""
    [networks] = re.findall(r"^#IPAddressDeny=(.*)$", (ETC / "blobserve.service").read_text(), re.M)
    found = [ipaddress.ip_network(each) for each in networks.split()]
    assert all(each.is_link_local for each in found)
    assert ipaddress.ip_address("169.254.169.254") in found[0]
    assert {each.version for each in found} == {4, 6}


def test_the_service_is_hardened(units: list[Path]) -> None:
    """The exposure of the service is at most 1.5 of 10 by systemd's own measure."""
    said = analyze("security", "--offline=true", "--threshold=15", units[0])
    assert re.search(r"exposure level for blobserve.service: [01]\.\d", said)


def test_the_service_waits_longer_than_a_drain() -> None:
    """systemd waits longer for a stopping server than the default drainTimeout."""
    found = re.search(r"^TimeoutStopSec=(\d+)s$", (ETC / "blobserve.service").read_text(), re.M)
    assert found is not None
    assert int(found[1]) > 30


def test_the_socket_has_the_name_that_the_configuration_uses() -> None:
    """The shipped configuration and the socket unit name the same socket."""
    socket = (ETC / "blobserve.socket").read_text()
    assert "FileDescriptorName=blobserve\n" in socket
    assert "systemd:domain=INET:name=blobserve" in (ETC / "blobserve.yaml").read_text()
