"""The key ``sites``: hosts and path prefixes, with the images that they serve.

A site takes the keys of its repository in ``repos``, with its own keys on top. So the entries are
read first, and become sites when the repositories are known.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import attrs

from blobserve.config import Config, ImageTemplate, KeepVersions, RepositoryRules, Site
from blobserve.configfile import habits, image_names, scalars
from blobserve.configfile.schema import (
    ConfigValue,
    InvalidValue,
    Keys,
    Parser,
    attributes,
    by_name,
)
from blobserve.errors import MalformedReference
from blobserve.names.host import canonical_host
from blobserve.names.reference import Reference, Repository

_LABEL = ImageTemplate.LABEL
_PLACEHOLDER = re.compile(r"\{[^{}]*\}?|\}")
_PREFIX_LENGTH = 1000
_ALIKE = 0.9
"""The likeness of two hosts, if one is probably a misspelling of the other."""
_FORMS = "text such as registry.example.com/team/site:v1, or a mapping with image or redirect"


@attrs.frozen(eq=False)
class SiteEntry:
    """An entry of ``sites`` as it is written. `complete` makes it a `Site`."""

    value: ConfigValue
    key: str
    """The canonical key; empty if the written one is wrong."""
    own: Mapping[str, Any]
    """The attributes of the entry's keys."""

    @property
    def host(self) -> str:
        """The host of the key."""
        return self.key.partition("/")[0]

    @property
    def prefix(self) -> str:
        """The path prefix of the key: empty, or it begins with a slash."""
        return self.key.removeprefix(self.host)

    @property
    def redirect(self) -> str | None:
        """The host that this entry redirects to."""
        return self.own.get("redirect")


def entries(repository: Keys) -> Parser[tuple[SiteEntry, ...]]:
    """Return the parser of ``sites``; `repository` has the keys of an entry of ``repos``."""
    keys = {**repository, **_SITE}
    read = by_name(_site_key, lambda value, key: _entry(value, key, keys))

    def parse(value: ConfigValue) -> tuple[SiteEntry, ...]:
        found = tuple(read(value).values())
        problems = [problem for each in _loops(found) for problem in each.problems]
        if problems:
            raise InvalidValue(*problems)
        value.document.warnings.extend(_shadowed(found))
        return found

    return parse


def complete(
    found: tuple[SiteEntry, ...],
    repos: Mapping[str, RepositoryRules],
    has_immutable_paths: frozenset[str],
) -> dict[str, Site]:
    """Return the sites by their keys.

    `has_immutable_paths` has the keys of `repos` with ``immutablePaths``, also if it is empty.

    :raises InvalidValue: for sites that cannot be reached because of `repos`.
    """
    listed = Config(repos=repos)
    hidden = [problem for each in _hidden(found, listed) for problem in each.problems]
    if hidden:
        raise InvalidValue(*hidden)
    return {each.key: _site(each, listed, has_immutable_paths) for each in found}


def _site(entry: SiteEntry, listed: Config, has_immutable_paths: frozenset[str]) -> Site:
    if entry.redirect is not None:
        site = Site(entry.key, entry.host, entry.prefix, entry.redirect)
        return attrs.evolve(site, is_pulled_at_start=False)
    own = dict(entry.own)
    image: ImageTemplate = own["image"]
    inherited = listed.rules_for(image.repository) or RepositoryRules(key=str(image.repository))
    of_rules = {field.name for field in attrs.fields(RepositoryRules)}
    rules = attrs.evolve(inherited, **{name: own.pop(name) for name in of_rules & own.keys()})
    if rules.keep_versions is None:
        rules = attrs.evolve(rules, keep_versions=KeepVersions())
    is_off = "fallback" in entry.own and entry.own["fallback"] is None
    is_configured = "immutable_paths" in entry.own or inherited.key in has_immutable_paths
    site = Site(
        key=entry.key,
        host=entry.host,
        prefix=entry.prefix,
        rules=rules,
        has_app_fallback=not is_off and rules.fallback is None and rules.not_found is None,
        has_immutable_names=not is_configured,
        **own,
    )
    return attrs.evolve(site, is_pulled_at_start=site.is_pulled_at_start and not site.is_wildcard)


# --- One entry ------------------------------------------------------------------------------------


def _site_key(value: ConfigValue, key: str) -> str:
    """Return a host, or a host and a path prefix, in canonical form."""
    if "://" in key or key.startswith("//"):
        raise value.wrong(f"leave out the scheme: {key.partition('//')[2]}")
    if "?" in key or "#" in key:
        raise value.wrong("a site is a host and a path; it has no query and no fragment")
    host, _, _ = key.partition("/")
    return _host(value, host) + _prefix(value, key[len(host) :])


