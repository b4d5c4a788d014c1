"""Generated rule files, each with URLs that match its rules or nearly match them.

All choices come from a seed. The generator leaves out lines that neither the documentation nor the
hosts' parsers explain.
"""

from __future__ import annotations

from random import Random
from typing import Literal

from attrs import frozen

from tests.web.hosting.slow_rules import header_blocks, read_redirect, trim

Dialect = Literal["cloudflare", "netlify"]
DIALECTS: tuple[Dialect, ...] = ("cloudflare", "netlify")

SEGMENTS = (
    "a",
    "b",
    "A",
    "blog",
    "Blog",
    "docs",
    "news",
    "2024",
    "a-b",
    "x.html",
    "index.html",
    "caf%C3%A9",
    "caf%c3%a9",
    "a%20b",
    "%3A",
    "%7e",
    "~user",
    "@me",
    "a+b",
    "a&b=c",
    "_next",
)
UNENCODED = ("café", "日本", "ÅÄ")
NAMES = ("id", "x", "xy", "year", "Year", "slug_1", "title")
QUERIES = (None, None, None, "q=1", "a=b&c=%20d", "utm", "x=/y?z")
CODES = ("301", "302", "303", "307", "308", "200", "301", "302")
WRONG_CODES = ("300", "304", "305", "418", "500", "abc", "30", "3011", "-1", "301!!", "!")
WRONG_LINES = (
    "/only-a-source",
    "no-slash /b",
    "/a no-slash",
    "/a ftp://other.example/",
    "/a mailto:me@example.com",
    "/a //other.example/b",
    "/a /\\other.example/b",
    "https://site.example/a /b",
    "/a/*/b/* /c/:splat",
    "/a/:x/:x /c/:x",
    "/a /b 301 302",
    "/a https://other.example/b 200",
    "/a /b 302 Country=us",
    "/a /b 302 Language=en,de",
    "/a /b 302 Cookie=preview",
    "/a /b 200! Role=admin",
    "/a /b Country=us",
    "!",
    "/",
)
HEADER_NAMES = (
    "X-Frame-Options",
    "x-frame-options",
    "X-Robots-Tag",
    "X-ROBOTS-TAG",
    "Cache-Control",
    "Link",
    "Referrer-Policy",
    "X-A",
    "x-a",
)
HEADER_VALUES = (
    "DENY",
    "noindex",
    "nosnippet, noarchive",
    "public, max-age=3600",
    '</about>; rel="canonical"',
    "a:b:c # d",
    "https://other.example:8080/x",
    "default-src 'self'; img-src *",
)
WRONG_HEADERS = (
    "no colon at all",
    "X-Empty:",
    ": value",
    "X Space: 1",
    "X(Paren): 1",
    "Content-Length: 3",
    "Transfer-Encoding: chunked",
    'ETag: "1"',
    "Last-Modified: Tue, 01 Jan 2030 00:00:00 GMT",
    "content-encoding: gzip",
    "Date: Tue, 01 Jan 2030 00:00:00 GMT",
)


@frozen
class Request:
    """A request for which two implementations are compared."""

    path: str
    query: str | None
    exists: bool


@frozen
class RuleFile:
    """The text of a rule file, and requests for a site with it."""

    dialect: Dialect
    text: str
    requests: tuple[Request, ...]


def redirect_files(seed: int, count: int) -> list[RuleFile]:
    """Return `count` files of redirect rules."""
    return [_redirect_file(Random(f"redirects {seed} {number}")) for number in range(count)]


def header_files(seed: int, count: int) -> list[RuleFile]:
    """Return `count` files of header rules."""
    return [_header_file(Random(f"headers {seed} {number}")) for number in range(count)]


def _segment(random: Random, *, may_be_unencoded: bool = False) -> str:
    if may_be_unencoded and random.random() < 0.05:
        return random.choice(UNENCODED)
    # A small vocabulary at most times, so that rules and URLs meet.
    return random.choice(SEGMENTS[:8] if random.random() < 0.7 else SEGMENTS)


def _source(random: Random) -> str:
    """Return the source of a rule: static, with placeholders, with a splat, or with both."""
    draw = random.random()
    if draw < 0.06:
        return random.choice(("/", "/*", "/:x"))
    if draw < 0.1:
        # A splat takes as much as the rest of the pattern allows.
        return random.choice(("/*-:x", "/*/b/:id", "/a/*b/:x", "/*a:year"))
    kind = random.choice(("static", "static", "splat", "placeholder", "both"))
    segments = [
        _segment(random, may_be_unencoded=True) for _ in range(random.choice((1, 1, 2, 2, 3)))
    ]
    if kind in ("placeholder", "both"):
        for name in random.sample(NAMES, random.choice((1, 1, 2))):
            form = random.choice((":{}", ":{}", ":{}", "p-:{}", ":{}.html", ":{}-z", "a:{}"))
            segments.insert(random.randint(0, len(segments)), form.format(name))
    if kind in ("splat", "both"):
        if random.random() < 0.75:
            segments.append(random.choice(("*", "*", "*", "p*")))
        else:
            form = random.choice(("*", "*.html", "p*s"))
            segments.insert(random.randint(0, len(segments)), form)
    end = "/" if random.random() < 0.15 and segments[-1] != "*" else ""
    return "/" + "/".join(segments) + end


