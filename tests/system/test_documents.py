"""Links in all pages resolve, and pages and project files are complete."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import yaml

from blobserve.config import Limits
from blobserve.metrics import Metrics
from tests.support.parts.server import ROOT

REFERENCE = ROOT / "docs" / "reference"
PAGES = sorted(
    path.relative_to(ROOT)
    for folder in ("*.md", "docs/**/*.md", "benchmarks/**/*.md", "tests/**/*.md", "etc/**/*.md")
    for path in ROOT.glob(folder)
    if "testdata" not in path.relative_to(ROOT).parts
)

_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def links(page: Path) -> Iterator[str]:
    """Yield the targets of the links of a page, without those in code."""
    text = _FENCE.sub("", (ROOT / page).read_text("utf-8"))
    for found in _LINK.finditer(re.sub(r"`[^`\n]*`(?!\])", "", text)):
        if not re.match(r"[a-z]+:", found[1]):
            yield found[1]


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as hosting services make them."""
    text = _FENCE.sub("", page.read_text("utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def test_there_are_pages() -> None:
    """The pages under test include the README and the reference."""
    assert {Path("README.md"), Path("docs/reference/urls.md")} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_resolve(page: Path) -> None:
    """Each relative link of a page leads to a file and, if it has an anchor, to a heading there."""
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page} links to {link}"


def test_every_page_is_linked() -> None:
    """A reader of the README reaches every page under docs/ by links."""
    reached, waiting = set[Path](), [Path("README.md")]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            for link in links(page):
                target = ((ROOT / page).parent / link.partition("#")[0]).resolve()
                if target.suffix == ".md":
                    waiting.append(target.relative_to(ROOT))
    assert [page for page in PAGES if page.parts[0] == "docs" and page not in reached] == []


def test_every_key_has_its_row() -> None:
    """The configuration page has every key that the shipped file shows."""
    page = (REFERENCE / "configuration.md").read_text()
    lines = (ROOT / "etc" / "blobserve.yaml").read_text().splitlines()
    keys = {found[1] for line in lines if (found := re.match(r"\s*#?\s*([a-z]\w+): ?\S*", line))}
    assert {"repos", "prePull", "codings", "maxSizeBytes", "tokenSize", "accessLog"} <= keys
    keys.remove("localhost")  # the host of a site
    missing = {
        key for key in keys if not re.search(rf"^\| `(?:\w+\.)?{key}(?:\.\w+)?`", page, re.M)
    }
    assert missing - {"accessLog"} == set()


def test_limits_have_their_defaults() -> None:
    """The configuration page has the default of every limit."""
    page = (REFERENCE / "configuration.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| `?([^|`]+?)`? \| [^|]+ \|$", page, re.MULTILINE))
    units = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "s": 1}
    for name, value in attrs.asdict(Limits()).items():
        key = re.sub(r"_(\w)", lambda found: found[1].upper(), name)
        found = re.fullmatch(r"(\d+)(\w*)", rows[key])
        if value is None:
            assert found is None or found[1] == "0", key
        else:
            assert found is not None, key
            assert int(found[1]) * units[found[2]] == value, key


def test_every_metric_has_its_row() -> None:
    """The metrics page has every metric by its name on the wire, with its labels."""
    page = (REFERENCE / "metrics.md").read_text()
    metrics = Metrics()
    metrics.requests.count("get", 200, 0.1)
    metrics.lookups.count("hit")
    for family in metrics.registry.collect():
        if family.name.startswith(("process_", "python_")):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert re.search(rf"^\| `{name}(?:{{[\w,]+}})?` \| {family.type} \|", page, re.M), name


def test_every_status_has_its_row() -> None:
    """The page on responses has every status of an error."""
    page = (REFERENCE / "responses.md").read_text()
    table = page[: page.index("### Try again")]
    text = "\n".join(path.read_text() for path in (ROOT / "blobserve" / "web").rglob("*status.py"))
    statuses = set(re.findall(r"^    \(\w+, (\d{3})\),$", text, re.MULTILINE))
    assert len(statuses) > 8
    assert {each for each in statuses if not re.search(rf"^\| [\d, ]*{each}", table, re.M)} == set()


def test_every_target_is_explained() -> None:
    """CONTRIBUTING has a row, with a time, for each target of the Makefile."""
    makefile, page = (ROOT / "Makefile").read_text(), (ROOT / "CONTRIBUTING.md").read_text()
    [targets] = re.findall(r"^\.PHONY: help (.+)$", makefile, re.MULTILINE)
    assert {"test", "fast", "lint", "types", "bench", "serve"} <= set(targets.split())
    for target in targets.split():
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
        assert re.search(rf"^\| `make {target}` \| [^|]+ \| [^|]+ \|$", page, re.MULTILINE), target


def test_hosted_ci_runs_the_checks() -> None:
    """The workflow of the hosted CI calls `.ci/run`, and so has no checks of its own."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step.get("run") for job in workflow["jobs"].values() for step in job["steps"]]
    assert steps[-1] == ".ci/run"


def test_hooks_are_pinned() -> None:
    """Each commit hook is local, and pins the exact version of each package it installs."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert {"ruff-format", "ruff-check", "mypy"} <= {hook["id"] for hook in hooks}
    for hook in hooks:
        for dependency in hook["additional_dependencies"]:
            assert re.match(r"[\w.-]+(?:\[\w+\])?==[\w.]+", dependency), dependency


@pytest.mark.parametrize(
    "page", ["CONTRIBUTING.md", "docs/architecture.md", "docs/glossary.md"], ids=str
)
def test_named_files_exist(page: str) -> None:
    """Each file or folder that a page for contributors names exists."""
    text = _FENCE.sub("", (ROOT / page).read_text())
    named = set(re.findall(r"`((?:[a-z_]+/)*[a-z_]+(?:\.py|/))`", text)) - {"toc/"}
    places = (ROOT, ROOT / "blobserve")
    assert named
    assert [name for name in named if not any((each / name).exists() for each in places)] == []


def test_terms_are_in_the_code() -> None:
    """Each class that the glossary names for a term exists, and there are 25 to 60 terms."""
    page = (ROOT / "docs" / "glossary.md").read_text()
    code = "\n".join(path.read_text() for path in (ROOT / "blobserve").rglob("*.py"))
    classes = set(re.findall(r"`([A-Z][A-Za-z]+)`", page)) - {"READY"}
    assert [name for name in classes if not re.search(rf"^class {name}\b", code, re.M)] == []
    assert 25 <= len(re.findall(r"^\| \*\*", page, re.MULTILINE)) <= 60


def test_slow_files_exist() -> None:
    """Each file that `make fast` leaves out exists."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    [slow] = re.findall(r"^slow_files := (.+)$", makefile, re.MULTILINE)
    present = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    assert {f"test_{name}" for name in re.split(r"[|\s]+", slow)} - present == set()
