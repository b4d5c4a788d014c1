"""Redirects and rewrites of a site: the file ``_redirects``.

Pure. The grammar is that of docs/reference/hosting-rules.md, in two dialects.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import attrs

from blobserve.web.hosting.rule_index import (
    RuleIndex,
    remember,
    without_slash,
)
from blobserve.web.hosting.rule_lines import (
    Dialect,
    ProblemList,
    RuleProblem,
    quoted,
    rule_lines,
)
from blobserve.web.hosting.rule_match import RuleMatch
from blobserve.web.hosting.rule_pattern import (
    Pattern,
    PatternError,
    encoded_query,
    normalised,
    unknown_names,
    without_dot_segments,
)
from blobserve.web.hosting.rule_target import RuleTarget

FILE = "_redirects"
MAX_STATIC = 2000
"""The largest number of rules without splat and placeholder."""
MAX_DYNAMIC = 100
"""The largest number of rules with splat or placeholder."""
MAX_CHARACTERS = 1000
"""The longest line, in characters."""

MAX_LOCATION = 16 * 1024
"""The longest location without the request's query, in bytes; a rule that makes a longer one does
not apply."""

_REDIRECTS = (301, 302, 303, 307, 308)
_DEFAULT_STATUS = {"cloudflare": 302, "netlify": 301}
_STATUS = re.compile(r"([0-9]{3})(!?)")
_CONDITIONS = ("country", "language", "cookie", "role")
_SINGLE_PAGES = (b"/index.html", b"/index", b"/")


@attrs.frozen
class _Rule:
    """One line of the file."""

    line: int
    pattern: Pattern
    target: RuleTarget
    target_word: str
    status: int
    is_forced: bool

    def is_same(self, other: _Rule) -> bool:
        """Return whether another line says the same."""
        return (self.pattern.text, self.target_word, self.status, self.is_forced) == (
            other.pattern.text,
            other.target_word,
            other.status,
            other.is_forced,
        )

    def match(self, values: tuple[bytes, ...]) -> _Effect | None:
        """Return the effect with these captured values; None if it would not be safe."""
        named = dict(zip(self.pattern.names, values, strict=True))
        if self.status not in _REDIRECTS:
            file = self.target.file(named)
            if file is None:
                return None
            return _Effect(RuleMatch(self.status, file, self.is_forced), False, b"")
        parts = self.target.url(named)
        if parts is None:
            return None
        url, query, fragment = parts
        if len(url) + len(query) + len(fragment) > MAX_LOCATION:
            return None
        match = RuleMatch(self.status, url + query + fragment, self.is_forced)
        return _Effect(match, not query, fragment)


@attrs.frozen
class _Effect:
    """A match before the request's query is added."""

    match: RuleMatch
    keeps_query: bool
    fragment: bytes

    def with_query(self, query: bytes | None) -> RuleMatch:
        """Return the match for a request with this query."""
        if not query or not self.keeps_query:
            return self.match
        location = self.match.location
        end = len(location) - len(self.fragment)
        url = b"%s?%s%s" % (location[:end], encoded_query(query), self.fragment)
        return attrs.evolve(self.match, location=url)


@attrs.frozen(eq=False)
class RedirectRules:
    """The rules of one ``_redirects`` file. Created by `parse`."""

    problems: tuple[RuleProblem, ...]
    """The first reports about the file, in the order of its lines."""
    problem_count: int
    """The number of all reports."""
    rule_count: int
    """The number of rules that apply."""
    _existing_files_win: bool
    _index: RuleIndex[_Rule] = attrs.field(repr=False)
    _memo: dict[bytes, _Effect | None] = attrs.field(factory=dict, repr=False)

    @classmethod
    def parse(cls, content: bytes, dialect: Dialect) -> RedirectRules:
        """Parse the bytes of the file; wrong lines are reported and skipped.

        This may take a second for the largest file that is read, so it runs off the reactor.
        """
        problems = ProblemList(FILE)
        accepted = _RuleList(dialect, problems)
        for line, text in rule_lines(content, MAX_CHARACTERS, problems):
            if accepted.is_full:
                problems.add(line, accepted.refusal(is_dynamic=True) + "; the rest is ignored")
                break
            accepted.add(line, text)
        rules = accepted.rules.values()
        is_netlify = dialect == "netlify"
        index = RuleIndex(((rule.pattern, rule) for rule in rules), is_netlify)
        return cls(problems.in_order, problems.count, len(rules), is_netlify, index)

    def match(
        self, path: bytes, query: bytes | None, file_exists: bool | Callable[[], bool]
    ) -> RuleMatch | None:
        """Return the effect of the first rule that matches a raw path, None if there is none.

        `path` begins with a slash and is below the site's prefix. `query` is the part after the
        question mark. `file_exists` says whether the site has a file at the path; it is called
        only if the answer matters.
        """
        try:
            found = self._memo[path]
        except KeyError:
            found = next(self._matches(path), None)
            remember(self._memo, path, found)
        if found is None:
            return None
        if (
            self._existing_files_win
            and not found.match.is_forced
            and (file_exists if isinstance(file_exists, bool) else file_exists())
        ):
            return None
        return found.with_query(query)

    def _matches(self, path: bytes) -> Iterator[_Effect]:
        for rule, values in self._index.matches(path):
            found = rule.match(values)
            if found is not None:
                yield found


