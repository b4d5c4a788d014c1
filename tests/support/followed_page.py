"""A how-to page that is followed: its files are written and its commands run, in order."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import yaml

from tests.support.parts.programs import Part, answers, end, give_away, ordinary_user, wait_until
from tests.support.parts.server import ROOT
from tests.support.slack import SLACK

HOW_TO = ROOT / "docs" / "how-to"
_PIECE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"`([^`\s]+)`:\s*\Z")
_SERVER = re.compile(r"(twist blobserve --config|python \S+\.py) (\S+)\n")
_ASSIGNED = re.compile(r"([A-Z]\w*)=")
_OWN = re.compile(r"twist|orders\.sock")
"""Commands that run blobserve, or speak to a program that only its user may speak to."""

_COMMAND_TIME = 60 * SLACK

CURL_OPTIONS = f"max-time = {_COMMAND_TIME / 2}\n"
"""Options for each curl of a page: it ends before the time of its command."""


@attrs.frozen
class Block:
    """A block of a page."""

    language: str
    text: str
    name: str
    """The file that the line in front names, such as ```Containerfile`:``; else ""."""


def blocks(page: str) -> Iterator[Block]:
    """Yield the blocks of a page, in order."""
    for found in _PIECE.finditer(page):
        named = _NAME.search(page, 0, found.start())
        yield Block(found["language"], found["text"], named[1] if named else "")


class Follower:
    """A reader who follows a page to the letter, in a directory of the ordinary user.

    Only the names in `replaced` differ: they are replaced wherever the page has them. `settings`
    are merged into each configuration of blobserve, to keep it on loopback.
    """

    def __init__(
        self,
        directory: Path,
        page: str,
        replaced: Mapping[str, str],
        settings: Mapping[str, Any],
        port: int,
        cache: Path,
        insecure: str,
    ) -> None:
        """Prepare the programs that the page runs.

        :param port: the port on which blobserve listens.
        :param cache: the directory for the blob space, owned by the user of this process.
        :param insecure: the registry that container tools may use without TLS.
        """
        self.directory, self.port = directory, port
        text = (HOW_TO / page).read_text()
        for old, new in replaced.items():
            assert old in text, f"{page} does not name {old}"
            text = text.replace(old, new)
        self.blocks = list(blocks(text))
        self._settings = settings
        self._server: subprocess.Popen[bytes] | None = None
        self._parts: list[Part] = []
        self.output = directory / "server.log"
        """The log and the access log of the server."""
        programs = directory / "bin"
        programs.mkdir()
        twist = programs / "twist"
        twist.write_text(f'#!/bin/sh\nexec {sys.executable} -m twisted "$@"\n')
        twist.chmod(0o755)
        registries = f'[[registry]]\nlocation = "{insecure}"\ninsecure = true\n'
        self.write(".config/containers/registries.conf", registries)
        self.write(".curlrc", CURL_OPTIONS)
        self.environment = {
            **os.environ,
            "HOME": str(directory),
            "XDG_RUNTIME_DIR": str(directory),
            "XDG_CACHE_HOME": str(cache),
            "PATH": os.pathsep.join([str(programs), os.environ["PATH"], "/usr/sbin", "/sbin"]),
            "PYTHONPATH": os.pathsep.join(
                [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
            "STORAGE_DRIVER": "vfs",
            "BUILDAH_ISOLATION": "chroot",
        }

    def stop(self) -> None:
        """Stop all that was started."""
        for part in self._parts:
            part.stop()
        self._parts.clear()
        if self._server is not None:
            end(self._server)
            self._server = None

    def start(self, command: Sequence[str], port: int) -> None:
        """Start another program as the ordinary user, and wait until it listens on `port`."""
        part = Part(command, self.directory)
        self._parts.append(part)
        part.start(lambda: answers(port))

    def restart(self) -> None:
        """Start the server again, with an empty blob space."""
        self.stop()
        shutil.rmtree(self.environment["XDG_CACHE_HOME"])
        self._serve(["twist", "blobserve", "--config", "blobserve.yaml"])

    def follow(self, omitted: str = r"\Z\A") -> None:
        """Follow all blocks of the page, except those in which a pattern is found."""
        for block in self.blocks:
            if not re.search(omitted, block.text):
                self.do(block)

    def do(self, block: Block) -> None:
        """Write the file of a block, start its server, or run its commands.

        YAML without a name is an entry of ``sites``, and is checked.
        """
        if block.name == "blobserve.yaml":
            self.write(block.name, yaml.safe_dump(self._on_loopback(yaml.safe_load(block.text))))
        elif block.name:
            self.write(block.name, block.text)
        elif block.language == "console":
            self._compare(block.text)
        elif block.language == "yaml":
            self.write("part.yaml", f"blobserve:\n  sites:\n{block.text}")
            self.shell("twist blobserve --config part.yaml --check")
        elif block.language == "sh":
            if server := _SERVER.fullmatch(block.text):
                self._serve([*server[1].split(), server[2]])
            else:
                self.shell(block.text)

    def write(self, name: str, text: str) -> None:
        """Write a file that the ordinary user owns."""
        file = self.directory / name.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        for made in (file, *file.parents):
            if made.is_relative_to(self.directory):
                give_away(made)

    def shell(self, script: str) -> str:
        """Run commands in the directory; return their standard output.

        :raises AssertionError: if one of them fails.
        """
        done = self._run(["bash", "-euo", "pipefail", "-c", script], subprocess.PIPE)
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _compare(self, session: str) -> None:
        """Run each command of a console session, and compare the text that it prints."""
        for step in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]:
            command, _, expected = step.partition("\n")
            if assigned := _ASSIGNED.match(command):
                name = assigned[1]
                self.environment[name] = self.shell(f'{command}\nprintf %s "${name}"')
                continue
            printed = self._run(["bash", "-c", command], subprocess.STDOUT).stdout
            pattern = re.escape(expected).replace(re.escape("..."), ".*")
            text = f"$ {command}\n{printed}(expected)\n{expected}"
            assert re.fullmatch(pattern, printed.replace("\r", "")), text

    def _run(self, command: list[str], errors: int) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, as the ordinary user unless it is in `_OWN`.

        The ordinary user may not be able to read this checkout.
        """
        return subprocess.run(
            command,
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            timeout=_COMMAND_TIME,
            check=False,
            **({} if _OWN.search(command[-1]) else ordinary_user()),
        )

    def _serve(self, command: list[str]) -> None:
        self.stop()
        if command[0] == "python":
            command = [sys.executable, *command[1:]]
        with self.output.open("ab") as output:
            self._server = subprocess.Popen(
                command,
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        wait_until(lambda: answers(self.port), self._server, self.output)

    def _on_loopback(self, document: dict[str, Any]) -> dict[str, Any]:
        own = document["blobserve"]
        own.pop("port", None)
        own["listen"] = f"tcp:{self.port}:interface=127.0.0.1"
        own.update(self._settings)
        return document
