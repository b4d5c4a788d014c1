"""The report of `twist blobserve --check --image`: the hosting rules of one image."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import attrs

from blobserve.config import AccessLogRules, BlobSpaceRules, Config, RepositoryRules, Site
from blobserve.errors import (
    BlobserveError,
    Forbidden,
    PathNotFound,
)
from blobserve.image_lease import ImageLease
from blobserve.names.reference import Reference, Repository
from blobserve.service import Blobserve
from blobserve.web.hosting.header_rules import HeaderRules
from blobserve.web.hosting.redirects import RedirectRules
from blobserve.web.hosting.rule_lines import MAX_BYTES
from blobserve.web.hosting.rule_match import RULE_FILES

_NAMES = tuple(name.decode() for name in RULE_FILES)


@attrs.frozen
class RuleReport:
    """The report about an image: a summary of each site, and the problems."""

    summary: tuple[str, ...]
    problems: tuple[str, ...]


async def rule_report(reactor: Any, config: Config, image: str) -> RuleReport:
    """Return the report about the hosting rules of an image, for each site that may serve it.

    The image is pulled into a temporary directory. If that fails, the image in the blob space is
    read, unless a server uses that.

    :raises MalformedReference: when `image` is no reference.
    :raises Forbidden: when neither `sites` nor `repos` has the repository.
    :raises BlobserveError: when the image cannot be pulled.
    """
    reference = Reference.parse(image)
    summary: list[str] = []
    problems: list[str] = []
    for site in _sites(config, reference.repository):
        if site.dialect == "none":
            summary.append(f"{site.key}: hostingDialect is none, so the two files have no effect")
            continue
        files = await _files(reactor, config, site, reference)
        for name in _NAMES:
            if name not in files:
                summary.append(f"{site.key}: no {name}")
                continue
            rules = _parsed(name, files[name], site.dialect)
            counts = (
                f"{_number(rules.rule_count, 'rule')}, {_number(rules.problem_count, 'problem')}"
            )
            summary.append(f"{site.key}: {name}: {counts}")
            problems += [f"{site.key}: {problem}" for problem in rules.problems]
            unlisted = rules.problem_count - len(rules.problems)
            if unlisted:
                problems.append(f"{site.key}: {name}: and {_number(unlisted, 'more problem')}")
    return RuleReport(tuple(summary), tuple(problems))


def _parsed(
    name: str, content: bytes, dialect: Literal["cloudflare", "netlify"]
) -> RedirectRules | HeaderRules:
    parse = RedirectRules.parse if name == "_redirects" else HeaderRules.parse
    return parse(content, dialect)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _sites(config: Config, repository: Repository) -> list[Site]:
    """Return the sites of a repository, one of those with equal rules."""
    found: dict[object, Site] = {}
    for site in config.sites.values():
        if site.image is not None and site.image.repository == repository:
            found.setdefault((site.rules, site.dialect), site)
    if found:
        return list(found.values())
    rules = config.rules_for(repository)
    if rules is None:
        raise Forbidden(str(repository))
    return [Site(str(repository), "*", rules=rules)]


async def _files(
    reactor: Any, config: Config, site: Site, reference: Reference
) -> dict[str, bytes]:
    """Return the contents of the rule files that the image has."""
    rules = site.rules
    by_path = {str(reference.repository): attrs.evolve(rules, pre_pull=())}
    quiet = {site.key: attrs.evolve(site, is_pulled_at_start=False)}
    scoped = reference.within(site.scope if site.image else "")
    alone = attrs.evolve(
        config,
        listen=(),
        repos={} if site.image else by_path,
        sites=quiet if site.image else {},
        access_log=AccessLogRules(format="off"),
        prometheus_addr=None,
        readiness_addr=None,
    )
    try:
        with tempfile.TemporaryDirectory(prefix="blobserve-check-") as directory:
            space = BlobSpaceRules(Path(directory), config.blob_space.max_size)
            return await _read(reactor, attrs.evolve(alone, blob_space=space), rules, scoped)
    except BlobserveError:
        # As another user, the files that are made here could stop the server's next start.
        location = config.blob_space.location
        if location.is_dir() and location.stat().st_uid == os.geteuid():
            with suppress(BlobserveError):
                return await _read(reactor, alone, rules, scoped, read_only=True)
        raise


async def _read(
    reactor: Any,
    config: Config,
    rules: RepositoryRules,
    reference: Reference,
    read_only: bool = False,
) -> dict[str, bytes]:
    service = Blobserve(reactor, config)
    service.startService()
    try:
        with await service.blob_for(reference, read_only) as lease:
            return await _contents(lease, rules.workdir)
    finally:
        await service.stopService()


async def _contents(lease: ImageLease, workdir: str) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    for name in _NAMES:
        with suppress(PathNotFound):
            contents[name] = await lease.read(f"{workdir}/{name}", length=MAX_BYTES + 1)
    return contents
