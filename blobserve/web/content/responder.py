"""Files: from a request's head to its answer.

Where the parts of this floor meet: the image is leased, the page found, rewritten where rules say
so, judged by the request's conditions. Heads are values of bytes; connections are not known here.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from blobserve.concurrency.singleflight import SingleFlight
from blobserve.concurrency.threads import Threads
from blobserve.config import Config, RepositoryRules
from blobserve.errors import BlobDamaged, BlobserveError, Forbidden, NotFound, PathNotFound
from blobserve.names.reference import Reference
from blobserve.store.ingest.early_files import EarlyFile
from blobserve.store.lease import Lease
from blobserve.store.refstore import RefStore
from blobserve.web.content.derived import DerivedCache
from blobserve.web.content.early_body import early_answer, early_name
from blobserve.web.content.leased_body import Checks, FileBody, SharedLease, too_slow
from blobserve.web.content.listing import listed
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
from blobserve.web.content.selection import Selection, select
from blobserve.web.content.variants import choose
from blobserve.web.http.caching import INLINE_VARIABLES, NO_SNIFF, vary
from blobserve.web.http.conditional import Fields
from blobserve.web.http.request import READ_ONLY, VARIABLES, RequestContext, RequestHead
from blobserve.web.http.response import Answer, Body, BytesBody, Header
from blobserve.web.http.status import ALLOW
from blobserve.web.http.target import WHOLE_SERVER, Target, shown

Found = Lease | EarlyFile

_TOKENS = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+(?:[ \t]*,[ \t]*[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")


class Responder:
    """Answers requests for files of images."""

    def __init__(
        self,
        store: RefStore,
        config: Callable[[], Config],
        reactor: IReactorTime,
        disk: Threads,
    ) -> None:
        self._store = store
        self._config = config
        self._reactor = reactor
        self._disk = disk
        self._checks: Checks = SingleFlight()
        self.views = DerivedCache()
        self._ready = ResponseCache(store, config, reactor)

    def flush(self) -> None:
        """Forget what was computed under an older configuration."""
        self.views.flush()
        self._ready.flush()

    def dressed(self, answer: Answer, asked: RequestContext) -> Answer:
        """The same answer with what the repository's rules add to each of its responses."""
        rules = asked.rules or self._rules_of(asked.head)
        return answer if rules is None else answer.under(rules)

    def at_once(self, head: RequestHead) -> CachedResponse | None:
        """What answers a GET or HEAD for which nothing has to be waited for.

        None also for what is to be refused or redirected: that is for `get` to say.
        """
        if head.selector is None:
            return None
        key = (head.path, head.selector)
        ready = self._ready.get(key)
        if ready is not None or self._ready.is_too_large(key):
            return ready
        return self._made_ready(head, key)

    async def get(self, asked: RequestContext) -> Answer:
        """The answer to a GET or a HEAD, not yet `dressed`.

        :raises BlobserveError: what is to be refused, and why.
        """
        head, config = asked.head, self._config()
        asked.deadline = self._reactor.seconds() + config.timeout
        ready = self.at_once(head)
        if ready is not None:
            asked.rules, asked.cache, asked.digest = ready.rules, ready.result, ready.image
            return ready.answer(head.method, head.fields)
        location = Target.parse(head.path)
        rules = asked.rules = config.rules_for(location.reference.repository)
        if rules is None:
            raise Forbidden(str(location.reference.repository))
        self._hold_depth(location)
        variables = parse_variables(head.fields.get(VARIABLES))
        read_only = head.fields.get(READ_ONLY, b"").lower() == b"true"
        name = early_name(location, rules, variables)
        found = await self._found(location.reference, name, read_only, config.timeout)
        if isinstance(found, EarlyFile):
            asked.cache, asked.digest = "early", found.image
            return early_answer(found, name or b"", self._disk)
        return await self._answer(found, location, rules, variables, asked)

    def _hold_depth(self, location: Target) -> None:
        """Refuse a path that is deeper than any image may be, before it is looked up.

        :raises PathNotFound: if it is.
        """
        if location.depth > self._config().limits.depth:
            raise PathNotFound(shown(location.path or b""))

    async def _answer(
        self,
        lease: Lease,
        location: Target,
        rules: RepositoryRules,
        variables: Variables | None,
        asked: RequestContext,
    ) -> Answer:
        """What `get` makes of a READY image."""
        head = asked.head
        asked.cache, asked.digest = lease.result, lease.digest
        hold = SharedLease(lease, self._disk, self._reactor, asked.deadline, self._checks)
        try:
            selection = select(lease, location, rules, variables)
            if isinstance(selection, NeedsSlash):
                return _redirect(location, head.query)
            if isinstance(selection, Directory):
                shown, body = await self._listing(hold, selection, location, rules, asked)
            else:
                variant, body = await self._variant(hold, selection, asked)
                shown = selection.represented(variant, lease.digest, self._reactor.seconds())
        except BlobDamaged as damage:
            lease.report(damage)
            raise
        finally:
            hold.release()
        return shown.answer(head.method, head.fields, body)

    async def _variant(
        self, hold: SharedLease, selection: Selection, asked: RequestContext
    ) -> tuple[Variant, Body]:
        entry = selection.page.entry
        if not selection.edits:
            choice = choose(hold.lease, selection, asked.head.fields)
            file = hold.lease.filesystem.file(choice.entry)
            return choice.variant, FileBody(hold, file)
        view = await self.views.view(hold, entry, self._recipe(selection))
        return view.variant, BytesBody(view.content)

    def _recipe(self, selection: Selection) -> RewriteRecipe:
        return RewriteRecipe(selection.edits, self._config().limits.rewrite_size)

    async def _listing(
        self,
        hold: SharedLease,
        directory: Directory,
        location: Target,
        rules: RepositoryRules,
        asked: RequestContext,
    ) -> tuple[Representation, Body]:
        most = self._config().limits.listing_entries
        listing = listed(location, rules, asked.head.fields, most)
        view = await self.views.view(hold, directory.entry, listing.recipe)
        return listing.represented(view.variant, hold.lease.digest), BytesBody(view.content)

    def _made_ready(self, head: RequestHead, key: Key) -> CachedResponse | None:
        """The same as `get` makes, of a small file that is in memory."""
        try:
            location = Target.parse(head.path)
            self._hold_depth(location)
            lease = self._store.lease_at_once(location.reference)
            if lease is None:
                return None
            with lease:
                return self._read(lease, location, head.fields, key)
        except BlobserveError:
            return None

    def _read(
        self, lease: Lease, location: Target, fields: Fields, key: Key
    ) -> CachedResponse | None:
        rules = self._config().rules_for(location.reference.repository)
        selection = None if rules is None else select(lease, location, rules, None)
        if not isinstance(selection, Selection) or selection.page.role is Role.NOT_FOUND:
            return None
        if selection.edits:
            view = self.views.kept(lease, selection.page.entry, self._recipe(selection))
            source, is_final = None, True
            variant, content = (view.variant, view.content) if view else (None, None)
        else:
            choice = choose(lease, selection, fields)
            # Where the coded bytes lie is not known for longer than the lease.
            source = None if choice.entry.coding else choice.entry
            variant, is_final = choice.variant, choice.is_final
            content = read_whole(lease, choice.entry)
            if is_final and choice.entry.size > LARGEST:
                self._ready.pass_over(key)
        if variant is None or content is None or len(content) > LARGEST:
            return None
        self._store.count(lease.result)
        shown = selection.represented(variant, lease.digest, self._reactor.seconds())
        reference = location.reference
        ready = CachedResponse(shown, content, source, selection.rules, reference, lease.digest)
        return self._ready.keep(key, ready, lease) if is_final else ready

    async def options(self, asked: RequestContext) -> Answer:
        """Return the answer to OPTIONS, not yet `dressed`: no other than to a GET without a file.

        A preflight is answered where the rules say which origins are allowed.

        :raises BlobserveError: what is to be refused, and why.
        """
        if asked.head.target == WHOLE_SERVER:
            return Answer(204, (ALLOW,))
        plain = RequestContext(asked.head.as_plain_get)
        try:
            answer = await self.get(plain)
        finally:
            asked.rules, asked.cache, asked.digest = plain.rules, plain.cache, plain.digest
        if answer.status != 200:
            return answer
        answer.body.close()
        names = {name.lower() for name, _ in asked.rules.headers} if asked.rules else set()
        if "access-control-allow-origin" not in names:
            return Answer(204, (ALLOW,))
        return Answer(204, (ALLOW, *_preflight(asked.head.fields)))

    def _rules_of(self, head: RequestHead) -> RepositoryRules | None:
        try:
            repository = Target.parse(head.path).reference.repository
        except NotFound:
            return None
        return self._config().rules_for(repository)

    async def _found(
        self, reference: Reference, early: bytes | None, read_only: bool, timeout: float
    ) -> Found:
        """A lease, or if that comes first the file with the name `early`."""
        wait = self._store.lease_or_early(reference, early, read_only, timeout)
        if not wait.called:
            wait.addTimeout(timeout, self._reactor, too_slow)
        return await wait


def _redirect(location: Target, query: bytes | None) -> Answer:
    headers = [(b"Location", location.with_slash(query)), (b"Cache-Control", b"no-cache")]
    if location.path is None:
        # With inline variables, the same URL is the page itself.
        headers.append(vary(INLINE_VARIABLES))
    return Answer(301, (*headers, NO_SNIFF))


def _preflight(fields: Fields) -> tuple[Header, ...]:
    """The CORS protocol's answer: any header may be sent, none of them does harm."""
    wanted = fields.get(b"access-control-request-headers", b"")
    allowed = ((b"Access-Control-Allow-Headers", wanted),) if _TOKENS.fullmatch(wanted) else ()
    return ((b"Access-Control-Allow-Methods", b"GET, HEAD, OPTIONS"), *allowed)
