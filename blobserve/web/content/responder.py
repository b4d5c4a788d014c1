"""From a request's head to the response with a file of an image.

The responder leases the image, finds the file, rewrites it if the rules say so, chooses a coded
variant, and evaluates the request's conditions. It is independent of connections.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import closing

import attrs
from twisted.internet.interfaces import IReactorTime

from blobserve.concurrency.singleflight import SingleFlight
from blobserve.concurrency.threads import Threads
from blobserve.config import Config, RepositoryRules
from blobserve.errors import BlobDamaged, BlobserveError, Forbidden, NotFound, PathNotFound
from blobserve.names.reference import Reference
from blobserve.store.ingest.early_files import EarlyFile
from blobserve.store.lease import Lease
from blobserve.store.refs.versions import Version
from blobserve.store.refstore import RefStore
from blobserve.web.content.derived import DerivedCache
from blobserve.web.content.earlier_versions import (
    EarlierFiles,
    NotAtOnce,
    RequestVersions,
    VersionChoice,
)
from blobserve.web.content.early_body import early_answer
from blobserve.web.content.leased_body import Checks, FileBody, SharedLease, too_slow
from blobserve.web.content.lookup import Directory, NeedsSlash
from blobserve.web.content.representation import Representation, Role, Variant
from blobserve.web.content.response_cache import (
    LARGEST,
    CachedResponse,
    Key,
    ResponseCache,
    read_whole,
)
from blobserve.web.content.rewrite import RewriteRecipe, Variables, parse_variables
from blobserve.web.content.selection import Selection, early_name, select
from blobserve.web.content.site_fields import dressed, site_name
from blobserve.web.content.site_lookup import Relocation, SiteLookup
from blobserve.web.content.site_rules import ImageRules, SiteRules
from blobserve.web.content.site_selection import Selected, select_on_site
from blobserve.web.content.stable_names import StableNames
from blobserve.web.content.variants import choose
from blobserve.web.hosting.rule_match import RuleMatch
from blobserve.web.http.caching import INLINE_VARIABLES, NO_SNIFF, vary
from blobserve.web.http.conditional import Fields
from blobserve.web.http.header_changes import HeaderChanges
from blobserve.web.http.mount import Detour, Mount
from blobserve.web.http.request_head import READ_ONLY, VARIABLES, RequestContext, RequestHead
from blobserve.web.http.response import Answer, Body, BytesBody, Header
from blobserve.web.http.status import ALLOW
from blobserve.web.http.target import WHOLE_SERVER, Target, shown

_TOKENS = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+(?:[ \t]*,[ \t]*[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")


_NOT_CACHED = (Role.NOT_FOUND, Role.NAVIGATED)
"""The roles whose responses are not cached in memory: header fields decide, or errors are rare."""


class Responder:
    """The answers to all requests for files of images."""

    def __init__(
        self,
        store: RefStore,
        config: Callable[[], Config],
        reactor: IReactorTime,
        disk: Threads,
        wall: Callable[[], float],
    ) -> None:
        """`wall` returns the time of day, in seconds since 1970."""
        self._wall = wall
        self._store = store
        self._config = config
        self._reactor = reactor
        self._disk = disk
        self._checks: Checks = SingleFlight()
        self.derived = DerivedCache()
        self._site_rules = SiteRules()
        self._stable_names = StableNames()
        self._earlier = EarlierFiles(store, config, disk, reactor)
        self._responses = ResponseCache(store, config, reactor)

    def prepare(self) -> None:
        """Import the parts that the configuration needs, before a request would wait for that."""
        config = self._config()
        sites = (site.rules for site in config.sites.values())
        if any(rules.listing for rules in (*config.repos.values(), *sites)):
            import blobserve.web.content.listing
            import blobserve.web.content.listing_view  # noqa: F401

    def flush(self) -> None:
        """Clear all caches, after the configuration has changed."""
        self.derived.flush()
        self._responses.flush()
        self._earlier.flush()

    def with_rules(self, answer: Answer, asked: RequestContext) -> Answer:
        """Return the answer with the header fields of the rules of its repository or site."""
        if asked.head.mount.site is not None:
            answer = dressed(answer, asked.changes, asked.head.mount)
        rules = asked.rules or self._rules_of(asked.head)
        return answer if rules is None else answer.with_rules(rules)

    def from_memory(self, head: RequestHead, now: float) -> CachedResponse | None:
        """Return the response to a GET or HEAD if that needs no waiting.

        None also for redirects and errors, which `get` handles.

        :param now: the time by the reactor's clock.
        """
        if head.selector is None or head.mount.detour is not None:
            return None
        key: Key = (head.mount.name, head.path, head.selector)
        choice = self._earlier.choice(head)
        if choice is not None:
            # Only the versions of the tag get into keys, so that forged values add none.
            named = b"%s %d" % (str(choice.digest).encode(), choice.is_in_url)
            key = (head.mount.name, head.path, (*head.selector, named))
        cached = self._responses.get(key, now)
        return self.new_response(head, key, choice) if cached is None else cached

    def cached_response(self, key: Key, now: float) -> CachedResponse | None:
        """Return the cached response for `key`, at the time `now` of the reactor's clock."""
        return self._responses.get(key, now)

    async def read_rules(self, reference: Reference) -> None:
        """Read the hosting rules of a READY image for each site that has it."""
        sites = [each for each in self._config().sites.values() if each.has_image(reference)]
        lease = self._store.lease_at_once(reference) if sites else None
        if lease is None:
            return
        shared = self._shared(lease, math.inf)
        try:
            for site in sites:
                await self._site_rules.get(shared, SiteLookup(lease, site))
        except BlobDamaged as damage:
            lease.report(damage)
        finally:
            shared.release()

    def versions_changed(self, tag: Reference) -> None:
        """Prepare for requests for files of the earlier versions of a tag, which have changed."""
        self._earlier.changed(tag)

    async def get(self, asked: RequestContext) -> Answer:
        """Return the answer to a GET or a HEAD. The caller applies `with_rules` to it.

        :raises BlobserveError: if the request must be answered with an error.
        """
        head, config = asked.head, self._config()
        if head.mount.detour is not None:
            return _detour(head.mount.detour, head)
        now = self._reactor.seconds()
        asked.deadline = now + config.timeout
        cached = self.from_memory(head, now)
        if cached is not None:
            asked.rules, asked.changes = cached.rules, cached.changes
            asked.cache, asked.digest = cached.result, cached.version or cached.image
            return cached.answer(head.method, head.fields)
        target = head.parse_target()
        rules = asked.rules = head.mount.rules(config, target)
        if rules is None:
            raise Forbidden(str(target.reference.repository))
        self._check_depth(target)
        inlined = head.fields.get(VARIABLES)
        variables = None if inlined is None else parse_variables(inlined)
        read_only = _is_read_only(head)
        # On a site, rules of the image decide which file answers.
        name = None if head.mount.site else early_name(target, rules, variables)
        wait = self._store.lease_or_early(target.reference, name, read_only, config.timeout)
        if not wait.called:
            wait.addTimeout(config.timeout, self._reactor, too_slow)
        found = await wait
        if isinstance(found, EarlyFile):
            asked.cache, asked.digest = "early", found.image
            return early_answer(found, name or b"", rules, self._disk)
        return await self._answer(found, target, rules, variables, asked)

    def _check_depth(self, target: Target) -> None:
        """Check the depth of a path before it is looked up.

        :raises PathNotFound: if the path is deeper than ``limits.depth``.
        """
        if target.depth > self._config().limits.depth:
            raise PathNotFound(shown(target.path or b""))

    async def _answer(
        self,
        lease: Lease,
        target: Target,
        rules: RepositoryRules,
        variables: Variables | None,
        asked: RequestContext,
    ) -> Answer:
        """Return the answer of `get` from a leased image. Takes over the lease."""
        head = asked.head
        asked.cache, asked.digest = lease.result, lease.digest
        shared = self._shared(lease, asked.deadline)
        place = self._earlier.place(target.reference, rules, head.mount.site)
        choice = None if place is None else self._earlier.choice(head)
        earlier = self._earlier.of_request(place, choice, lease.digest, _is_read_only(head))
        try:
            selection = await self._select(shared, target, rules, variables, asked, earlier)
            if isinstance(selection, Selection) and earlier is not None:
                selection = attrs.evolve(selection, names_version=earlier.names(selection.page))
                version = earlier.take(selection.page)
                if version is not None:
                    shared.release()
                    lease, shared = version, self._shared(version, asked.deadline)
                    asked.digest = lease.digest
                    asked.changes = await self._changes(shared, target, head.mount)
            if isinstance(selection, NeedsSlash):
                return _redirect(target, target.with_slash(head.query))
            if isinstance(selection, Relocation):
                return _redirect(target, target.to(selection.path, head.query))
            if isinstance(selection, RuleMatch):
                return _redirect(target, _location(selection, head), selection.status)
            if isinstance(selection, Directory):
                shown, body = await self._listing(shared, selection, target, rules, asked)
            else:
                variant, body = await self._variant(shared, selection, asked)
                shown = selection.represented(variant, lease.digest, self._wall())
        except BlobDamaged as damage:
            lease.report(damage)
            raise
        finally:
            shared.release()
            if earlier is not None:
                earlier.close()
        return shown.answer(head.method, head.fields, body)

    async def _select(
        self,
        shared: SharedLease,
        target: Target,
        rules: RepositoryRules,
        variables: Variables | None,
        asked: RequestContext,
        earlier: RequestVersions | None,
    ) -> Selected:
        head, site = asked.head, asked.head.mount.site
        lookup = image_rules = None
        if site is not None:
            lookup = SiteLookup(shared.lease, site)
            image_rules = await self._site_rules.get(shared, lookup)
            asked.changes = image_rules.changes(target, head.mount)
        if earlier is not None:
            await earlier.prepare()
        while True:
            try:
                if lookup is None or image_rules is None:
                    return select(shared.lease, target, rules, variables, earlier)
                return self._select_on_site(lookup, target, image_rules, variables, head, earlier)
            except NotAtOnce as wanted:
                if earlier is None:
                    raise
                await earlier.find(wanted.path)

    async def _changes(
        self, shared: SharedLease, target: Target, mount: Mount
    ) -> HeaderChanges | None:
        """Return the changes that the ``_headers`` of an image make."""
        if mount.site is None:
            return None
        rules = await self._site_rules.get(shared, SiteLookup(shared.lease, mount.site))
        return rules.changes(target, mount)

    def _shared(self, lease: Lease, deadline: float) -> SharedLease:
        return SharedLease(lease, self._disk, self._reactor, deadline, self._checks)

    def _select_on_site(
        self,
        lookup: SiteLookup,
        target: Target,
        rules: ImageRules,
        variables: Variables | None,
        head: RequestHead,
        earlier: RequestVersions | None,
    ) -> Selected:
        selected = select_on_site(
            lookup, target, rules, head.query, variables, head.is_navigation, earlier
        )
        if not isinstance(selected, Selection) or not selected.has_immutable_path:
            return selected
        sha256 = selected.page.entry.sha256
        is_stable = self._stable_names.holds(head.mount.name, target.path or b"", sha256)
        return selected if is_stable else attrs.evolve(selected, is_stable=False)

    async def _variant(
        self, shared: SharedLease, selection: Selection, asked: RequestContext
    ) -> tuple[Variant, Body]:
        entry = selection.page.entry
        if not selection.edits:
            choice = choose(shared.lease, selection, asked.head.fields)
            file = shared.lease.filesystem.file(choice.entry)
            return choice.variant, FileBody(shared, file)
        derived = await self.derived.get(shared, entry, self._recipe(selection))
        return derived.variant, BytesBody(derived.content)

    def _recipe(self, selection: Selection) -> RewriteRecipe:
        return RewriteRecipe(selection.edits, self._config().limits.rewrite_size)

    async def _listing(
        self,
        shared: SharedLease,
        directory: Directory,
        target: Target,
        rules: RepositoryRules,
        asked: RequestContext,
    ) -> tuple[Representation, Body]:
        # Imported late: listings are off by default.
        from blobserve.web.content.listing import listed
        from blobserve.web.content.listing_view import ListingView

        limit = self._config().limits.listing_entries
        head, view = asked.head, None
        if head.mount.site is not None:
            hidden = SiteLookup(shared.lease, head.mount.site).hidden
            view = ListingView.parse(site_name(head), head.root, head.query, hidden)
        listing = listed(target, rules, head.fields, limit, view)
        derived = await self.derived.get(shared, directory.entry, listing.recipe)
        shown = listing.represented(derived.variant, shared.lease.digest)
        return shown, BytesBody(derived.content)

    def new_response(
        self, head: RequestHead, key: Key, choice: VersionChoice | None = None
    ) -> CachedResponse | None:
        """Return the same response as `get` if it is a small file in memory, and cache it."""
        if self._responses.is_too_large(key):
            return None
        try:
            target = head.parse_target()
            self._check_depth(target)
            lease = self._store.lease_at_once(target.reference)
            if lease is None:
                return None
            with lease:
                rules = head.mount.rules(self._config(), target)
                place = self._earlier.place(target.reference, rules, head.mount.site)
                earlier = self._earlier.of_request(place, choice, lease.digest)
                if earlier is None:
                    return self._new_response_from(lease, target, head, key, rules, None)
                with closing(earlier):
                    if not earlier.prepare_at_once():
                        return None
                    return self._new_response_from(lease, target, head, key, rules, earlier)
        except (BlobserveError, NotAtOnce):
            return None

    def _new_response_from(
        self,
        current: Lease,
        target: Target,
        head: RequestHead,
        key: Key,
        rules: RepositoryRules | None,
        earlier: RequestVersions | None,
    ) -> CachedResponse | None:
        changes, lease = None, current
        selection: Selected | None = None
        if head.mount.site is not None:
            lookup = SiteLookup(lease, head.mount.site)
            image_rules = self._site_rules.cached(lookup)
            if image_rules is not None:
                changes = image_rules.changes(target, head.mount)
                selection = self._select_on_site(lookup, target, image_rules, None, head, earlier)
        elif rules is not None:
            selection = select(lease, target, rules, None, earlier)
        if not isinstance(selection, Selection) or selection.page.role in _NOT_CACHED:
            return None
        if earlier is not None:
            selection = attrs.evolve(selection, names_version=earlier.names(selection.page))
            lease = earlier.lease_of(selection.page, current)
        if lease is not current and head.mount.site is not None:
            image_rules = self._site_rules.cached(SiteLookup(lease, head.mount.site))
            if image_rules is None:
                return None
            changes = image_rules.changes(target, head.mount)
        if selection.edits:
            derived = self.derived.cached(lease, selection.page.entry, self._recipe(selection))
            source, is_final = None, True
            variant, content = (derived.variant, derived.content) if derived else (None, None)
        else:
            choice = choose(lease, selection, head.fields)
            # The place of coded bytes is valid only during the lease.
            source = None if choice.entry.coding else choice.entry
            variant, is_final = choice.variant, choice.is_final
            content = read_whole(lease, choice.entry)
            if is_final and choice.entry.size > LARGEST:
                self._responses.note_too_large(key)
        if variant is None or content is None or len(content) > LARGEST:
            return None
        self._store.count(current.result)
        shown = selection.represented(variant, lease.digest, self._wall())
        reference = target.reference
        cached = CachedResponse(
            shown,
            content,
            source,
            selection.rules,
            reference,
            current.digest,
            head.mount,
            changes,
            selection.page.version,
            None if earlier is None else self._kept(reference, selection),
        )
        return self._responses.add(key, cached, current) if is_final else cached

    def _kept(self, tag: Reference, selection: Selection) -> tuple[Version, ...] | None:
        """Return the versions that a response depends on; None if it depends on none."""
        page = selection.page
        if page.version is None and page.role is Role.ASKED:
            return None
        return self._store.references.versions.of(tag, selection.rules.versions)

    async def options(self, asked: RequestContext) -> Answer:
        """Return the answer to OPTIONS. The caller applies `with_rules` to it.

        If a GET would be answered with a file, this is 204. It answers a CORS preflight if the
        rules configure allowed origins. Any other answer is that of the GET.

        :raises BlobserveError: if the request must be answered with an error.
        """
        if asked.head.target == WHOLE_SERVER:
            return Answer(204, (ALLOW,))
        plain = RequestContext(asked.head.as_plain_get)
        try:
            answer = await self.get(plain)
        finally:
            asked.rules, asked.changes = plain.rules, plain.changes
            asked.cache, asked.digest = plain.cache, plain.digest
        if answer.status != 200:
            return answer
        answer.body.close()
        names = {name.lower() for name, _ in asked.rules.headers} if asked.rules else set()
        if "access-control-allow-origin" not in names:
            return Answer(204, (ALLOW,))
        return Answer(204, (ALLOW, *_preflight(asked.head.fields)))

    def _rules_of(self, head: RequestHead) -> RepositoryRules | None:
        if head.mount.site is not None:
            return head.mount.site.rules
        try:
            target = head.parse_target()
        except NotFound:
            return None
        return head.mount.rules(self._config(), target)


