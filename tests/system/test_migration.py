"""The page on migration from Gitpod's blobserve: each of its statements about this server."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from blobserve.config import UNLISTED
from blobserve.configfile import load
from blobserve.daemon.plugin import Options, makeService
from blobserve.names.reference import Repository
from tests.support.parts.images import Image, write_layout
from tests.support.services import Running, running
from tests.support.within import within

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "migrate-from-gitpod.md").read_text()
SITE = "docker.io/gitpod/ide"
LATER = {"If-Modified-Since": "Fri, 31 Dec 2027 00:00:00 GMT"}
FILES = {
    "ide/index.html": b"<p>page</p>",
    "ide/a.js": b"0123456789" * 10,
    "ide/page": b"<!doctype html><p>",
    "ide/empty/deep/file": b"\0",
}


def written(tmp_path: Path, repo: dict[str, Any], **own: Any) -> Path:
    """Write a configuration in the JSON form of the original, with a local source."""
    layout = write_layout(tmp_path / "layout", {"commit-1": Image.of(FILES), "v1": Image.of(FILES)})
    rules = {"workdir": "/ide", "source": f"oci:{layout}", **repo}
    space = {"location": str(tmp_path / "space"), "maxSizeBytes": 1 << 30}
    document = {
        "blobserve": {"repos": {SITE: rules}, "port": 0, "blobSpace": space, **own},
        "prometheusAddr": "127.0.0.1:0",
        "accessLog": {"format": "off"},
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(document, indent="\t"))
    return path


@asynccontextmanager
async def serving(tmp_path: Path, repo: dict[str, Any] | None = None) -> AsyncIterator[Running]:
    """Run a service with a configuration of the original."""
    config = load(written(tmp_path, {"immutableTags": ["commit-*"]} if repo is None else repo))
    async with running(attrs.evolve(config, listen=("tcp:0:interface=127.0.0.1",))) as server:
        yield server


def row(subject: str) -> str:
    """Return the row of the table about a subject."""
    [found] = [line for line in PAGE.splitlines() if line.startswith(f"| {subject} ")]
    return found


@within(30)
async def test_immutable_tags_give_versioned_urls_their_year(tmp_path: Path) -> None:
    """With the setting that the page names first, `commit-*` tags are cached for a year."""
    [example] = re.findall(r"```json\n(.*?)\n```", PAGE, re.DOTALL)
    assert PAGE.index("immutableTags") < PAGE.index("These points differ")
    [(name, rules)] = json.loads("{" + example + "}").items()
    assert name == SITE
    year = "public, max-age=31536000, immutable"
    for number, (repo, expected) in enumerate([(rules, True), ({}, False)]):
        (tmp_path / str(number)).mkdir()
        async with serving(tmp_path / str(number), repo) as server:
            answer = await server.fetch(f"{SITE}:commit-1/a.js")
            assert (answer.headers["cache-control"] == year) == expected
            assert (await server.fetch(f"{SITE}:v1/a.js")).headers["cache-control"] != year


@within(30)
async def test_dates(tmp_path: Path) -> None:
    """Dates alone give 304 under an immutable tag, and not under a tag that may move."""
    assert "`If-Modified-Since` alone gave 304" in row("dates")
    assert "never a 304" not in PAGE
    async with serving(tmp_path) as server:
        moving = await server.fetch(f"{SITE}:v1/a.js", headers=LATER)
        assert (moving.status, "last-modified" in moving.headers) == (200, False)
        assert (await server.fetch(f"{SITE}:commit-1/a.js", headers=LATER)).status == 304


@within(30)
async def test_read_only_requests(tmp_path: Path) -> None:
    """A read-only request pulls nothing."""
    assert "ignored since 2022" in row("`X-BlobServe-ReadOnly: true`")
    async with serving(tmp_path) as server:
        only = {"X-BlobServe-ReadOnly": "true"}
        assert (await server.fetch(f"{SITE}:v1/a.js", headers=only)).status == 404
        assert (await server.fetch(f"{SITE}:v1/a.js")).status == 200
        assert (await server.fetch(f"{SITE}:v1/a.js", headers=only)).status == 200


@within(30)
async def test_urls_and_types(tmp_path: Path) -> None:
    """Files are not sniffed as HTML, `/ref` is redirected, and directories are not listed."""
    assert "sniffed" in row("file without a known extension")
    assert "301" in row("`/ref` without a slash")
    async with serving(tmp_path) as server:
        answer = await server.fetch(f"{SITE}:v1/page")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        answer = await server.fetch(f"{SITE}:v1")
        assert (answer.status, answer.headers["location"]) == (301, "./ide:v1/")
        assert (await server.fetch(f"{SITE}:v1/index.html")).status == 200
        assert (await server.fetch(f"{SITE}:v1/empty/")).status == 404


@within(30)
async def test_ranges_and_heads(tmp_path: Path) -> None:
    """Several ranges are bounded, and so is the head of a request."""
    assert "at most 64" in row("several ranges")
    assert "32 KiB" in row("request head")
    async with serving(tmp_path) as server:
        for ranges, status in (("0-0,2-2", 206), ("2-2,0-0", 200), ("0-5,3-9", 200)):
            answer = await server.fetch(f"{SITE}:v1/a.js", headers={"Range": f"bytes={ranges}"})
            assert (ranges, answer.status) == (ranges, status)
        answer = await server.fetch(f"{SITE}:v1/a.js", headers={"Cookie": "x" * 33_000})
        assert answer.status == 431


@within(30)
async def test_metrics_of_the_process(tmp_path: Path) -> None:
    """The metrics are those of a Python process."""
    assert "`go_*`" in row("metrics of the process")
    async with serving(tmp_path) as server:
        metrics = (await server.probes.fetch("metrics")).body
        assert b"python_info" in metrics
        assert b"\ngo_" not in metrics


def test_any_repository(tmp_path: Path) -> None:
    """With `allowAnyRepo`, repositories without a key are unlisted: no credentials, a sandbox."""
    assert "without credentials" in row("`allowAnyRepo`")
    config = load(written(tmp_path, {}, allowAnyRepo=True))
    listed, other = (Repository.parse(name) for name in (SITE, "docker.io/gitpod/other"))
    assert config.rules_for(listed) is config.repos[SITE]
    assert config.rules_for(other) is UNLISTED


@pytest.mark.parametrize("timeout", [{}, {"timeout": "0s"}, {"timeout": 0}])
def test_check_of_the_json_form(
    tmp_path: Path, timeout: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    """`--check` warns about unknown keys on standard error and exits 0; no timeout is no bound."""
    path = written(tmp_path, {"colour": "red"}, **timeout, extra=[1])
    assert load(path).timeout == float("inf")
    options = Options()
    options.parseOptions(["--config", str(path), "--check"])
    with pytest.raises(SystemExit) as ended:
        makeService(options)
    assert ended.value.code == 0
    printed = capsys.readouterr()
    assert printed.out == f"{path}: valid\n"
    assert [line for line in printed.err.splitlines() if "colour: unknown key" in line]
    assert [line for line in printed.err.splitlines() if "extra: unknown key" in line]


@pytest.mark.parametrize(
    "wrong",
    [
        {"prePull": "v1"},
        {"workdir": 5},
        {"immutableTags": ["^commit-.*"]},
        {"fallback": True},
        {"replacements": [{"file": "/a", "search": "a", "replacement": "b"}]},
    ],
)
def test_known_keys_of_the_json_form_are_strict(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """A wrong value of a known key ends `--check` with an error that has its line."""
    options = Options()
    options.parseOptions(["--config", str(written(tmp_path, wrong)), "--check"])
    with pytest.raises(SystemExit, match=r"config.json:\d+: repos"):
        makeService(options)
