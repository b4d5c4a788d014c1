"""Header fields that a site sets by itself: the file ``_headers``.

Pure. The grammar is that of docs/reference/hosting-rules.md, in two dialects.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import attrs

from blobserve.web.hosting.rule_index import RuleIndex, remember
from blobserve.web.hosting.rule_lines import (
    Dialect,
    ProblemList,
    RuleProblem,
    quoted,
    rule_lines,
)
from blobserve.web.hosting.rule_pattern import (
    Pattern,
    PatternError,
    Template,
    normalised,
    without_dot_segments,
)
from blobserve.web.http.header_changes import (
    NO_CHANGES,
    Header,
    HeaderChanges,
    problem_of_removal,
    problem_of_setting,
)

FILE = "_headers"
MAX_BLOCKS = 100
"""The largest number of blocks, that is, of different patterns."""
MAX_CHARACTERS = 2000
"""The longest line, in characters."""
MAX_ADDED = 32 * 1024
"""The largest size of the names and values that a response gets; values beyond it are left out."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HOST = re.compile(rb"[A-Za-z0-9._:*-]+")
_SEPARATE = b"set-cookie"  # RFC 9110 §5.3: its values cannot be joined.


@attrs.define
class _Block:
    """The lines below one pattern."""

    line: int
    key: tuple[bytes, bytes]
    pattern: Pattern
    host: Pattern | None
    removed: set[bytes] = attrs.field(factory=set)
    values: dict[bytes, tuple[bytes, list[Template]]] = attrs.field(factory=dict)
    """The values by name in lower case, with the spelling of the name in its first line."""
    has_lines: bool = False
    uses_names: bool = False
    """True if a value has a name that is replaced."""

    def names(self) -> tuple[bytes, ...]:
        """Return the names that the pattern captures."""
        return (*self.pattern.names, *(self.host.names if self.host is not None else ()))


@attrs.frozen(eq=False)
class HeaderRules:
    """The rules of one ``_headers`` file. Created by `parse`."""

    problems: tuple[RuleProblem, ...]
    """The first reports about the file, in the order of its lines."""
    problem_count: int
    """The number of all reports."""
    rule_count: int
    """The number of blocks that apply."""
    _has_hosts: bool
    _index: RuleIndex[_Block] = attrs.field(repr=False)
    _memo: dict[bytes, HeaderChanges] = attrs.field(factory=dict, repr=False)
    _shared: dict[bytes, HeaderChanges] = attrs.field(factory=dict, repr=False)
    """The changes by the lines of the blocks that make them; thousands of paths share them."""

    @classmethod
    def parse(cls, content: bytes, dialect: Dialect) -> HeaderRules:
        """Parse the bytes of the file; wrong lines are reported and skipped.

        This may take a second for the largest file that is read, so it runs off the reactor.
        """
        problems = ProblemList(FILE)
        blocks = _Blocks(dialect, problems)
        for line, text in rule_lines(content, MAX_CHARACTERS, problems):
            if not blocks.add(line, text):
                break
        blocks.end_block()
        effective = [block for block in blocks.by_key.values() if block.removed or block.values]
        index = RuleIndex(
            ((block.pattern, block) for block in effective), ignores_slash=dialect == "netlify"
        )
        has_hosts = any(block.host is not None for block in effective)
        return cls(problems.in_order, problems.count, len(effective), has_hosts, index)

    def changes(self, path: bytes, host: bytes = b"") -> HeaderChanges:
        """Return the changes for a raw path that begins with a slash, below the site's prefix.

        `host` is the request's host in lower case, without port; only patterns that begin with
        ``https://`` use it.
        """
        key = b"//%s%s" % (host, path) if self._has_hosts else path
        try:
            return self._memo[key]
        except KeyError:
            changes = self._changes(path, host)
            remember(self._memo, key, changes)
            return changes

    def _changes(self, path: bytes, host: bytes) -> HeaderChanges:
        matches = list(self._matches(path, host))
        if not matches:
            return NO_CHANGES
        if any(block.uses_names for block, _ in matches):
            return _merged(matches)
        key = b",".join(b"%d" % block.line for block, _ in matches)
        changes = self._shared.get(key)
        if changes is None:
            changes = _merged(matches)
            remember(self._shared, key, changes)
        return changes

    def _matches(self, path: bytes, host: bytes) -> Iterator[tuple[_Block, Mapping[bytes, bytes]]]:
        """Yield each block that matches, with the captured values by name."""
        for block, captured in self._index.matches(path):
            values = dict(zip(block.pattern.names, captured, strict=True))
            if block.host is not None:
                labels = block.host.match(host)
                if labels is None:
                    continue
                values.update(zip(block.host.names, labels, strict=True))
            yield block, values


def _merged(matches: Iterable[tuple[_Block, Mapping[bytes, bytes]]]) -> HeaderChanges:
    """Return the changes that blocks make one after the other."""
    removed: set[bytes] = set()
    added: dict[bytes, tuple[bytes, list[bytes]]] = {}
    size = 0
    for block, values in matches:
        for name in block.removed:
            removed.add(name)
            added.pop(name, None)
        for name, (spelled, templates) in block.values.items():
            for template in templates:
                text = template.expand(values)
                size += len(spelled) + len(text)
                if size <= MAX_ADDED:
                    added.setdefault(name, (spelled, []))[1].append(text)
    fields: list[Header] = []
    for name, (spelled, texts) in added.items():
        if name == _SEPARATE:
            fields += ((spelled, text) for text in texts)
        else:
            fields.append((spelled, b", ".join(texts)))
    return HeaderChanges(frozenset(removed), tuple(fields))


