"""`python -m blobserve` does the same as `twist blobserve`, in its own process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.parts.programs import answers, end, free_port, wait_until
from tests.support.parts.server import ROOT

MODULE = (sys.executable, "-m", "blobserve")
TWIST = (str(Path(sys.executable).with_name("twist")), "blobserve")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def run(command: tuple[str, ...], *arguments: str) -> tuple[int, str, str]:
    """Run a command to its end; return its exit code, its output and its errors."""
    done = subprocess.run(
        [*command, *arguments],
        cwd="/",
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--config", str(ROOT / "etc" / "blobserve.yaml"), "--check"), 0),
        (("--config", "/nowhere.yaml", "--check"), 1),
        (("--help",), 0),
        ((), 64),
        (("--unknown",), 64),
    ],
)
def test_it_says_and_ends_as_twist_does(arguments: tuple[str, ...], code: int) -> None:
    """A run that serves nothing has the same output and exit code."""
    by_module, by_twist = run(MODULE, *arguments), run(TWIST, *arguments)
    assert by_module == by_twist
    assert by_module[0] == code


def test_help_names_the_options() -> None:
    """`--help` shows the options of blobserve, without a list of Twisted's plugins."""
    code, output, _ = run(MODULE, "--help")
    assert code == 0
    assert "--config=" in output
    assert "--check" in output
    assert "Commands:" not in output


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start a server by `python -m blobserve`; return it and its port."""
    port, output = free_port(), tmp_path / "output"
    config = tmp_path / "b.yaml"
    config.write_text(
        "blobserve:\n"
        f'  listen: ["tcp:{port}:interface=127.0.0.1"]\n'
        f"  blobSpace: {{location: {tmp_path / 'space'}}}\n"
        f"  repos: {{blobserve.example/site: {{source: 'oci:{ROOT / 'etc' / 'example'}'}}}}\n"
    )
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*MODULE, "--config", str(config)],
            cwd="/",
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:
        wait_until(lambda: answers(port), process, output)
        yield process, port
    finally:
        end(process)


def test_it_serves_and_drains(started: tuple[subprocess.Popen[bytes], int]) -> None:
    """The server serves a page of the example image, and a signal ends it as it ends twist."""
    process, port = started
    url = f"http://127.0.0.1:{port}/blobserve.example/site:v1/"
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert answer.status == 200
        assert b"<html" in answer.read()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == -signal.SIGTERM