@attrs.define
class _RuleList:
    """The rules that are accepted so far, in order and by source, and their limits."""

    dialect: Dialect
    problems: ProblemList
    rules: dict[bytes, _Rule] = attrs.field(factory=dict)
    static: int = 0
    dynamic: int = 0

    @property
    def is_full(self) -> bool:
        """Return whether no further line can be accepted."""
        # Cloudflare counts each rule below the first dynamic one as dynamic.
        is_static_full = self.dialect == "cloudflare" or self.static == MAX_STATIC
        return self.dynamic == MAX_DYNAMIC and is_static_full

    def refusal(self, is_dynamic: bool) -> str:
        """Return the text for a rule beyond the limit of its kind."""
        if not is_dynamic:
            return (
                f"the file has {MAX_STATIC:,} rules without `*` and `:name` already;"
                " write one rule with `*` for several of them"
            )
        if self.dialect == "netlify":
            return f"the file has {MAX_DYNAMIC} rules with `*` or `:name` already; join some"
        return (
            f"the file has {MAX_DYNAMIC} rules from the first one with `*` or `:name` on already;"
            " move rules without them to the top, or join some"
        )

    def add(self, line: int, text: str) -> None:
        """Accept the rule of a line, or report why not."""
        source = text.split(None, 1)[0]
        # So that thousands of rules beyond the limit cost little. A colon need not be a name.
        if ":" not in source and self._is_beyond("*" in source):
            self.problems.add(line, self.refusal("*" in source))
            return
        try:
            rule = _rule(line, text, self.dialect)
        except PatternError as error:
            self.problems.add(line, str(error))
            return
        if not self._is_repeated(rule) and self._is_counted(rule):
            self.rules[self._key(rule)] = rule
            self._report_ignored(rule, source)

    def _is_beyond(self, is_dynamic: bool) -> bool:
        """Return whether the limit for rules of this kind is reached."""
        if is_dynamic or (self.dialect == "cloudflare" and self.dynamic):
            return self.dynamic == MAX_DYNAMIC
        return self.static == MAX_STATIC

    def _is_counted(self, rule: _Rule) -> bool:
        """Count a rule; false if it is beyond the limit, and then it is reported."""
        is_dynamic = bool(rule.pattern.names)
        if self._is_beyond(is_dynamic):
            self.problems.add(rule.line, self.refusal(is_dynamic))
            return False
        if is_dynamic or (self.dialect == "cloudflare" and self.dynamic):
            self.dynamic += 1
        else:
            self.static += 1
        return True

    def _key(self, rule: _Rule) -> bytes:
        """Return the source in the form in which it is compared with others."""
        return self._comparable(rule.pattern.text)

    def _comparable(self, path: bytes) -> bytes:
        """Return a path without a slash at its end if the dialect ignores that slash."""
        return without_slash(path) if self.dialect == "netlify" else path

    def _is_repeated(self, rule: _Rule) -> bool:
        """Return whether the source is that of an earlier rule, and then report it."""
        key = self._key(rule)
        first = self.rules.get(key)
        if first is None:
            return False
        if self.dialect == "netlify" and first.is_same(rule):
            # Netlify removes the earlier one of two equal rules.
            self.problems.add(
                first.line, f"line {rule.line} has the same rule, and its place counts; remove one"
            )
            del self.rules[key]
            self.rules[key] = rule
        else:
            shown = quoted(rule.pattern.text.decode())
            self.problems.add(
                rule.line,
                f"the rule for {shown} in line {first.line} stays, and this one is skipped;"
                " remove one of them",
            )
        return True

    def _report_ignored(self, rule: _Rule, source: str) -> None:
        """Report the parts of an accepted rule that have no effect."""
        if "?" in source or "#" in source:
            self.problems.add(
                rule.line,
                f"query and fragment of the source {quoted(source)} are ignored;"
                " write only its path",
            )
        path = rule.target.path.text if rule.target.is_local else b""
        is_own = self._comparable(path) == self._key(rule)
        if is_own and not rule.pattern.names and rule.status in _REDIRECTS:
            self.problems.add(
                rule.line,
                f"the rule redirects {quoted(source)} to itself, which is an endless loop;"
                " remove it",
            )
        word = rule.target_word
        text = word if rule.target.is_local else word.partition("://")[2]
        for name in dict.fromkeys(unknown_names(text.encode(), rule.pattern.names)):
            self.problems.add(
                rule.line,
                f"the source captures no `:{name.decode()}`, so the target keeps this text;"
                " use a name of the source",
            )


