"""The prose check counts the faults it names, and ignores code, tables and quotations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.parts.server import ROOT

PROSE = ROOT / ".ci" / "prose.py"


def run(*arguments: object) -> tuple[int, str]:
    """Run the check; return its exit code and its output."""
    done = subprocess.run(
        [sys.executable, PROSE, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def listed(path: Path, text: str) -> list[str]:
    """Return the faults in a file of this text, as "fault line sentence"."""
    path.write_text(text)
    _, output = run("--list", path)
    fault, found = "", []
    for line in output.splitlines():
        if line.startswith("    "):
            place, sentence = line.strip().removeprefix(f"{path}:").split(": ", 1)
            found.append(f"{fault} {place} {sentence}")
        elif line.startswith("  "):
            fault = line.strip().split("  ")[0]
    return found


@pytest.mark.parametrize(
    ("sentence", "faults"),
    [
        ("The server reads the file.", set()),
        ("Return the file, and close it.", set()),
        ("What this reads is a file.", {"inverted start"}),
        ("Of a tag it reads the file.", {"inverted start"}),
        ("By default it reads the file.", {"inverted start"}),
        ("Where it fails, the file stays.", {"inverted start"}),
        ("Nobody reads the file.", {"inverted start", "vague pronoun"}),
        ("Whoever asks reads the file.", {"inverted start", "vague pronoun"}),
        ("The file belongs to whoever asks.", {"vague pronoun"}),
        ("A file whose name changed.", {"vague pronoun"}),
        ("It reads what is in the file.", {"vague pronoun"}),
        ("It reads files, of which it knows ten.", {"vague pronoun"}),
        ("So many bytes are read.", {"inverted start", "vague pronoun"}),
        ("The bytes that are to be read.", {"vague pronoun"}),
        ("It decides in which order to read.", set()),
        ("Bytes are byte by byte the same.", set()),
    ],
)
def test_each_rule(tmp_path: Path, sentence: str, faults: set[str]) -> None:
    """Each forbidden word is found in pages and docstrings, and a plain one is not."""
    for name, text in {
        "page.md": f"# Title\n\nOne sentence. {sentence}\n",
        "code.py": f'"""Read files.\n\nOne sentence. {sentence}\n"""\n',
    }.items():
        found = listed(tmp_path / name, text)
        assert {each.split(" 3 ")[0] for each in found} == faults, found


def test_code_and_tables(tmp_path: Path) -> None:
    """Code, quotations, tables, rules, comments and the targets of links are left out."""
    page = """\
# Reading

Plain `what is to be` text, "nobody" and ``who``, and [a link](what/is-to-be.md).

```sh
What is this? Nobody knows.
```

    What is this? Nobody knows.

| what is this | nobody knows |
|---|---|
| Who | Of which |

<!-- What is this?
Nobody knows. -->

[target]: https://example.com/what-is
"""
    assert listed(tmp_path / "page.md", page) == []
    code = '''\
"""Read files.

Run it like this::

    What is this? Nobody knows.

>>> what.is_this
Nobody

====  =======
Who   Of what
====  =======
|  Who  |
"""

NOBODY = "What is this? Nobody knows."
# What is this? Nobody knows.
'''
    assert listed(tmp_path / "code.py", code) == []


def test_first_lines(tmp_path: Path) -> None:
    """A clause is a fault as the first line of any docstring, and as a heading."""
    code = '''\
"""Where files are."""


class Reader:
    """Whether it reads.

    Whether it also writes.
    """

    size: int
    """How long it is."""

    def read(self):
        """How it reads."""

    async def close(self):
        """Close it, see `TarReader`."""

    @property
    def is_open(self):
        """Return whether it is open."""
'''
    assert listed(tmp_path / "code.py", code) == [
        "inverted start 1 Where files are.",
        "bare clause 1 Where files are.",
        "bare clause 5 Whether it reads.",
        "bare clause 14 How it reads.",
    ]
    assert listed(tmp_path / "page.md", "# How it reads\n\nText.\n\n## Reading\n") == [
        "bare clause 1 How it reads"
    ]


def test_sentences_are_found_at_their_lines(tmp_path: Path) -> None:
    """A sentence is listed at the line of its beginning; list items and fields begin new ones."""
    page = """\
# Reading

It reads RFC 9110, e.g. Section 8. It
reads more. What
follows is read. `code` begins one. Where
[links](x.md) lead is read. [What](x.md) is one?

- **Fast.** Who reads
  is fast.
- Of two, it reads one.

1. By itself
"""
    assert listed(tmp_path / "page.md", page) == [
        "inverted start 4 What follows is read.",
        "inverted start 5 Where links lead is read.",
        "inverted start 6 What is one?",
        "inverted start 8 Who reads is fast.",
        "inverted start 10 Of two, it reads one.",
        "inverted start 12 By itself",
        "vague pronoun 6 What is one?",
        "vague pronoun 8 Who reads is fast.",
    ]
    code = '''\
def read():
    """Read it.

    :param file: what is read.
    :raises OSError: if it fails. Nobody
        is told.
    """
'''
    assert listed(tmp_path / "code.py", code) == [
        "inverted start 4 what is read.",
        "inverted start 5 Nobody is told.",
        "vague pronoun 4 what is read.",
        "vague pronoun 5 Nobody is told.",
    ]


@pytest.mark.parametrize(("bad", "code"), [(3, 0), (4, 1)])
def test_the_limit(tmp_path: Path, bad: int, code: int) -> None:
    """Three sentences in a hundred may break a rule, and a fourth fails the check."""
    text = "# Reading\n\n" + "Of one. " * bad + "It reads. " * (100 - bad)
    (tmp_path / "page.md").write_text(text)
    returned, output = run(tmp_path)
    assert returned == code, output
    assert f"{bad}.0 %" in output


def test_nothing_to_measure_is_an_error(tmp_path: Path) -> None:
    """A directory without prose is an error."""
    assert run(tmp_path)[0] == 2


def test_other_projects_pass() -> None:
    """The docstrings of treq and klein pass, so that the rules are not stricter than usual."""
    import klein
    import treq

    for module in (treq, klein):
        folder = Path(module.__file__ or "").parent
        returned, output = run(*(path for path in folder.glob("*.py")))
        assert returned == 0, output