@attrs.define
class _Blocks:
    """The blocks of a file that is being parsed."""

    dialect: Dialect
    problems: ProblemList
    by_key: dict[tuple[bytes, bytes], _Block] = attrs.field(factory=dict)
    _current: _Block | None = None
    _is_skipping: bool = False

    def add(self, line: int, text: str) -> bool:
        """Add a line. Return false if the limit is reached, so that no line follows."""
        if text.startswith("/") or _SCHEME.match(text) is not None:
            return self._begin(line, text)
        if self._current is not None:
            self._current.has_lines = True
            try:
                self._field(self._current, text)
            except PatternError as error:
                self.problems.add(line, str(error))
        elif not self._is_skipping:
            self.problems.add(
                line,
                f"the line {quoted(text)} stands below no path;"
                " write a line with a path, such as `/*`, above it",
            )
        return True

    def end_block(self) -> None:
        """Report the block that ends if it has no lines."""
        block = self._current
        if block is not None and not block.has_lines:
            shown = quoted(block.pattern.text.decode())
            self.problems.add(
                block.line, f"no header stands below {shown}; write `Name: value` below it"
            )
            del self.by_key[block.key]
        self._current = None

    def _begin(self, line: int, text: str) -> bool:
        self.end_block()
        self._is_skipping = False
        try:
            host, pattern = self._pattern(text)
        except PatternError as error:
            self.problems.add(line, f"{error}; the lines below it are skipped")
            self._is_skipping = True
            return True
        key = (b"" if host is None else host.text, pattern.text)
        block = self.by_key.get(key)
        if block is None:
            if len(self.by_key) == MAX_BLOCKS:
                self.problems.add(
                    line, f"the file has more than {MAX_BLOCKS} blocks; the rest is ignored"
                )
                return False
            block = self.by_key[key] = _Block(line, key, pattern, host)
        elif self.dialect == "cloudflare":
            self.problems.add(
                line,
                f"{quoted(text)} stands in line {block.line} already; the lines of both blocks"
                " apply, but Cloudflare uses only the last block; join them",
            )
        self._current = block
        return True

    def _pattern(self, text: str) -> tuple[Pattern | None, Pattern]:
        """Return the patterns of host and path in the first line of a block.

        :raises PatternError: if it is neither a path nor a supported URL.
        """
        scheme = _SCHEME.match(text)
        host: Pattern | None = None
        path = text
        if scheme is not None:
            if self.dialect == "netlify":
                raise PatternError(f"the URL {quoted(text)} is not supported; write only its path")
            if scheme[1].lower() != "https":
                raise PatternError(
                    f"the URL {quoted(text)} is not supported;"
                    " write a path, or a URL that begins with `https://`"
                )
            authority, _, rest = text[scheme.end() :].partition("/")
            path = f"/{rest}"
            host = self._host(authority)
        raw = path.encode().partition(b"#")[0].partition(b"?")[0].rstrip()
        pattern = Pattern.parse(normalised(without_dot_segments(raw)))
        if host is not None:
            # One pattern cannot capture the same name in its host and in its path.
            for name in set(host.names) & set(pattern.names):
                raise PatternError(
                    f"`{'*' if name == b'splat' else ':' + name.decode()}` stands in the host and"
                    " in the path; use it once"
                )
        return host, pattern

    def _host(self, authority: str) -> Pattern:
        """Return the pattern of a host.

        :raises PatternError: if there is no host, or a port.
        """
        text = authority.lower().encode() if ":" not in authority else authority.encode()
        if authority.rpartition(":")[2].isdecimal() and ":" in authority:
            raise PatternError(f"the host {quoted(authority)} has a port; remove the port")
        if _HOST.fullmatch(text) is None:
            raise PatternError(
                f"{quoted(authority)} is not a host; write its ASCII form, such as"
                " `https://example.com/*`"
            )
        return Pattern.parse(text, b".")

    def _field(self, block: _Block, text: str) -> None:
        """Add a line with a field to a block.

        :raises PatternError: if the line is wrong or the field cannot be changed.
        """
        name, colon, value = (part.strip() for part in text.partition(":"))
        if not colon:
            self._remove(block, text)
            return
        if not name or not value:
            missing = "name" if not name else "value"
            raise PatternError(f"the header {quoted(text)} has no {missing}; write `Name: value`")
        if _TOKEN.fullmatch(name) is None:
            raise PatternError(
                f"{quoted(name)} is not a header name; use letters, digits and `-` only"
            )
        lower = name.lower().encode()
        problem = problem_of_setting(lower)
        if problem is not None:
            raise PatternError(f"`{name}` {problem}")
        template = Template.parse(value.encode(), block.names())
        block.values.setdefault(lower, (name.encode(), []))[1].append(template)
        block.uses_names = block.uses_names or bool(template.names)

    def _remove(self, block: _Block, text: str) -> None:
        """Add a line without a colon, such as ``! Name``, to a block.

        :raises PatternError: if the line is wrong or the field cannot be removed.
        """
        mark, _, rest = text.partition(" ")
        name = rest.strip()
        if mark != "!" or _TOKEN.fullmatch(name) is None:
            raise PatternError(
                f"the line {quoted(text)} has no colon;"
                " write `Name: value` to set a header, or `! Name` to remove it"
            )
        if self.dialect == "netlify":
            raise PatternError(
                f"the line {quoted(text)} is Cloudflare's and has no effect at Netlify; remove it,"
                " or write `hostingDialect: cloudflare` in the configuration"
            )
        lower = name.lower().encode()
        problem = problem_of_removal(lower)
        if problem is not None:
            raise PatternError(f"`{name}` {problem}")
        block.removed.add(lower)