def _rule(line: int, text: str, dialect: Dialect) -> _Rule:
    """Return the rule of a line.

    :raises PatternError: if the line is wrong or not supported.
    """
    # A target cannot begin with a number sign in Netlify's grammar.
    words = _without_comment(text.split(), 1 if dialect == "netlify" else 2)
    source_word, target_word, status_word = _words(words, dialect)
    pattern = _source(source_word, dialect)
    status, is_forced = _status(status_word, dialect)
    target = RuleTarget.parse(target_word, pattern.names)
    if status not in _REDIRECTS:
        _check_rewrite(target, target_word, status)
    if dialect == "cloudflare" and pattern.text == b"/*" and target.is_local:
        path = target.path.text
        if path in _SINGLE_PAGES and (status == 200 or path != b"/"):
            raise PatternError(
                f"the rule {quoted(f'/* {target_word} {status}')} is skipped, because it can be an"
                " endless loop; remove it: a site without a top-level `404.html` answers with"
                " `/index.html` anyway"
            )
    return _Rule(line, pattern, target, target_word, status, is_forced)


def _without_comment(words: list[str], first: int) -> list[str]:
    """Return the words before a comment, which begins at the word `first` or later."""
    for number, word in enumerate(words):
        if number >= first and word.startswith("#"):
            return words[:number]
    return words


def _words(words: list[str], dialect: Dialect) -> tuple[str, str, str | None]:
    """Return source, target and status of a rule.

    :raises PatternError: if there are too few or too many words.
    """
    for word in words[1:]:
        if not _is_target(word) and "=" in word:
            raise PatternError(_condition(word))
    if len(words) < 2 or (len(words) == 2 and _STATUS.fullmatch(words[1])):
        raise PatternError("the rule has no target; write `source target code`")
    if len(words) > 3:
        if any(word.startswith("#") for word in words[2:]):
            raise PatternError("a comment must stand on a line of its own; move it")
        if dialect == "netlify" and any(_is_target(word) for word in words[2:]):
            raise PatternError(
                f"the word {quoted(words[1])} before the target is not supported; remove it"
            )
        raise PatternError(
            f"the rule has {len(words)} words; write `source target code`, and `%20` for a space"
        )
    return words[0], words[1], words[2] if len(words) == 3 else None


def _is_target(word: str) -> bool:
    return word.startswith("/") or "://" in word


def _condition(word: str) -> str:
    name = word.partition("=")[0]
    if name.lower() in _CONDITIONS:
        return (
            f"the condition {quoted(word)} is not supported;"
            " write a rule without conditions, or remove the line"
        )
    return (
        f"the condition {quoted(word)} is not supported, since rules see no query;"
        " write a rule for the path alone, or remove the line"
    )


def _source(word: str, dialect: Dialect) -> Pattern:
    """Return the pattern of a source.

    :raises PatternError: if it is no path.
    """
    if "://" in word.partition("/*")[0] and not word.startswith("/"):
        raise PatternError(
            f"the source {quoted(word)} names a host; write only its path,"
            " and `redirect` in the configuration for a whole host"
        )
    if not word.startswith("/"):
        if dialect == "netlify":
            raise PatternError(f"the source must begin with a slash; write {quoted('/' + word)}")
        word = f"/{word}"
    path = word.encode().partition(b"#")[0].partition(b"?")[0]
    return Pattern.parse(normalised(without_dot_segments(path)))


def _status(word: str | None, dialect: Dialect) -> tuple[int, bool]:
    """Return the status of a rule, and whether it wins over an existing file.

    :raises PatternError: if there is no such status in the dialect.
    """
    if word is None:
        return _DEFAULT_STATUS[dialect], dialect == "cloudflare"
    found = _STATUS.fullmatch(word)
    status = int(found[1]) if found is not None else 0
    if found is None or status not in (*_REDIRECTS, 200, 404):
        codes = "200, 301, 302, 303, 307 or 308"
        if dialect == "netlify":
            codes = "200, 301, 302, 303, 307, 308 or 404"
        raise PatternError(f"the code {quoted(word)} is not supported; write {codes}")
    if dialect == "netlify":
        return status, bool(found[2])
    if found[2]:
        raise PatternError(
            f"the forced code {quoted(word)} is Netlify's; write `{status}`, since rules come"
            " before files, or `hostingDialect: netlify` in the configuration"
        )
    if status == 404:
        raise PatternError(
            "the code `404` is Netlify's; add a file `404.html` to the folder,"
            " or write `hostingDialect: netlify` in the configuration"
        )
    return status, True


def _check_rewrite(target: RuleTarget, word: str, status: int) -> None:
    """Check the target of a rewrite or a 404 page.

    :raises PatternError: if it is not a file of the site.
    """
    if not target.is_local:
        raise PatternError(
            f"the target {quoted(word)} with code {status} is on another host, and proxying is not"
            " supported; write a path of the site, or a redirect code such as 302"
        )
    if not target.path.names and target.file({}) is None:
        raise PatternError(
            f"the target {quoted(word)} with code {status} is not a file that the site serves;"
            " write the path of another file"
        )