def _names_in(source: str) -> list[str]:
    names = [name for name in NAMES if _has_name(source, name)]
    return [*names, "splat"] if "*" in source else names


def _has_name(source: str, name: str) -> bool:
    return any(
        not (after[:1].isalnum() or after[:1] == "_") for after in source.split(":" + name)[1:]
    )


def _target(random: Random, source: str) -> str:
    """Return a destination that uses some of the source's names."""
    names = _names_in(source)
    segments = [_segment(random, may_be_unencoded=True) for _ in range(random.choice((0, 1, 1, 2)))]
    for name in names:
        if random.random() < 0.7:
            form = random.choice((":{}", ":{}", "p-:{}.html", ":{}:{}"))
            segments.insert(random.randint(0, len(segments)), form.format(name, name))
    if random.random() < 0.1:
        segments.append(random.choice((":unknown", ":8080", ":", ":splat", ":xyz", "*")))
    target = "/" + "/".join(segments)
    if random.random() < 0.15:
        target = random.choice(("https://other.example", "http://other.example:8080")) + target
    if random.random() < 0.2:
        value = ":" + random.choice(names) if names and random.random() < 0.6 else "1"
        target += random.choice((f"?q={value}", f"?a={value}&b=é", f"?u=/x/{value}", "?"))
    if random.random() < 0.15:
        target += random.choice(("#top", "#/route", "#:splat", "#a?b"))
    return target


def _code(random: Random, dialect: str) -> str:
    if random.random() < 0.3:
        return ""
    if random.random() < 0.06:
        return random.choice(WRONG_CODES)
    if random.random() < 0.1:
        return random.choice(("404", "404!"))
    code = random.choice(CODES)
    force_share = 0.35 if dialect == "netlify" else 0.05
    return code + "!" if random.random() < force_share else code


def _differ_by_slash(source: str, target: str) -> bool:
    path = target.split("#")[0].split("?")[0]
    return source.rstrip("/") == path.rstrip("/")


def _redirect_line(random: Random, dialect: str, earlier: list[str]) -> str:
    source = random.choice(earlier) if earlier and random.random() < 0.12 else _source(random)
    target = _target(random, source)
    while dialect == "netlify" and _differ_by_slash(source, target):
        # Netlify's page only says that a rule cannot add or remove a slash.
        target = _target(random, source)
    draw = random.random()
    if draw < 0.04:
        source, target = "/*", random.choice(("/index.html", "/"))
    elif draw < 0.07:
        source, target = "/files/*", random.choice(("/:splat", "/b/:splat", "/_headers"))
    earlier.append(source)
    written = source
    if dialect == "cloudflare" and random.random() < 0.06:
        written += random.choice(("?old=1", "#part", "?a#b"))
    if random.random() < 0.03 and len(written) > 1:
        written = written[1:]
    between = random.choice((" ", " ", "  ", "\t", " \t "))
    line = between.join(part for part in (written, target, _code(random, dialect)) if part)
    if random.random() < 0.05:
        line += random.choice((" # comment", " #comment"))
    return line


def _long_line(random: Random, start: str, limit: int) -> str:
    """Return a line at the limit of characters or one beyond it."""
    filler = random.choice(("l", "é"))
    return start + filler * (limit + random.choice((0, 1)) - len(start))


def _shuffled_into(random: Random, line: str) -> str:
    """Return the line, at times indented or with spaces at its end."""
    return random.choice(("", "", "", "", " ", "\t")) + line + random.choice(("", "", "", "", "  "))


def _redirect_file(random: Random) -> RuleFile:
    dialect = random.choice(DIALECTS)
    sources: list[str] = []
    lines: list[str] = []
    for _ in range(random.choice((1, 2, 3, 5, 8, 13))):
        draw = random.random()
        if draw < 0.08:
            lines.append(random.choice(("", "  ", "# comment", "  # /a /b 301", "#/a /b")))
        elif draw < 0.16:
            lines.append(random.choice(WRONG_LINES))
        elif draw < 0.2 and lines:
            lines.append(random.choice(lines))
        elif draw < 0.21:
            lines.append(_long_line(random, "/long /", 1_000))
            sources.append("/long")
        else:
            lines.append(_shuffled_into(random, _redirect_line(random, dialect, sources)))
    if dialect == "netlify":
        lines = _without_undecided_repeats(lines)
    return RuleFile(dialect, _joined(random, lines), _requests(random, sources))


def _without_undecided_repeats(lines: list[str]) -> list[str]:
    """Return the lines without each repeated one that has another rule for its source.

    Netlify's parser keeps the last of equal lines, but its page says that the first rule counts.
    """
    rules = [read_redirect(trim(line), "netlify") for line in lines]
    kept = []
    for at, (line, rule) in enumerate(zip(lines, rules, strict=True)):
        for_source = [
            other
            for other in rules
            if other and rule and other[0].rstrip("/") == rule[0].rstrip("/")
        ]
        is_repeated = rule in rules[:at]
        if not is_repeated or all(other == rule for other in for_source):
            kept.append(line)
    return kept


