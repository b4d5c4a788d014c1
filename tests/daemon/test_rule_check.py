"""`--check --image`: the hosting rules of an image, before it is served."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from blobserve.configfile import load
from blobserve.daemon.rule_check import RuleReport, rule_report
from blobserve.errors import Forbidden, ImageNotFound, MalformedReference
from tests.support.parts.images import Image, write_layout
from tests.support.parts.server import ROOT
from tests.support.within import within
from tests.system.test_service import running, the_reactor

REDIRECTS = b"/a /b 301\n/* /index.html 200\n/x\n"
HEADERS = b"/*\n  X-A: b\n  Content-Length: 3\n"
FILES = {"_redirects": REDIRECTS, "sub/_headers": HEADERS, "index.html": b"x"}
REPOSITORY = "r.example/site"


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A layout with an image that has rules, and one without."""
    images = {"v1": Image.of(FILES), "v2": Image.of({"index.html": b"x"})}
    return write_layout(tmp_path / "layout", images)


def configured(tmp_path: Path, repos: Any = None, **sites: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with these sites, all with the image v2 of the layout."""
    own = {"image": f"{REPOSITORY}:v2", "source": f"oci:{tmp_path / 'layout'}"}
    full = {f"{name}.example": {**own, **site} for name, site in sites.items()}
    space = {"location": str(tmp_path / "space")}
    return {"blobserve": {"sites": full, "repos": repos or {}, "blobSpace": space}}


async def report(configuration: Any, image: str) -> RuleReport:
    """Return the report about an image."""
    return await rule_report(the_reactor(), load(configuration), image)


@within(60)
async def test_each_site_that_may_serve_the_image(tmp_path: Path, layout: Path) -> None:
    """An image is checked as each site of its repository would serve it; the space is unused."""
    found = await report(
        configured(
            tmp_path,
            a={},
            same={"trailingSlash": "add"},
            b={"hostingDialect": "netlify"},
            c={"workdir": "/sub"},
            d={"hostingDialect": "none"},
        ),
        f"{REPOSITORY}:v1",
    )
    assert found.summary == (
        "a.example: _redirects: 1 rule, 2 problems",
        "a.example: no _headers",
        "b.example: _redirects: 2 rules, 1 problem",
        "b.example: no _headers",
        "c.example: no _redirects",
        "c.example: _headers: 1 rule, 1 problem",
        "d.example: hostingDialect is none, so the two files have no effect",
    )
    assert [each.partition(": the rule")[0] for each in found.problems[:3]] == [
        "a.example: _redirects:2",
        "a.example: _redirects:3",
        "b.example: _redirects:3",
    ]
    assert found.problems[3].startswith("c.example: _headers:3: `Content-Length`")
    assert not (tmp_path / "space").exists()


@within(60)
async def test_many_problems(tmp_path: Path, layout: Path) -> None:
    """The problems beyond the hundred that are listed are counted."""
    write_layout(layout, {"v1": Image.of({"_redirects": b"/x\n" * 150})})
    found = await report(configured(tmp_path, a={}), f"{REPOSITORY}:v1")
    assert len(found.problems) == 101
    assert found.problems[-1] == "a.example: _redirects: and 50 more problems"


@within(60)
async def test_an_image_of_a_repository_without_site(tmp_path: Path, layout: Path) -> None:
    """An image of `repos` is checked by its rules there; other images are refused."""
    repos = {REPOSITORY: {"source": f"oci:{layout}", "prePull": ["none"]}}
    configuration = configured(tmp_path, repos)
    found = await report(configuration, f"{REPOSITORY}:v1")
    assert found.summary[0] == f"{REPOSITORY}: _redirects: 1 rule, 2 problems"
    with pytest.raises(Forbidden):
        await report(configuration, "r.example/other:v1")
    with pytest.raises(ImageNotFound):
        await report(configuration, f"{REPOSITORY}:v3")
    with pytest.raises(MalformedReference):
        await report(configuration, REPOSITORY)


@within(60)
async def test_an_image_that_only_the_blob_space_has(tmp_path: Path, layout: Path) -> None:
    """An image that cannot be pulled is read from the blob space, unless a server uses it."""
    repos = {REPOSITORY: {"source": f"oci:{layout}", "tagMaxAge": "1h"}}
    configuration, image = configured(tmp_path, repos), f"{REPOSITORY}:v1"
    async with running(configuration) as service:
        (await service.blob_for(image)).release()
        write_layout(layout, {})
        with pytest.raises(ImageNotFound):
            await report(configuration, image)
    found = await report(configuration, image)
    assert found.summary[0] == f"{REPOSITORY}: _redirects: 1 rule, 2 problems"


@pytest.mark.parametrize(("tag", "code"), [("v1", 1), ("v2", 0), ("v3", 1)])
def test_the_command(tmp_path: Path, layout: Path, tag: str, code: int) -> None:
    """`--check --image` exits with 1 for problems, which go to standard error."""
    path = tmp_path / "b.yaml"
    path.write_text(yaml.safe_dump(configured(tmp_path, a={})))
    image = f"{REPOSITORY}:{tag}"
    done = command("--config", str(path), "--check", "--image", image)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert done.stdout.startswith(f"{path}: valid\n")
    problems = done.stderr.splitlines()
    assert len(problems) == {"v1": 2, "v2": 0, "v3": 1}[tag]
    if tag == "v3":
        assert problems == [f"cannot check {image}: no such image: {image}; its source has v1, v2"]
    else:
        assert "a.example: no _headers" in done.stdout


def test_an_image_without_check(tmp_path: Path) -> None:
    """`--image` without `--check` is a wrong use."""
    done = command("--config", str(tmp_path), "--image", "r.example/x:v1")
    assert done.returncode == 64
    assert "--image needs --check" in done.stderr + done.stdout


def command(*options: str) -> subprocess.CompletedProcess[str]:
    """Run `twist blobserve` to its end."""
    twist = [sys.executable, "-m", "twisted", "blobserve", *options]
    return subprocess.run(twist, cwd=ROOT, capture_output=True, timeout=60, text=True, check=False)
