"""A second, slow implementation of `_redirects` and `_headers`.

It is written from the published documentation, and its author has not read the implementation in
`blobserve.web.hosting`. It scans all lines for each URL and uses plain strings, so that each rule
can be read beside the page that it comes from:

- "Redirects" (Cloudflare Pages, Configuration): lines of source, destination and code; comments;
  302 as the default; one splat; the first of several rules for a source applies; 2,000 static and
  100 dynamic rules of 1,000 characters; a rewrite stays within the site and is one hop; a rule
  applies whether or not a file exists; no conditions, no 404.
- "Headers" (Cloudflare Pages, Configuration): blocks of a path and header lines; the headers of all
  matching blocks apply; equal names are joined; `! Name` detaches; 100 rules, lines of 2,000
  characters that count with their spacing; `:splat` and placeholders in values.
- The section "Placeholders" of both pages: a colon, a letter, then letters, digits and underscores;
  each name once; a value ends at a slash.
- "Redirect options" (Netlify): 301 as the default; the codes 200 and 404; a rule matches with and
  without a slash at the end of the path; the query of the request is passed on.
- "Redirects and rewrites" (Netlify): the first matching rule counts, from top to bottom; an older
  version of the page has comments at the end of a rule.
- "Rewrites and proxies", section "Shadowing" (Netlify): an existing file wins unless the code ends
  with an exclamation mark.
- "Custom headers" (Netlify): the same blocks, without `! Name`.

The hosts' own parsers decide a few cases that no page describes. For Cloudflare, detached names act
before the values of their own block, the query and fragment of a source are dropped, a query in the
destination replaces the request's, sources are percent-encoded and get a slash in front, `/*`
cannot lead to `/index.html`, and below the first dynamic rule each rule counts as dynamic. Netlify
keeps the last place of an exact duplicate, and matches a header path with and without its last
slash.

blobserve adds: hexadecimal digits are normalised (RFC 3986, section 6.2.2.1), blocks for one path
are merged, a `Location` never begins with two slashes, no rule leads up with `..`, a rewrite
reaches neither rule file, and some header names cannot be set.
"""

from __future__ import annotations

import string
from functools import lru_cache
from urllib.parse import unquote

REDIRECTS = (301, 302, 303, 307, 308)
STATIC_RULES = 2_000
DYNAMIC_RULES = 100
REDIRECT_LINE = 1_000
HEADER_RULES = 100
HEADER_LINE = 2_000

LETTERS = string.ascii_letters
NAME_CHARACTERS = string.ascii_letters + string.digits + "_"
TOKEN_CHARACTERS = string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~"

UNSETTABLE = (
    "connection",
    "content-encoding",
    "content-length",
    "date",
    "etag",
    "last-modified",
    "transfer-encoding",
)


# Text


def lines_of(text: str) -> list[str]:
    """Return the lines without their line ends."""
    return [line.removesuffix("\r") for line in text.split("\n")]


def trim(line: str) -> str:
    """Return the line without spaces and tabs at its ends."""
    return line.strip(" \t")


def words_of(line: str) -> list[str]:
    """Return the parts between spaces and tabs."""
    return [word for word in line.replace("\t", " ").split(" ") if word]


def percent_encoded(text: str) -> str:
    """Return the text with each character that no URL may contain percent-encoded."""
    result = ""
    for character in text:
        if "!" <= character <= "~" and character not in '"<>`{}':
            result += character
        else:
            result += "".join(f"%{byte:02X}" for byte in character.encode())
    return result


def upper_hex(text: str) -> str:
    """Return the text with the digits of each percent-encoded byte in upper case."""
    result = ""
    at = 0
    while at < len(text):
        digits = text[at + 1 : at + 3]
        if text[at] == "%" and len(digits) == 2 and all(d in string.hexdigits for d in digits):
            result += "%" + digits.upper()
            at += 3
        else:
            result += text[at]
            at += 1
    return result


# Patterns


def pieces_of(text: str) -> list[tuple[str, str]]:
    """Return the text as pieces: a `literal`, a `name` after its colon, or a `splat`."""
    pieces: list[tuple[str, str]] = []
    literal = ""
    at = 0
    while at < len(text):
        end = end_of_name(text, at)
        if text[at] != "*" and end == at:
            literal += text[at]
            at += 1
            continue
        if literal:
            pieces.append(("literal", literal))
            literal = ""
        if text[at] == "*":
            pieces.append(("splat", "splat"))
            at += 1
        else:
            pieces.append(("name", text[at + 1 : end]))
            at = end
    if literal:
        pieces.append(("literal", literal))
    return pieces


def end_of_name(text: str, at: int) -> int:
    """Return the end of the placeholder that begins at `at`, or `at` where none begins."""
    if text[at] != ":" or text[at + 1 : at + 2] not in tuple(LETTERS):
        return at
    end = at + 1
    while end < len(text) and text[end] in NAME_CHARACTERS:
        end += 1
    return end


