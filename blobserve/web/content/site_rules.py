"""The hosting rules of sites, read from ``_redirects`` and ``_headers`` of their images.

They are read in a thread, once for each content of the two files, and apply as soon as the image
does: requests that come before the end of the reading wait for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import attrs
from twisted.logger import Logger

from blobserve.concurrency.singleflight import SingleFlight
from blobserve.store.index.entry import Entry
from blobserve.web.content.leased_body import SharedLease
from blobserve.web.content.site_lookup import SiteLookup
from blobserve.web.http.header_changes import HeaderChanges
from blobserve.web.http.mount import Mount
from blobserve.web.http.target import Target

if TYPE_CHECKING:
    from blobserve.web.hosting.header_rules import HeaderRules
    from blobserve.web.hosting.redirects import RedirectRules
    from blobserve.web.hosting.rule_lines import Dialect, RuleProblem

_log = Logger()

T = TypeVar("T")

MOST_CACHED = 64
"""Images with different rules whose rules are in memory."""


@attrs.frozen(eq=False)
class ImageRules:
    """The rules of one image."""

    redirects: RedirectRules | None
    headers: HeaderRules | None

    def changes(self, target: Target, mount: Mount) -> HeaderChanges | None:
        """Return the changes to the header fields of a URL of the site at `mount`."""
        if self.headers is None:
            return None
        return self.headers.changes(b"/" + target.raw, mount.host.encode())

    @property
    def problems(self) -> tuple[RuleProblem, ...]:
        """Lines that have no effect, or another one than with the other host of the dialect."""
        return tuple(
            problem for each in (self.redirects, self.headers) if each for problem in each.problems
        )


NO_RULES = ImageRules(None, None)

_Files = tuple[Entry | None, Entry | None]
_Key: TypeAlias = "tuple[Dialect, bytes | None, bytes | None]"


class SiteRules:
    """The rules of all images that sites serve, by the content of the two files."""

    def __init__(self) -> None:
        self._cached: OrderedDict[_Key, ImageRules] = OrderedDict()
        self._reading: SingleFlight[_Key, ImageRules] = SingleFlight()

    def cached(self, lookup: SiteLookup) -> ImageRules | None:
        """Return the rules of the leased image if no file must be read for that."""
        files = lookup.rule_files()
        return NO_RULES if files == (None, None) else self._get(_key(lookup, *files))

    async def get(self, shared: SharedLease, lookup: SiteLookup) -> ImageRules:
        """Return the rules of the leased image.

        :raises BlobDamaged: when a file cannot be read.
        """
        files = lookup.rule_files()
        if files == (None, None):
            return NO_RULES
        key = _key(lookup, *files)
        cached = self._get(key)
        if cached is not None:
            return cached
        reading = self._reading.get(key) or self._reading.start(
            key, lambda _: self._read(shared, key, files, lookup.site.key)
        )
        return await reading.wait()

    async def _read(self, shared: SharedLease, key: _Key, files: _Files, site: str) -> ImageRules:
        rules = await _read(shared, key[0], *files)
        # Before the waiters go on: they may ask for the same rules at once, for another site.
        self._add(key, rules, site)
        return rules

    def _get(self, key: _Key) -> ImageRules | None:
        cached = self._cached.get(key)
        if cached is not None:
            self._cached.move_to_end(key)
        return cached

    def _add(self, key: _Key, rules: ImageRules, site: str) -> None:
        self._cached[key] = rules
        if len(self._cached) > MOST_CACHED:
            self._cached.popitem(last=False)
        for each in rules.problems:
            _log.warn(
                "site {site}: {file}:{line}: {problem}",
                site=site,
                file=each.file,
                line=each.line,
                problem=each.text,
            )


def _key(lookup: SiteLookup, redirects: Entry | None, headers: Entry | None) -> _Key:
    dialect: Dialect = "netlify" if lookup.site.dialect == "netlify" else "cloudflare"
    return dialect, redirects.sha256 if redirects else None, headers.sha256 if headers else None


async def _read(
    shared: SharedLease, dialect: Dialect, redirects: Entry | None, headers: Entry | None
) -> ImageRules:
    # Imported late: most images have no rules.
    from blobserve.web.hosting.header_rules import HeaderRules
    from blobserve.web.hosting.redirects import RedirectRules

    # The request that started the reading may end before the requests that wait for it.
    shared.acquire()
    try:
        return ImageRules(
            await _parsed(shared, redirects, partial(RedirectRules.parse, dialect=dialect)),
            await _parsed(shared, headers, partial(HeaderRules.parse, dialect=dialect)),
        )
    finally:
        shared.release()


async def _parsed(
    shared: SharedLease, entry: Entry | None, parse: Callable[[bytes], T]
) -> T | None:
    if entry is None:
        return None
    if not entry.size:
        return parse(b"")
    from blobserve.web.hosting.rule_lines import MAX_BYTES

    with closing(shared.lease.filesystem.file(entry)) as file:
        # One byte more, so that `parse` reports a file that is too large.
        return await file.apply(parse, min(entry.size, MAX_BYTES + 1), shared)