def _header_file(random: Random) -> RuleFile:
    dialect = random.choice(DIALECTS)
    sources: list[str] = []
    blocks: list[list[str]] = []
    for _ in range(random.choice((1, 2, 3, 4, 6))):
        source = random.choice(sources) if sources and random.random() < 0.2 else _source(random)
        if random.random() < 0.2:
            source = random.choice(("/*", "/*", "/blog/*", "/:x"))
        sources.append(source)
        if random.random() < 0.06:
            source = random.choice(("/a/*/b/*", "/:x/:x", "https://site.example/*"))
        block = [random.choice(("", "", "", " ")) + source]
        for _ in range(random.choice((0, 1, 1, 2, 3, 4))):
            block.append(_header_line(random, source))
        blocks.append(block)

    lines = ["  X-A: before any path"] if random.random() < 0.1 else []
    for block in blocks:
        if _has_decided_place(block, blocks, dialect):
            lines += block
            if random.random() < 0.3:
                lines.append(random.choice(("", "   ", "# comment", "  # X-A: comment")))
    return RuleFile(dialect, _joined(random, lines), _requests(random, sources))


def _has_decided_place(block: list[str], blocks: list[list[str]], dialect: str) -> bool:
    """Return whether it is decided where other blocks for the path of this one are merged.

    It is open whether a block with only wrong lines counts as the first block for its path.
    """
    same = [other for other in blocks if trim(other[0]) == trim(block[0])]
    has_only_wrong_lines = len(block) > 1 and not header_blocks("\n".join(block), dialect)
    return len(same) == 1 or not has_only_wrong_lines


def _header_line(random: Random, source: str) -> str:
    indent = random.choice(("  ", "  ", "  ", "\t", ""))
    draw = random.random()
    if draw < 0.15:
        return indent + "! " + random.choice(HEADER_NAMES)
    if draw < 0.25:
        return indent + random.choice(WRONG_HEADERS)
    if draw < 0.27:
        # Cloudflare's page counts the indentation of a line, its parser does not.
        return _long_line(random, "X-Long: ", 2_000).replace("é", "m")
    value = random.choice(HEADER_VALUES)
    names = _names_in(source)
    if names and random.random() < 0.5:
        value = random.choice((":{}", 'at ":{}"', "</x/:{}>; rel=up", ":{}:unknown")).format(
            random.choice(names)
        )
    return f"{indent}{random.choice(HEADER_NAMES)}:{random.choice((' ', '', '  '))}{value}"


def _joined(random: Random, lines: list[str]) -> str:
    end = random.choice(("\n", "\n", "\n", "\r\n"))
    return end.join(lines) + random.choice((end, ""))


def _requests(random: Random, sources: list[str]) -> tuple[Request, ...]:
    paths = ["/" + "/".join(_segment(random) for _ in range(random.randint(0, 3)))]
    for source in random.sample(sources, min(len(sources), 3)):
        path = _hit(random, source)
        paths += [path, _near(random, path)]
    return tuple(
        Request(
            path,
            random.choice(QUERIES),
            # The hosts have no files where a rewrite of `/files/*` may not lead.
            exists=random.random() < 0.3 and not path.startswith("/files/"),
        )
        for path in paths
    )


def _hit(random: Random, source: str) -> str:
    """Return a path that the source matches."""
    path = source
    for name in sorted(_names_in(source), key=len, reverse=True):
        if name != "splat":
            path = path.replace(":" + name, _segment(random))
    rest = "/".join(_segment(random) for _ in range(random.choice((0, 1, 1, 2, 3))))
    ends = (rest, rest, rest, rest + "/", "/" + rest, "a-b/b/b")
    path = path.replace("*", random.choice(ends))
    if path.startswith("/files/") and random.random() < 0.5:
        path = "/files/" + random.choice(("_redirects", "%5fheaders", "%2e%2e/a", "a/_headers"))
    return "".join(
        character if character.isascii() else _encoded(random, character) for character in path
    )


def _encoded(random: Random, character: str) -> str:
    form = random.choice(("%{:02X}", "%{:02x}"))
    return "".join(form.format(byte) for byte in character.encode())


def _near(random: Random, path: str) -> str:
    """Return a path that differs a little from the given one."""
    draw = random.randrange(8)
    if draw == 0:
        return path[:-1] if path.endswith("/") and len(path) > 1 else path + "/"
    if draw == 1:
        return "".join(random.choice((c.upper(), c.lower())) for c in path)
    if draw == 2:
        return path.rpartition("/")[0] or "/"
    if draw == 3:
        return path.rstrip("/") + "/" + _segment(random)
    if draw == 4:
        return path + random.choice(("x", ".html", "%20", "-z"))
    if draw == 5:
        return "/" + _segment(random) + path
    if draw == 6:
        return path.replace("-", "/") if "-" in path else path.replace("a", "%61", 1)
    return path.replace("%c3%a9", "%C3%A9") if "%c3%a9" in path else path.replace("/", "//", 1)