def is_valid_pattern(source: str) -> bool:
    """Return whether the source is a path with one splat at most and each name once."""
    names = [value for kind, value in pieces_of(source) if kind != "literal"]
    return source.startswith("/") and len(names) == len(set(names))


def is_static(source: str) -> bool:
    """Return whether the source has neither a splat nor a placeholder."""
    return all(kind == "literal" for kind, _ in pieces_of(source))


def matched(pieces: list[tuple[str, str]], path: str) -> dict[str, str] | None:
    """Return the values of the names where the pieces match the whole path."""
    if not pieces:
        return None if path else {}
    (kind, value), others = pieces[0], pieces[1:]
    if kind == "literal":
        return matched(others, path[len(value) :]) if path.startswith(value) else None
    shortest = 0
    longest = len(path)
    if kind == "name":
        shortest = 1
        longest = len(path.split("/")[0])
    for end in range(longest, shortest - 1, -1):
        found = matched(others, path[end:])
        if found is not None:
            return {value: path[:end], **found}
    return None


def values_of(source: str, path: str, dialect: str) -> dict[str, str] | None:
    """Return the values of the source's names, if it matches the path."""
    for spelling in spellings_of(upper_hex(path), dialect):
        values = matched(pieces_of(source), spelling)
        if values is not None:
            return values
    return None


def spellings_of(path: str, dialect: str) -> list[str]:
    """Return the path, and for Netlify also the path with or without its last slash."""
    if dialect == "cloudflare" or path == "/":
        return [path]
    if path.endswith("/"):
        return [path, path[:-1]]
    return [path, path + "/"]


def filled(text: str, values: dict[str, str]) -> str:
    """Return the text with each known placeholder replaced by its value."""
    result = ""
    for kind, value in pieces_of(text):
        if kind == "name":
            result += values.get(value, ":" + value)
        elif kind == "splat":
            result += "*"
        else:
            result += value
    return result


# Redirects


def is_absolute(target: str) -> bool:
    """Return whether the destination is on another host."""
    return target.startswith(("http://", "https://"))


def without_comment(words: list[str]) -> list[str]:
    """Return the words before the first one that begins with a number sign."""
    for at, word in enumerate(words):
        if word.startswith("#"):
            return words[:at]
    return words


def read_redirect(line: str, dialect: str) -> tuple[str, str, int, bool] | None:
    """Return the source, destination, status and force of a line, or None for a wrong line.

    A forced rule applies although a file exists. For Cloudflare that is each rule.
    """
    if len(line) > REDIRECT_LINE:
        return None
    words = words_of(line)
    kept = 0 if dialect == "netlify" else 2
    words = words[:kept] + without_comment(words[kept:])
    if len(words) not in (2, 3):
        return None

    source = upper_hex(percent_encoded(words[0].split("#")[0].split("?")[0]))
    if dialect == "cloudflare" and not source.startswith("/") and not is_absolute(source):
        source = "/" + source
    if not is_valid_pattern(source):
        return None

    target = percent_encoded(words[1])
    if not target.startswith("/") and not is_absolute(target):
        return None
    if target.startswith(("//", "/\\")):
        return None

    code = words[2] if len(words) == 3 else {"cloudflare": "302", "netlify": "301"}[dialect]
    forced = dialect == "cloudflare"
    if dialect == "netlify" and code.endswith("!"):
        forced = True
        code = code[:-1]
    allowed = [str(status) for status in (200, *REDIRECTS)]
    if dialect == "netlify":
        allowed.append("404")
    if code not in allowed:
        return None
    status = int(code)

    if status in (200, 404) and is_absolute(target):
        return None
    path_of_target = target.split("#")[0].split("?")[0]
    if status in (200, 404) and is_rule_file(path_of_target):
        return None
    is_loop = path_of_target == "/index.html" or (path_of_target == "/" and status == 200)
    if dialect == "cloudflare" and source == "/*" and is_loop:
        return None
    return source, target, status, forced


@lru_cache(maxsize=1)
def redirect_rules(text: str, dialect: str) -> list[tuple[str, str, int, bool]]:
    """Return the rules of a file, in the order in which they are tried."""
    read = []
    for line in lines_of(text):
        trimmed = trim(line)
        if trimmed and not trimmed.startswith("#"):
            rule = read_redirect(trimmed, dialect)
            if rule is not None:
                read.append(rule)

    if dialect == "netlify":
        read = [rule for at, rule in enumerate(read) if rule not in read[at + 1 :]]

    kept: list[tuple[str, str, int, bool]] = []
    static = dynamic = 0
    for rule in read:
        source = rule[0]
        if source in [earlier[0] for earlier in kept]:
            continue
        if is_static(source) and (dialect == "netlify" or dynamic == 0):
            static += 1
            if static > STATIC_RULES:
                continue
        else:
            dynamic += 1
            if dynamic > DYNAMIC_RULES:
                continue
        kept.append(rule)
    return kept