def _is_read_only(head: RequestHead) -> bool:
    return head.fields.get(READ_ONLY, b"").lower() == b"true"


def _redirect(target: Target, location: bytes, status: int = 301) -> Answer:
    headers = [(b"Location", location), (b"Cache-Control", b"no-cache")]
    if target.path is None:
        # With inline variables, the same URL is the page itself.
        headers.append(vary(INLINE_VARIABLES))
    return Answer(status, (*headers, NO_SNIFF))


def _location(match: RuleMatch, head: RequestHead) -> bytes:
    """Return the value of ``Location`` for a rule; its path is relative to the site."""
    if not match.location.startswith(b"/"):
        return match.location
    return head.prefix + match.location


def _detour(detour: Detour, head: RequestHead) -> Answer:
    if detour.status == 404:
        raise PathNotFound("/")
    location = detour.target(head.path, head.query)
    return Answer(
        detour.status, ((b"Location", location), (b"Cache-Control", b"no-cache"), NO_SNIFF)
    )


def _preflight(fields: Fields) -> tuple[Header, ...]:
    """Return the fields for a CORS preflight. Any requested header is allowed: none does harm."""
    wanted = fields.get(b"access-control-request-headers", b"")
    allowed = ((b"Access-Control-Allow-Headers", wanted),) if _TOKENS.fullmatch(wanted) else ()
    return ((b"Access-Control-Allow-Methods", b"GET, HEAD, OPTIONS"), *allowed)
