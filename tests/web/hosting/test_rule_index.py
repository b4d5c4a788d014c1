"""The index of rules, which keeps the order of the file."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from blobserve.web.hosting.rule_index import MEMO_ENTRIES, MEMO_PATH, RuleIndex, remember
from blobserve.web.hosting.rule_pattern import Pattern, PatternError

SEGMENTS = st.sampled_from(["a", "b", "c", ":x", ":y", "*", "a*", ":z.js", ""])


def parsed(text: str) -> Pattern | None:
    """Return a pattern, or None if it is impossible."""
    try:
        return Pattern.parse(text.encode())
    except PatternError:
        return None


PATTERNS = st.lists(SEGMENTS, min_size=1, max_size=4).map(
    lambda parts: parsed("/" + "/".join(parts))
)


@given(
    st.lists(PATTERNS.filter(bool), max_size=12),
    st.lists(st.sampled_from(["a", "b", "c", "ab", "d.js", ""]), max_size=4),
    st.booleans(),
)
def test_finds_the_same_rules_as_a_search(
    patterns: list[Pattern], segments: list[str], ignores_slash: bool
) -> None:
    """The index yields exactly the rules that match, in their order, with their values."""
    path = ("/" + "/".join(segments)).encode()
    paths = [path]
    if ignores_slash and path != b"/":
        paths.append(path[:-1] if path.endswith(b"/") else path + b"/")
    expected = []
    for number, pattern in enumerate(patterns):
        values = [found for each in paths if (found := pattern.match(each)) is not None]
        if values:
            expected.append((number, values[0]))
    index = RuleIndex(((pattern, number) for number, pattern in enumerate(patterns)), ignores_slash)
    assert list(index.matches(path)) == expected


def test_the_memo_is_bounded() -> None:
    """A memo never has more than its number of entries, and no long path."""
    memo: dict[bytes, int] = {}
    remember(memo, b"x" * (MEMO_PATH + 1), 0)
    assert memo == {}
    for number in range(3 * MEMO_ENTRIES):
        remember(memo, b"%d" % number, number)
        assert memo[b"%d" % number] == number
        assert len(memo) <= MEMO_ENTRIES