def _host(value: ConfigValue, host: str) -> str:
    if host == "*":
        return host
    parent = host.removeprefix("*.")
    if "*" in parent:
        problem = "* is the whole first label of a host, as in *.example.com, or the whole host"
        raise value.wrong(problem)
    return host[: len(host) - len(parent)] + _name(value, parent)


def _name(value: ConfigValue, host: str) -> str:
    """Return a host without wildcard and port, in canonical form."""
    name, colon, port = host.partition(":")
    if colon and ":" not in port and not host.startswith("["):
        raise value.wrong(f"leave out the port, since hosts are compared without it: {name}")
    try:
        return canonical_host(host)
    except ValueError as error:
        raise value.wrong(f"not a host such as app.example.com: {error}") from error


def _prefix(value: ConfigValue, prefix: str) -> str:
    if not prefix:
        return prefix
    if prefix.endswith("/"):
        raise value.wrong("leave out the slash at the end")
    if "%" in prefix:
        raise value.wrong("write the path without percent-encoding")
    if "*" in prefix or "{" in prefix or "}" in prefix:
        raise value.wrong("a path has no wildcard and no placeholder; all below it belongs to it")
    if "\\" in prefix or not prefix.isprintable():
        raise value.wrong("a path has no backslash and no control character")
    segments = prefix[1:].split("/")
    if not {"", ".", ".."}.isdisjoint(segments):
        raise value.wrong("this can never be reached: a path has no empty, . or .. segment")
    if len(prefix.encode("utf-8", "surrogatepass")) > _PREFIX_LENGTH:
        raise value.wrong(f"the path is longer than {_PREFIX_LENGTH} bytes")
    return prefix


def _entry(value: ConfigValue, key: str, keys: Keys) -> SiteEntry:
    """Return an entry in its short or its long form."""
    if value.node.kind != "mapping":
        if value.node.kind != "text":
            raise value.expected(_FORMS)
        own: dict[str, Any] = {"image": _image(value)}
    else:
        own = attributes(value, keys)
    members = value.members() if value.node.kind == "mapping" else {}
    if "redirect" in own and len(own) > 1:
        others = ", ".join(each for each in members if each != "redirect")
        raise value.wrong(f"redirect cannot be combined with {others}")
    if "redirect" not in own and "image" not in own:
        raise value.wrong("the key image or redirect is missing")
    if key and "image" in own:
        _check_image(members.get("image", value), own["image"], key)
        keep = own.get("keep_versions")
        for name in ("versionHeader", "versionCookie") if keep and not keep.count else ():
            if name in members and scalars.flag(members[name]):
                problem = "has no effect, because keepVersions is off"
                value.document.warnings.append(members[name].message(problem))
        if key.startswith("*") and own.get("is_pulled_at_start"):
            raise members["prePull"].wrong("a site with a wildcard cannot be pulled at start")
    return SiteEntry(value, key, own)


def _check_image(value: ConfigValue, image: ImageTemplate, key: str) -> None:
    if not image.is_fixed and not key.startswith("*."):
        example = "*.preview.example.com"
        raise value.wrong(f"{_LABEL} is the label of a host with a wildcard, such as {example}")


def _image(value: ConfigValue) -> ImageTemplate:
    """Return a reference; its tag may have one ``{1}``."""
    if value.node.kind != "text":
        raise value.expected("text such as registry.example.com/team/site:v1")
    written = scalars.filled(value)
    found = _PLACEHOLDER.findall(written)
    if set(found) - {_LABEL}:
        raise value.wrong(f"the only placeholder is {_LABEL}, the label of the host")
    if len(found) > 1:
        raise value.wrong(f"{_LABEL} may occur only once")
    name, at, _ = written.partition("@")
    if found and at:
        raise value.wrong(f"a digest names one image, so {_LABEL} has no effect beside it")
    if found and _LABEL not in name.rpartition("/")[2].partition(":")[2]:
        raise value.wrong(f"{_LABEL} may only be in the tag")
    try:
        # The shortest label decides whether any label makes a valid tag.
        reference = Reference.parse(written.replace(_LABEL, "a"))
    except MalformedReference as error:
        if variable := habits.names_variable(written):
            raise value.wrong(
                f"{variable.partition(':')[0]}: write the reference itself"
            ) from error
        raise value.wrong(error.problem) from error
    tag = name.rpartition(":")[2] if found else reference.tag
    return ImageTemplate(reference.repository, tag, reference.digest)


def _redirect(value: ConfigValue) -> str:
    """Return the host to redirect to, maybe with a port."""
    written = scalars.filled(value)
    if "//" in written or "/" in written:
        raise value.wrong("expected a host alone: a redirect keeps the scheme and the path")
    if "*" in written or _PLACEHOLDER.search(written):
        raise value.wrong("expected one host, without wildcard and placeholder")
    host, colon, port = written.partition(":")
    if not colon:
        return _name(value, host)
    if not re.fullmatch("[1-9][0-9]{0,4}", port) or int(port) >= 1 << 16:
        raise value.expected("host or host:port")
    return f"{_name(value, host)}:{port}"


