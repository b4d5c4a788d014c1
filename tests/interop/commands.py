"""Commands of builders, run as the ordinary user, with their errors in the exception."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.support.parts.programs import ordinary_user, program

LONGEST = 300.0
"""The time in seconds that one command may take."""


class CommandFailed(Exception):
    """A command failed; the text has the end of its output."""


def command(
    *arguments: str | Path,
    directory: Path,
    environment: Mapping[str, str] = {},
    user: Mapping[str, object] | None = None,
    longest: float = LONGEST,
) -> str:
    """Run a command in `directory`, which is its home too; return its standard output.

    :param user: arguments for `subprocess` that choose the user; the ordinary user without them.
    :raises CommandFailed: if it failed or took too long.
    """
    try:
        done = subprocess.run(
            [program(str(arguments[0])), *map(str, arguments[1:])],
            cwd=directory,
            env={
                **os.environ,
                "HOME": str(directory),
                "XDG_RUNTIME_DIR": str(directory),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=longest,
            check=False,
            **(ordinary_user() if user is None else user),  # type: ignore[call-overload]
        )
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"{arguments[0]} took more than {longest:g} s") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-1000:]
        raise CommandFailed(f"{arguments[0]} ended with {done.returncode}: {said}")
    return done.stdout


def package_version(package: str) -> str:
    """Return the version of an installed Debian package."""
    program(package)
    return command("dpkg-query", "-f", "${Version}", "-W", package, directory=Path("/"))
