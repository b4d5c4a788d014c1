"""The site that every builder packs: one row for each kind of file, and the check of that row."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import attrs

from tests.support.parts.programs import give_away
from tests.support.parts.server import Server

LINKED_FILE, LINKED_FOLDER = "symbolic link to a file", "symbolic link to a folder"
EMPTY_FOLDER = "empty folder"
"""Names of rows that some builders leave out."""

_NOISE = random.Random(15).randbytes


@attrs.frozen
class Row:
    """One kind of file: its name in the table, and the content that each of its paths has."""

    name: str
    files: Mapping[str, bytes] = attrs.field(repr=False)
    """Contents by path. A path that ends in a slash is an empty folder."""
    links: Mapping[str, str] = {}
    """Targets of symbolic links by the path of the link."""
    hard_links: Mapping[str, str] = {}
    """Paths of other files by the path of the hard link."""
    mode: int = 0o644

    def write(self, site: Path) -> None:
        """Write the files of this row below `site`, for the ordinary user."""
        for link, target in self.links.items():
            (site / link).symlink_to(target)
        for path, content in self.files.items():
            file = site / path
            if any(str(parent) in self.links for parent in (Path(path), *Path(path).parents)):
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            if path in self.hard_links:
                os.link(site / self.hard_links[path], file)
            elif path.endswith("/"):
                file.mkdir()
            else:
                file.write_bytes(content)
                file.chmod(self.mode)

    def check(self, server: Server, base: str) -> None:
        """Check that the server gives every path of this row with the same bytes.

        :param base: the path of the image, such as ``/registry.example.com/team/site:v1``.
        :raises AssertionError: with the path and the difference.
        """
        for path, content in self.files.items():
            target = f"{base}/{quote(path)}"
            if path.endswith("/"):
                answer = server.fetch(target.removesuffix("/"))
                name = quote(Path(path).name)
                assert (answer.status, answer.headers["Location"]) == (301, f"./{name}/"), (
                    f"{path} has status {answer.status}"
                )
                continue
            answer = server.fetch(target)
            assert answer.status == 200, f"{path} has status {answer.status}: {answer.body[:200]!r}"
            assert answer.body == content, f"{path} has other bytes"
            middle = len(content) // 2
            part = server.fetch(target, headers={"Range": f"bytes={middle}-"})
            assert (part.status, part.body) == (206, content[middle:]), f"a range of {path} differs"

    def check_omitted(self, server: Server, base: str) -> None:
        """Check that the image has no path of this row.

        :raises AssertionError: with a path that is served.
        """
        for path in self.files:
            answer = server.fetch(f"{base}/{quote(path.removesuffix('/'))}")
            assert answer.status == 404, (
                f"{path} has status {answer.status}, but is said to be absent"
            )


ROWS = (
    Row(
        "file in a folder", {"index.html": b"<h1>hello</h1>\n", "assets/js/app.js": b"let a = 1\n"}
    ),
    Row(
        "blanks in names",
        {"a page.txt": b"a blank", "two  blanks/ and more .txt": b"many blanks"},
    ),
    Row(
        "Unicode in names",
        {
            "gr\u00fc\u00dfe/\u65e5\u672c\u8a9e.txt": b"composed",
            "e\u0301t\u00e9.txt": b"decomposed",
            "\U0001f600.txt": b"beyond the first plane",
        },
    ),
    Row("`+` in a name", {"a+b.txt": b"plus", "+.txt": b"plus alone"}),
    Row(
        "`%` in a name",
        {"100%.txt": b"per cent", "%41.txt": b"no A", "a%2Fb.txt": b"no slash"},
    ),
    Row("`#` in a name", {"c#.txt": b"number sign", "#.txt": b"number sign alone"}),
    Row("`?` in a name", {"why?.txt": b"question mark", "a?b=c.txt": b"no query"}),
    Row(
        "symbolic link to a file", {"linked.js": b"let a = 1\n"}, {"linked.js": "assets/js/app.js"}
    ),
    Row(
        LINKED_FOLDER,
        {"scripts/app.js": b"let a = 1\n"},
        {"scripts": "assets/js"},
    ),
    Row(
        "hard link",
        {"first.txt": b"one file, two names", "zz/second.txt": b"one file, two names"},
        hard_links={"zz/second.txt": "first.txt"},
    ),
    Row(EMPTY_FOLDER, {"empty/": b""}),
    Row("mode 0600", {"private.txt": b"for its owner"}, mode=0o600),
    Row("file of 20 MB", {"large.bin": _NOISE(20_000_000)}),
)


def write_site(site: Path) -> Path:
    """Write all rows into a new directory of the ordinary user, and return it."""
    site.mkdir()
    for row in ROWS:
        row.write(site)
    for path in (site, *site.rglob("*")):
        if not path.is_symlink():
            give_away(path)
    return site