def _fallback(value: ConfigValue) -> str | None:
    """Return the page for missing paths; None for false, which turns the default one off."""
    if value.node.kind == "boolean" and not value.node.value:
        return None
    if value.node.kind != "text":
        raise value.expected("path of a page, such as /index.html, or false")
    return image_names.page(value)


_SITE: Keys = {
    "image": ("image", _image),
    "redirect": ("redirect", _redirect),
    "trailingSlash": ("trailing_slash", scalars.one_of("keep", "add", "remove")),
    "cleanUrls": ("clean_urls", scalars.flag),
    "hostingDialect": ("dialect", scalars.one_of("cloudflare", "netlify", "none")),
    "prePull": ("is_pulled_at_start", scalars.flag),
    "fallback": ("fallback", _fallback),
}
"""The keys that a repository does not have, or that have another meaning there."""

# --- Entries that affect each other ---------------------------------------------------------------


def _loops(found: tuple[SiteEntry, ...]) -> Iterator[InvalidValue]:
    """Yield an error for each redirect that comes back; warn of those that lead to another one.

    A loop can be seen at its longest prefix, so no other path has to be tried.
    """
    hosts = _by_host(found)
    for entry in (each for each in found if each.redirect is not None):
        seen: list[SiteEntry] = []
        at: SiteEntry | None = entry
        while at is not None and at.redirect is not None and at not in seen:
            seen.append(at)
            at = _serving(hosts, at.redirect.partition(":")[0], entry.prefix)
        where = entry.value.members()["redirect"]
        if len(seen) < 2 and at is not entry:
            name = (entry.redirect or "").partition(":")[0]
            nearest = difflib.get_close_matches(name, hosts, 1, _ALIKE) if at is None else []
            if nearest and name not in hosts:
                problem = f"no site has this host; the nearest one is {nearest[0]}"
                where.document.warnings.append(where.message(problem))
            continue
        way = ", then ".join(f"{each.key} to {each.redirect}" for each in seen)
        if at is entry and not any(":" in (each.redirect or "") for each in seen):
            yield where.wrong(f"these redirects are a loop: {way}")
        elif at is entry:
            problem = f"a loop, unless another server has that port: {way}"
            where.document.warnings.append(where.message(problem))
        elif at not in seen:
            problem = f"two redirects in a row: {way}"
            where.document.warnings.append(where.message(problem))


def _by_host(found: tuple[SiteEntry, ...]) -> dict[str, dict[str, SiteEntry]]:
    hosts: dict[str, dict[str, SiteEntry]] = {}
    for entry in found:
        hosts.setdefault(entry.host, {})[entry.prefix] = entry
    return hosts


def _serving(
    hosts: Mapping[str, Mapping[str, SiteEntry]], host: str, path: str
) -> SiteEntry | None:
    """Return the entry of a host and a path; None if there is none."""
    for pattern in (host, f"*.{host.partition('.')[2]}", "*"):
        if pattern in hosts:
            return next(
                (hosts[pattern][each] for each in _above(path) if each in hosts[pattern]), None
            )
    return None


def _above(path: str) -> Iterator[str]:
    """Yield a path and all paths above it, the longest first."""
    while path:
        yield path
        path = path.rpartition("/")[0]
    yield path


def _shadowed(found: tuple[SiteEntry, ...]) -> Iterator[str]:
    """Yield a warning for each prefix of a wildcard that more exact hosts do not have."""
    hosts = _by_host(found)
    for entry in found:
        if not entry.prefix or not entry.host.startswith("*"):
            continue
        beside = [each for each in hosts if _is_within(each, entry.host)]
        without = [each for each in beside if entry.prefix not in hosts[each]]
        if without:
            more = f" and {len(without) - 1} more" if len(without) > 1 else ""
            problem = f"{without[0]}{more} has sites of its own, so {entry.prefix} is not there"
            yield entry.value.message(problem)


def _is_within(host: str, wildcard: str) -> bool:
    """Return whether a wildcard would match a host that another key names more exactly."""
    if wildcard == "*":
        return host != "*"
    return not host.startswith("*") and host.partition(".")[2] == wildcard[2:]


def _hidden(found: tuple[SiteEntry, ...], listed: Config) -> Iterator[InvalidValue]:
    """Yield an error for each prefix of ``*`` that begins with a repository of `repos`."""
    for entry in found:
        for path in _above(entry.prefix if entry.host == "*" else ""):
            with suppress(MalformedReference):
                repository = Repository.parse(path[1:])
                if listed.rules_for(repository) is not None:
                    problem = f"this can never be reached: {repository} of repos comes first"
                    yield entry.value.wrong(problem)
                    break