def is_rule_file(path: str) -> bool:
    """Return whether the path is that of one of the two rule files."""
    return unquote(path).strip("/") in ("_redirects", "_headers")


def leads_up(location: str) -> bool:
    """Return whether the location has a segment that leads out of its directory."""
    path = location.split("#")[0].split("?")[0]
    return ".." in unquote(path).split("/")


def location_of(target: str, values: dict[str, str], query: str | None) -> str:
    """Return the destination with its placeholders filled and with a query."""
    before, hash_sign, fragment = target.partition("#")
    path, _, own_query = before.partition("?")
    location = filled(path, values)
    if own_query or query:
        location += "?" + (filled(own_query, values) or query or "")
    location += hash_sign + filled(fragment, values)

    return "".join(character for character in location if character >= " ")


def redirect(
    text: str, dialect: str, path: str, query: str | None, exists: bool
) -> tuple[int, str, bool] | None:
    """Return the status, location and force of the rule that applies to a request.

    :param path: the percent-encoded path of the request.
    :param exists: whether the site has a file at this path.
    """
    # A static rule above the first dynamic rule is tried first. That is the order of the file.
    for source, target, status, forced in redirect_rules(text, dialect):
        values = values_of(source, path, dialect)
        if values is None:
            continue
        if exists and not forced:
            return None
        location = location_of(target, values, query)
        if status in (200, 404):
            # A file has neither a query nor a fragment.
            location = location.split("#")[0].split("?")[0]
            if is_rule_file(location):
                continue
        elif not is_absolute(location):
            # A browser takes two slashes, or a slash and a backslash, for another host.
            location = "/" + location.lstrip("/\\")
        if leads_up(location):
            continue
        return status, location, forced
    return None


# Headers


def is_valid_name(name: str) -> bool:
    """Return whether the name is a header name that a site may set."""
    is_token = name != "" and all(character in TOKEN_CHARACTERS for character in name)
    return is_token and name.lower() not in UNSETTABLE


@lru_cache(maxsize=1)
def header_blocks(text: str, dialect: str) -> list[tuple[str, list[str], list[tuple[str, str]]]]:
    """Return the blocks of a file: the path, the names to remove, the names and values to set."""
    read: list[tuple[str, list[str], list[tuple[str, str]]]] = []
    block: tuple[str, list[str], list[tuple[str, str]]] | None = None
    for line in lines_of(text):
        trimmed = trim(line)
        if not trimmed or trimmed.startswith("#"):
            continue

        if trimmed.startswith("/"):
            source = upper_hex(percent_encoded(trimmed))
            block = None
            if len(line) <= HEADER_LINE and is_valid_pattern(source):
                block = (source, [], [])
                read.append(block)
            continue
        if trimmed.startswith(("http://", "https://")):
            block = None  # A pattern with a host cannot be matched by the path alone.
            continue

        if block is None or len(line) > HEADER_LINE:
            continue
        _, removed, added = block
        if trimmed.startswith("! "):
            name = trim(trimmed[2:])
            if dialect == "cloudflare" and is_valid_name(name):
                removed.append(name.lower())
            continue
        name, colon, value = trimmed.partition(":")
        if colon and trim(value) and is_valid_name(trim(name)):
            added.append((trim(name), trim(value)))

    with_headers = [block for block in read if block[1] or block[2]]
    return merged(with_headers)[:HEADER_RULES]


def merged(
    blocks: list[tuple[str, list[str], list[tuple[str, str]]]],
) -> list[tuple[str, list[str], list[tuple[str, str]]]]:
    """Return the blocks with all blocks for one path in the place of the first."""
    sources: list[str] = []
    for source, _, _ in blocks:
        if source not in sources:
            sources.append(source)
    return [
        (
            source,
            [name for other, names, _ in blocks if other == source for name in names],
            [pair for other, _, pairs in blocks if other == source for pair in pairs],
        )
        for source in sources
    ]


def header_changes(text: str, dialect: str, path: str) -> tuple[set[str], list[tuple[str, str]]]:
    """Return the names that a response loses, in lower case, and the names and values it gets."""
    removed: set[str] = set()
    result: list[tuple[str, str]] = []
    for source, names, pairs in header_blocks(text, dialect):
        values = values_of(source, path, dialect)
        if values is None:
            continue
        removed.update(names)
        result = [(name, value) for name, value in result if name.lower() not in names]
        for name, value in pairs:
            result = joined(result, name, filled(value, values))
    return removed, result


def joined(headers: list[tuple[str, str]], name: str, value: str) -> list[tuple[str, str]]:
    """Return the headers with one more value, which an equal name joins to its first one."""
    if name.lower() not in [earlier.lower() for earlier, _ in headers]:
        return [*headers, (name, value)]
    return [
        (earlier, f"{old}, {value}" if earlier.lower() == name.lower() else old)
        for earlier, old in headers
    ]
