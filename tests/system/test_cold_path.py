"""The count of the code that a cold request passes through."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.support.parts.server import ROOT


def test_the_count_adds_up() -> None:
    """The count lists the files of each layer of the code, with their functions and sums."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cold_path", "--list"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    files = dict(re.findall(r"^([\w/]+\.py): (.+)$", done.stdout, re.MULTILINE))
    assert {"config.py", "store/refstore.py", "web/resource.py"} <= set(files)
    assert "RefStore.lease_or_early" in files["store/refstore.py"] or sys.version_info < (3, 11)
    assert "prepull.py" not in files, "what runs at the start does not count"
    counts = re.findall(r"^(\S+) +(\d+) files +(\d+) functions$", done.stdout, re.MULTILINE)
    *folders, total = [(name, int(n), int(functions)) for name, n, functions in counts]
    assert total[0] == "total"
    assert total[1] == sum(n for _, n, _ in folders) == len(files)
    assert total[2] == sum(n for *_, n in folders)
    assert total[2] == sum(len(names.split(", ")) for names in files.values())
