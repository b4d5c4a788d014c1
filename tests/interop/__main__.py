"""Run every builder and every registry against blobserve, and write docs/compatibility.md.

``python -m tests.interop`` needs the Debian packages that `.ci/run` installs, and besides them
`go` 1.26, `mvn`, and access to Go modules and Maven packages. It takes some five minutes, and up to
half an hour if no Go program is built yet. It ends with 1 and leaves the page as it is if a cell
failed.

``--programs DIR`` keeps the Go programs in DIR for the next run. Names select builders and
registries, and then nothing is written.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.interop import builders, pinned_builders, registries
from tests.interop.behaviours import BEHAVIOURS, Behaviour
from tests.interop.builders import Builder, served
from tests.interop.commands import CommandFailed
from tests.interop.matrix import PASS, Line, Matrix, Result
from tests.interop.modules import install
from tests.interop.registries import Kind
from tests.interop.site import ROWS
from tests.support.parts.server import ROOT

PAGE = ROOT / "docs" / "compatibility.md"
BUILDERS = (*builders.DEBIAN, *pinned_builders.PINNED)
REGISTRIES = (registries.DEBIAN, *registries.PINNED)

TEXT = """\
# Compatibility

`python -m tests.interop` wrote this page on {date}; do not edit it by hand. Each cell is a test of
a real program against a real blobserve process. The versions are those of the Debian package, the
Go module or the Maven plugin.

## Builders

Each builder packs the same site. The [README](../README.md#push-a-site-as-an-image) has a command
for each tool, and `tests/interop/` has the commands of all rows. PASS means that blobserve serves
every file of this kind with its original bytes, both whole and as a range from the middle to the
end. For an empty folder, PASS means that its URL without a final slash redirects to the URL with
one.

{builders}
## Registries

blobserve pulls through a relay, which records the requests and can cut a transfer. There is no row
for referrers, because blobserve never asks for them.

{registries}"""


def attempt(check: Callable[[], None]) -> Result:
    """Return the result of a check."""
    try:
        check()
    except (Exception, pytest.fail.Exception, pytest.skip.Exception) as error:  # noqa: BLE001
        return Result("FAIL", f"{type(error).__name__}: {error}"[:500])
    return PASS


def built(builder: Builder) -> Line:
    """Return the results of one builder in all rows of the site."""
    results: tuple[Result, ...] = ()

    def run() -> None:
        nonlocal results
        with served(builder) as (server, base):
            for row in ROWS:
                reason = builder.omits.get(row.name, "")
                check = row.check_omitted if reason else row.check
                result = attempt(lambda check=check: check(server, base))  # type: ignore[misc]
                if reason and result == PASS:
                    result = Result("not applicable", reason)
                results += (result,)

    failed = attempt(run)
    if failed != PASS:
        results = (failed,) * len(ROWS)
    return Line(f"{builder.tool} {version(builder)}, {builder.way}", results)


def behaved(kind: Kind) -> Line:
    """Return the results of one registry in all behaviours."""
    results = tuple(behaves(kind, each) for each in BEHAVIOURS)
    return Line(f"{kind.name} {version(kind)}", results)


def behaves(kind: Kind, behaviour: Behaviour) -> Result:
    """Return the result of one behaviour of a registry."""
    if behaviour.needs_authentication and not kind.has_authentication:
        return Result("not applicable", "this registry has no authentication")
    return attempt(lambda: behaviour.check(kind))


def version(part: Builder | Kind) -> str:
    """Return the version of a part, or "not installed"."""
    try:
        return part.version()
    except (CommandFailed, pytest.skip.Exception):
        return "not installed"


def wanted(name: str, names: Sequence[str]) -> bool:
    """Return whether `name` begins with one of `names`, or there are none."""
    return not names or name.startswith(tuple(names))


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.interop", description=__doc__)
    parser.add_argument("names", nargs="*", help="builders and registries; all without a name")
    parser.add_argument("--programs", type=Path, help="directory that keeps the Go programs")
    options = parser.parse_args(arguments)
    os.environ["OTEL_TRACES_EXPORTER"] = "none"  # else distribution looks for a collector
    with tempfile.TemporaryDirectory(prefix="blobserve-programs-") as temporary:
        programs = (options.programs or Path(temporary)).resolve()
        programs.mkdir(parents=True, exist_ok=True)
        programs.chmod(0o755)
        install(programs)
        files = Matrix(
            "builder",
            tuple(row.name for row in ROWS),
            tuple(built(each) for each in BUILDERS if wanted(each.name, options.names)),
        )
        behaviours = Matrix(
            "registry",
            tuple(each.name for each in BEHAVIOURS),
            tuple(behaved(each) for each in REGISTRIES if wanted(each.name, options.names)),
        ).turned("behaviour")
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    text = TEXT.format(date=today, builders=files.markdown(), registries=behaviours.markdown())
    print(text)
    failures = [*files.failures, *behaviours.failures]
    for failure in failures:
        print(f"FAIL {failure}", file=sys.stderr)
    if not failures and not options.names:
        PAGE.write_text(text)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
