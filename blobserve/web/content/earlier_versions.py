"""Files of earlier versions in responses. See docs/reference/versions.md.

A request gets `RequestVersions` if its tag has earlier versions. A path that the current image does
not have costs one look-up in the table of the tag. Until the table of new versions is made, the
versions themselves are looked up, one after the other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import chain

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from blobserve.concurrency.threads import Threads
from blobserve.config import Config, KeepVersions, RepositoryRules, Site
from blobserve.errors import BlobDamaged, BlobserveError, PathNotFound
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference
from blobserve.store.index.entry import EntryKind
from blobserve.store.index.name_table import NameTable
from blobserve.store.lease import Lease
from blobserve.store.refstore import RefStore
from blobserve.web.content.leased_body import SharedResource
from blobserve.web.content.lookup import Page, joined
from blobserve.web.content.site_lookup import SiteLookup
from blobserve.web.content.version_names import (
    collected,
    is_document,
    roots,
    stays_reachable,
)
from blobserve.web.http.request_head import RequestHead
from blobserve.web.http.version_choice import COOKIE, HEADER, header_values, matching, query_value

_log = Logger()

MOST_TABLES = 1024
"""Tables in memory; beyond that, the one used longest ago is dropped."""

MOST_NAMES = 2_000_000
"""Names in all tables."""

_BUILD_INTERVAL = 1.0
"""Seconds between two tables of one tag, which may move all the time."""


class NotAtOnce(Exception):
    """A file of an earlier version cannot be found without waiting; see `RequestVersions.find`."""

    def __init__(self, path: bytes) -> None:
        super().__init__(path)
        self.path = path


@attrs.frozen
class Place:
    """A tag, and the rules and the site by which its files are served."""

    tag: Reference
    rules: RepositoryRules
    keep: KeepVersions
    site: Site | None

    @property
    def key(self) -> tuple[str, Reference]:
        """A different value for each place of a configuration."""
        return self.site.key if self.site else "", self.tag


@attrs.frozen(eq=False)
class _Table:
    """The names in the versions that a tag had at one moment."""

    versions: tuple[Digest, ...]
    unreadable: frozenset[Digest]
    """The versions that could not be read when the table was made."""
    names: NameTable


@attrs.frozen
class VersionChoice:
    """A version that a request names, the current one included."""

    digest: Digest
    is_in_url: bool


class EarlierFiles:
    """The tables of all tags, and the versions that requests name."""

    def __init__(
        self,
        store: RefStore,
        config: Callable[[], Config],
        disk: Threads,
        reactor: IReactorTime,
    ) -> None:
        self.store = store
        self._config = config
        self._disk = disk
        self._reactor = reactor
        self._tables: OrderedDict[tuple[str, Reference], _Table] = OrderedDict()
        self._size = 0
        self._building: set[tuple[str, Reference]] = set()
        self._outdated: set[tuple[str, Reference]] = set()
        self._flags_of: Config | None = None
        self._has_header = self._has_cookie = False

    def flush(self) -> None:
        """Drop all tables, because the configuration has changed."""
        self._tables.clear()
        self._size = 0

    def choice(self, head: RequestHead) -> VersionChoice | None:
        """Return the version that a request names, if its tag has that version.

        The work is bounded for any value: a value is compared with the versions of one tag.
        """
        fields, named = head.fields, query_value(head.query)
        if named is None and not self._may_choose(head):
            return None
        place = self._place_of(head)
        if place is None:
            return None
        current = self.store.references.current(place.tag)
        digests = [each.digest for each in self.store.references.versions.of(place.tag, place.keep)]
        if current is not None:
            digests.append(current)
        for value in chain((named,) if named else (), header_values(fields, place.rules)):
            digest = matching(value, digests)
            if digest is not None:
                return VersionChoice(digest, value is named)
        return None

    def of_request(
        self,
        place: Place | None,
        choice: VersionChoice | None,
        current: Digest,
        read_only: bool = False,
    ) -> RequestVersions | None:
        """Return the earlier versions for a request; None if there are none for its tag.

        A `read_only` request starts no pull of a version that is damaged.
        """
        if place is None:
            return None
        versions = self.store.references.versions.of(place.tag, place.keep)
        if not versions and choice is None:
            return None
        digests = tuple(each.digest for each in versions if each.digest != current)
        return RequestVersions(self, place, digests, choice, current, read_only)

    def place(
        self, tag: Reference, rules: RepositoryRules | None, site: Site | None
    ) -> Place | None:
        """Return the place of a tag; None for a digest, and if no versions are kept."""
        keep = rules.versions if rules else None
        if rules is None or keep is None or tag.tag is None or tag.digest is not None:
            return None
        return Place(tag, rules, keep, site)

    def candidates(
        self, place: Place, versions: tuple[Digest, ...], path: bytes
    ) -> tuple[Digest, ...]:
        """Return the versions that may have a file, the newest first."""
        if not versions or not stays_reachable(path, place.rules, place.keep):
            return ()
        table = self._tables.get(place.key)
        if table is None or table.versions != versions:
            self.build(place)
            return versions
        self._tables.move_to_end(place.key)
        number = table.names.get(path)
        named = None if number is None else versions[number]
        if not table.unreadable:
            return () if named is None else (named,)
        return tuple(each for each in versions if each == named or each in table.unreadable)

    def build(self, place: Place) -> None:
        """Make the table of a tag in the background; once more if it is being made."""
        if place.key in self._building:
            self._outdated.add(place.key)
            return
        self._building.add(place.key)
        Deferred.fromCoroutine(self._build(place)).addErrback(_log_failed)

    def _may_choose(self, head: RequestHead) -> bool:
        """Return whether header fields may name a version, without looking at the target."""
        site, fields = head.mount.site, head.fields
        if site is not None:
            has_header, has_cookie = site.rules.version_header, site.rules.version_cookie
        else:
            config = self._config()
            if self._flags_of is not config:
                self._flags_of = config
                self._has_header = any(each.version_header for each in config.repos.values())
                self._has_cookie = any(each.version_cookie for each in config.repos.values())
            has_header, has_cookie = self._has_header, self._has_cookie
        return (has_header and HEADER in fields) or (
            has_cookie and COOKIE in fields.get(b"cookie", b"")
        )

    def _place_of(self, head: RequestHead) -> Place | None:
        site = head.mount.site
        if site is not None and head.mount.reference is not None:
            return self.place(head.mount.reference, site.rules, site)
        try:
            target = head.parse_target()
        except BlobserveError:
            return None
        return self.place(target.reference, head.mount.rules(self._config(), target), None)

    def changed(self, tag: Reference) -> None:
        """Make new tables for a tag that has other versions, at all places that serve it."""
        config = self._config()
        found = [
            self.place(tag, site.rules, site)
            for site in config.sites.values()
            if site.has_image(tag)
        ]
        if not tag.repository.scope:
            found.append(self.place(tag, config.rules_for(tag.repository), None))
        for place in found:
            if place is not None:
                self.build(place)

    async def _build(self, place: Place) -> None:
        try:
            while True:
                self._outdated.discard(place.key)
                await self._build_once(place)
                if place.key not in self._outdated:
                    break
                await deferLater(self._reactor, _BUILD_INTERVAL)
        finally:
            self._building.discard(place.key)
            self._outdated.discard(place.key)

    async def _build_once(self, place: Place) -> None:
        """Make one table of the versions that the tag has now."""
        config, names = self._config(), NameTable()
        current = self.store.references.current(place.tag)
        kept = self.store.references.versions.of(place.tag, place.keep)
        versions = tuple(each.digest for each in kept if each.digest != current)
        unreadable = set[Digest]()
        for number, digest in enumerate(versions):
            lease = await self.store.version(place.tag, digest)
            if lease is None or not await self._add(names, number, lease, place):
                unreadable.add(digest)
        if self._config() is not config:
            return  # The rules may be other ones.
        if names.is_full:
            _log.warn(
                "{tag}: {n} files of earlier versions stay reachable, and no more",
                tag=str(place.tag),
                n=names.size,
            )
        self._put(place.key, _Table(versions, frozenset(unreadable), names) if versions else None)

    async def _add(self, names: NameTable, number: int, lease: Lease, place: Place) -> bool:
        """Add the names of a version; return whether it could be read. Releases `lease`."""
        shared = SharedResource(lease.release, self._disk)
        try:
            # Lookups are for this thread alone.
            top = roots(lease.filesystem, place.rules, place.keep)
            most_entries = self._most_entries
            steps = collected(
                names, number, lease.filesystem, top, place.rules, place.keep, most_entries
            )
            while await shared.run(next, steps, _END) is not _END:
                pass
        except BlobserveError as error:
            if isinstance(error, BlobDamaged):
                lease.report(error)
            _log.warn(
                "{tag}: the earlier version {digest} cannot be read: {error}",
                tag=str(place.tag),
                digest=str(lease.digest),
                error=error,
            )
            return False
        finally:
            shared.release()
        return True

    def _most_entries(self) -> int:
        return self._config().limits.entries

    def _put(self, key: tuple[str, Reference], table: _Table | None) -> None:
        former = self._tables.pop(key, None)
        if former is not None:
            self._size -= former.names.size
        if table is not None:
            self._tables[key] = table
            self._size += table.names.size
        while len(self._tables) > MOST_TABLES or (
            self._size > MOST_NAMES and len(self._tables) > 1
        ):
            _, dropped = self._tables.popitem(last=False)
            self._size -= dropped.names.size


_END = object()


class RequestVersions:
    """The earlier versions of a tag for one request. See `EarlierVersions`.

    It holds the leases of the versions that were looked up, until `close`.
    """

    def __init__(
        self,
        files: EarlierFiles,
        place: Place,
        versions: tuple[Digest, ...],
        choice: VersionChoice | None,
        current: Digest,
        read_only: bool,
    ) -> None:
        self._read_only = read_only
        self._files = files
        self._place = place
        self._versions = versions
        self._choice = choice
        self._current = current
        self._leases: dict[Digest, Lease] = {}
        self._found: dict[bytes, Page | None] = {}

    def names(self, page: Page) -> bool:
        """Return whether the query of the URL names the version that has a page."""
        choice = self._choice
        if choice is None or not choice.is_in_url:
            return False
        return choice.digest == (page.version or self._current)

    def lease_of(self, page: Page, current: Lease) -> Lease:
        """Return the lease of the image that has a page, which `close` releases."""
        return current if page.version is None else self._leases[page.version]

    def take(self, page: Page) -> Lease | None:
        """Return the lease of the version that has a page, and hand it over."""
        return None if page.version is None else self._leases.pop(page.version)

    async def prepare(self) -> None:
        """Lease the version that the request names."""
        choice = self._choice
        if choice is not None and choice.digest != self._current:
            await self._lease(choice.digest)

    def prepare_at_once(self) -> bool:
        """Do the same as `prepare` without waiting; return whether it was possible."""
        choice = self._choice
        if choice is None or choice.digest == self._current:
            return True
        return self._lease_at_once(choice.digest) is not None

    def chosen(self, path: bytes) -> Page | None:
        """See `EarlierVersions.chosen`."""
        choice = self._choice
        if choice is None or choice.digest not in self._leases:
            return None
        return self._file(self._leases[choice.digest], path)

    def page(self, path: bytes) -> Page | None:
        """See `EarlierVersions.page`.

        :raises NotAtOnce: when that is not known without waiting.
        """
        if path in self._found:
            return self._found[path]
        for digest in self._files.candidates(self._place, self._versions, path):
            lease = self._lease_at_once(digest)
            if lease is None:
                raise NotAtOnce(path)
            page = self._file(lease, path)
            if page is not None:
                return page
        return None

    async def find(self, path: bytes) -> None:
        """Find the file that `page` returns for a path, and lease its version."""
        self._found[path] = None
        wanted = list(self._files.candidates(self._place, self._versions, path))
        tried = set[Digest]()
        while wanted:
            tried.add(digest := wanted.pop(0))
            lease = await self._lease(digest)
            page = None if lease is None else self._file(lease, path)
            if page is not None:
                self._found[path] = page
                return
            if lease is None:
                # The table names only the newest version that has the file.
                wanted = [each for each in self._versions if each not in tried]

    def close(self) -> None:
        """Release all leases."""
        for lease in self._leases.values():
            lease.release()
        self._leases.clear()

    def _lease_at_once(self, digest: Digest) -> Lease | None:
        lease = self._leases.get(digest)
        if lease is None:
            lease = self._files.store.version_at_once(self._place.tag, digest)
            if lease is not None:
                self._leases[digest] = lease
        return lease

    async def _lease(self, digest: Digest) -> Lease | None:
        lease = self._leases.get(digest)
        if lease is None:
            lease = await self._files.store.version(self._place.tag, digest, self._read_only)
            if lease is not None:
                self._leases[digest] = lease
        return lease

    def _file(self, lease: Lease, path: bytes) -> Page | None:
        """Return the file at a path in a version; None also for a document or a damaged index."""
        if not path or path.endswith(b"/"):
            return None
        try:
            page = self._looked_up(lease, path)
        except BlobDamaged as damage:
            lease.report(damage)
            return None
        if page is None or is_document(page.name, page.entry, self._place.rules):
            return None
        return attrs.evolve(page, version=lease.digest)

    def _looked_up(self, lease: Lease, path: bytes) -> Page | None:
        if self._place.site is not None:
            return SiteLookup(lease, self._place.site).file(path)
        name = joined(self._place.rules.workdir.encode(), path)
        try:
            entry = lease.filesystem.lookup(name)
        except PathNotFound:
            return None
        return Page(entry, name) if entry.kind is EntryKind.FILE else None


def _log_failed(why: Failure) -> None:
    _log.failure("the table of earlier versions cannot be made", why)
