"""Requests, byte for byte, with the expected answers, as values.

Each is named after its row in the list of cases: H for conditions, ranges and paths, R for raw
bytes. This module sends nothing; any server that holds `FILES` as `TAG` can be tested with its
cases.
"""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping

import attrs

from tests.support.parts.images import Files, Link
from tests.support.parts.wire import Reply
from tests.support.sites import REPOSITORY, TAG, made
from tests.web.test_site import BAD, MARKER

ELEVEN = b"hello world"
KILO = bytes(number * 7 % 251 for number in range(1000))
PAGE = b"<html>page</html>"
TEXT = b"a line of text that any coding makes shorter\n" * 200

ODD_NAMES = (
    "cr\r\nSet-Cookie: a=b",
    "lf\nX: y",
    '"quoted"',
    "tab\tname",
    "nel\x85\u2028",
    "<b>&",
    "a:b",
    "100%41",
    "q?x=1#y",
    "\\\\host\\x",
)
"""Names that an image may hold, and that must be escaped in every header."""

FILES: Files = {
    "eleven.txt": ELEVEN,
    "kilo.bin": KILO,
    "empty.txt": b"",
    "text.css": TEXT,
    "index.html": PAGE,
    "docs/index.html": b"docs",
    "docs/deep/a.txt": b"deep",
    "bare/x.txt": b"x",
    "ref.example/x:v2@y/z.txt": b"no reference",
    "other.example/index.html": b"not another host",
    "up": Link(f"../../../../{__file__}"),
    "loop": Link("loop"),
    **{f"t/{name}": b"typed" for name in ("A.JS", "a.json", "a.svg", "a.wasm", "a.x1", "LICENSE")},
    **{f"odd/{name}": b"odd" for name in ODD_NAMES},
    **{f"dirs/{name}/index.html": b"odd" for name in ODD_NAMES},
    # The content tells which request a reply belongs to.
    **{f"{name}.txt": b"this is %b" % name.encode() for name in ("asked", "next", "last")},
}

DIGEST = str(made(FILES).digest)
FIXED = f"{REPOSITORY}@{DIGEST}"
NOWHERE = "sha256:" + "0" * 64

DATE = "Sun, 13 Sep 2020 12:26:40 GMT"
"""The modification time of every file in images that the tests make."""
BEFORE = "Sun, 13 Sep 2020 12:26:39 GMT"
AFTER = "Sun, 13 Sep 2020 12:26:41 GMT"

FOR_EVER = "public, max-age=31536000, immutable"
SHORT = "public, max-age=60, stale-while-revalidate=60"


def tag_of(content: bytes) -> str:
    """Return the entity tag of a file with this content."""
    return f'"{urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()}"'


A = tag_of(ELEVEN)


@attrs.frozen
class Case:
    """A request for one target with these field lines, and the expected answer."""

    name: str
    target: str
    fields: tuple[str, ...] = ()
    status: int = 200
    body: bytes | None = None
    """The expected body; None for any."""
    has: Mapping[str, str] = attrs.field(factory=dict)
    lacks: frozenset[str] = frozenset()
    head: int | None = None
    """The status of a HEAD request, if it differs from that of GET."""
    methods: tuple[str, ...] = ("GET", "HEAD")

    def request(self, method: str) -> bytes:
        """Return the bytes of the request."""
        lines = [f"{method} {self.target} HTTP/1.1", "Host: localhost", *self.fields]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    @property
    def plain(self) -> bytes:
        """Return a GET request without the fields, for the root if the target is no path."""
        target = self.target if self.target.startswith("/") else "/"
        return attrs.evolve(self, target=target, fields=()).request("GET")

    def check(self, reply: Reply, method: str) -> None:
        """Check a reply against the case."""
        is_other = method == "HEAD" and self.head is not None
        assert reply.status == (self.head if is_other else self.status)
        if not is_other:
            assert {name: reply.headers.get(name) for name in self.has} == self.has
            assert not self.lacks & reply.headers.keys()
        if method == "HEAD":
            assert reply.body == b""
        elif self.body is not None:
            assert reply.body == self.body


def at(path: str, reference: str = TAG) -> str:
    """Return the target of a path in an image."""
    return f"/{reference}/{path}"


def eleven(name: str, *fields: str, status: int = 200, reference: str = FIXED) -> Case:
    """Return a case on the file of eleven bytes, by default in an image named by digest."""
    body = {200: ELEVEN, 304: b""}.get(status)
    return Case(f"{name}: {status}", at("eleven.txt", reference), fields, status, body)


# --- 3.3 Conditional requests ---------------------------------------------------------------------


def _on(row: str, status: int, *values: str, field: str, **options: str) -> Iterable[Case]:
    for value in values:
        yield eleven(f"{row} {field} {value!r}", f"{field}: {value}", status=status, **options)  # type: ignore[arg-type]


_MATCHING = (A, f'"x", {A}', f'{A},"x"', f'"x",\t{A}', f", ,{A}", f'"x,y", {A}')
_NO_TAGS = (A.lower(), A.strip('"'), ",", A.rstrip('"'), A.lstrip('"'), "", f"w/{A}", f'"x" {A}')
_OTHER_FORMS = (
    "Sunday, 13-Sep-20 12:26:40 GMT",
    "Sun Sep 13 12:26:40 2020",
    DATE.replace("G", "g"),
)
_LATER = ("Tue, 19 Jan 2038 03:14:08 GMT", "Fri, 01 Jan 2174 00:00:00 GMT")
_NO_DATES = (
    "garbage",
    "",
    f"{DATE}, {DATE}",
    "1600000000",
    "Sun, 13 Sep 2020 12:26:60 GMT",
    "\xff",
)

CONDITIONAL = [
    *_on("H01", 304, *_MATCHING, field="If-None-Match"),
    *_on("H01 tag", 304, *_MATCHING, field="If-None-Match", reference=TAG),
    eleven("H01 two lines", 'If-None-Match: "x"', f"If-None-Match: {A}", status=304),
    *_on("H02", 304, f"W/{A}", "*", " * ", field="If-None-Match"),
    *_on("H02", 200, *_NO_TAGS, field="If-None-Match"),
    Case(
        "H03 what 304 says of a tag",
        at("eleven.txt"),
        (f"If-None-Match: {A}",),
        304,
        b"",
        {"etag": A, "cache-control": SHORT, "content-location": f"../../../{FIXED}/eleven.txt"},
        frozenset({"content-length", "content-type", "last-modified"}),
    ),
    Case(
        "H03 what 304 says of a digest",
        at("eleven.txt", FIXED),
        (f"If-None-Match: {A}",),
        304,
        b"",
        {"etag": A, "cache-control": FOR_EVER},
        frozenset({"content-length", "content-type"}),
    ),
    eleven("H04", 'If-None-Match: "x"', f"If-Modified-Since: {AFTER}"),
    eleven("H05", f"If-None-Match: {A}", f"If-Modified-Since: {BEFORE}", status=304),
    *_on("H06", 304, DATE, AFTER, *_OTHER_FORMS, *_LATER, field="If-Modified-Since"),
    *_on("H06", 200, BEFORE, *_NO_DATES, field="If-Modified-Since"),
    *_on("H06 tag", 200, DATE, AFTER, field="If-Modified-Since", reference=TAG),
    *_on("H07", 200, A, f'"x", {A}', "*", field="If-Match"),
    *_on("H07", 412, '"B"', f"W/{A}", A.strip('"'), "", field="If-Match"),
    Case("H07 nothing there", at("none"), ('If-Match: "B"',), 404),
    *_on("H08", 200, DATE, AFTER, *_NO_DATES, field="If-Unmodified-Since"),
    *_on("H08", 412, BEFORE, _OTHER_FORMS[1].replace("40", "38"), field="If-Unmodified-Since"),
    *_on("H08 tag", 200, BEFORE, field="If-Unmodified-Since", reference=TAG),
    eleven("H08 If-Match comes first", f"If-Match: {A}", f"If-Unmodified-Since: {BEFORE}"),
    *(
        eleven(f"H09 {name}", f"If-None-Match: {A}", "Range: bytes=0-1", *fields, status=status)
        for name, status, *fields in (
            ("If-Match fails", 412, 'If-Match: "B"'),
            ("If-Unmodified-Since fails", 412, f"If-Unmodified-Since: {BEFORE}"),
            ("If-Match holds", 304, f"If-Match: {A}", f"If-Unmodified-Since: {BEFORE}"),
            ("If-Range fails", 304, 'If-Range: "B"'),
        )
    ),
    Case(
        "H09 If-Modified-Since before Range",
        at("eleven.txt", FIXED),
        (f"If-Modified-Since: {DATE}", "Range: bytes=0-1"),
        304,
    ),
    *(
        Case(
            f"H10 {method}",
            at("eleven.txt"),
            ("If-None-Match: *", 'If-Match: "B"'),
            405,
            has={"allow": "GET, HEAD, OPTIONS"},
            methods=(method,),
        )
        for method in ("POST", "PUT", "DELETE", "PATCH", "get")
    ),
    *(
        Case(f"H11 the tag of {name}", at(name), has={"etag": tag_of(content)}, body=content)
        for name, content in (
            ("eleven.txt", ELEVEN),
            ("kilo.bin", KILO),
            ("empty.txt", b""),
            ("index.html", PAGE),
        )
    ),
    *(
        Case(f"H12 {name}", target, has={"cache-control": control}, status=status)
        for name, target, status, control in (
            ("file of a digest", at("eleven.txt", FIXED), 200, FOR_EVER),
            ("page of a digest", at("", FIXED), 200, FOR_EVER),
            ("tag and digest", at("eleven.txt", f"{TAG}@{DIGEST}"), 200, FOR_EVER),
            ("file of a tag", at("eleven.txt"), 200, SHORT),
            ("page of a tag", at(""), 200, "no-cache"),
            ("redirect", at("docs"), 301, "no-cache"),
            ("no file", at("none", FIXED), 404, "no-store"),
        )
    ),
    *(
        Case(f"H13 {name}", target, ("If-None-Match: *",), status, lacks=frozenset({"etag"}))
        for name, target, status in (
            ("no such file", at("none"), 404),
            ("no such tag", at("eleven.txt", f"{REPOSITORY}:none"), 404),
            ("no such digest", at("eleven.txt", f"{REPOSITORY}@{NOWHERE}"), 404),
            ("no such repository", at("", "registry.example/none:v1"), 403),
        )
    ),
]

# --- 3.4 Ranges -----------------------------------------------------------------------------------


def part(
    name: str, asked: str, start: int, stop: int, *fields: str, of: str = "eleven.txt"
) -> Case:
    """Return a case of a valid range: the slice of the file from `start` to `stop`."""
    content = FILES[of]
    assert isinstance(content, bytes)
    has = {
        "content-range": f"bytes {start}-{stop - 1}/{len(content)}",
        "content-length": str(stop - start),
        "etag": tag_of(content),
    }
    lines = (f"Range: {asked}", *fields)
    return Case(
        f"{name} {asked}: 206", at(of, FIXED), lines, 206, content[start:stop], has, head=200
    )


def beyond(name: str, asked: str, *fields: str, of: str = "eleven.txt") -> Case:
    """Return a case of a range beyond the end of the file."""
    content = FILES[of]
    assert isinstance(content, bytes)
    has = {"content-range": f"bytes */{len(content)}", "accept-ranges": "bytes"}
    lines = (f"Range: {asked}", *fields)
    return Case(f"{name} {asked}: 416", at(of, FIXED), lines, 416, has=has, head=200)


def ignored(name: str, asked: str, *fields: str, of: str = "kilo.bin") -> Case:
    """Return a case of an ignored range, answered with the whole file."""
    content = FILES[of]
    assert isinstance(content, bytes)
    has = {"content-length": str(len(content)), "accept-ranges": "bytes"}
    lines = (f"Range: {asked}", *fields)
    lacks = frozenset({"content-range"})
    return Case(f"{name} {asked[:60]!r}: 200", at(of, FIXED), lines, 200, content, has, lacks)


def several(name: str, asked: str, *slices: tuple[int, int], of: str = "kilo.bin") -> Case:
    """Return a case of several valid ranges: these slices, as multipart/byteranges."""
    content = FILES[of]
    assert isinstance(content, bytes)
    boundary = tag_of(content).strip('"')
    body = b"".join(
        f"\r\n--{boundary}\r\nContent-Type: {_TYPES[of]}\r\n"
        f"Content-Range: bytes {start}-{stop - 1}/{len(content)}\r\n\r\n".encode()
        + content[start:stop]
        for start, stop in slices
    )
    body += f"\r\n--{boundary}--\r\n".encode()
    has = {
        "content-type": f"multipart/byteranges; boundary={boundary}",
        "content-length": str(len(body)),
        "etag": tag_of(content),
        "accept-ranges": "bytes",
    }
    lacks = frozenset({"content-range"})
    lines = (f"Range: {asked}",)
    return Case(f"{name} {asked}: 206", at(of, FIXED), lines, 206, body, has, lacks, head=200)


_TYPES = {"kilo.bin": "application/octet-stream", "eleven.txt": "text/plain; charset=utf-8"}
_JUNK = (
    "", "bytes", "bytes=", "bytes=-", "bytes=--1", "bytes=5-2", "bytes=a-b", "bytes=0x1-2",
    "bytes=1_0-2_0", "bytes=+1-2", "bytes=1 -2", "bytes=1-2-3", "bytes=1.5-2", "lines=0-1",
    "bytes=\xd9\xa1-2", "bytes=\xb2-", "bytes=0-" + "9" * 30, "bytes:0-1", "bytes=0-1;2-3", "0-1",
)  # fmt: skip

RANGES = [
    *(
        part("H20", f"bytes={asked}", start, stop)
        for asked, start, stop in (
            ("0-0", 0, 1), ("0-4", 0, 5), ("3-7", 3, 8), ("10-10", 10, 11), ("4-", 4, 11),
            ("0-", 0, 11), ("-1", 10, 11), ("-11", 0, 11), ("-99", 0, 11), ("5-99", 5, 11),
            ("0-18446744073709551615", 0, 11), ("-18446744073709551616", 0, 11), ("007-08", 7, 9),
        )
    ),
    part("H20", "bytes=100-899", 100, 900, of="kilo.bin"),
    part("H20", "bytes=-1000", 0, 1000, of="kilo.bin"),
    *(
        beyond("H21", f"bytes={asked}")
        for asked in ("11-", "11-12", "100-", "100-1000", "-0", "9223372036854775807-")
    ),
    *(ignored("H22", asked) for asked in _JUNK),
    ignored("H22 two lines", "bytes=0-1", "Range: bytes=2-3"),
    part("H23", "Bytes=0-1", 0, 2),
    part("H23", "bytes = 0-1", 0, 2),
    part("H23", "bytes=, \t0-1,,", 0, 2),
    ignored("H23", "bytes=1 -2 , 4- 5, , ,"),
    several("H24", "bytes=0-0,-2", (0, 1), (998, 1000)),
    several("H24", "bytes=0-1,5-8", (0, 2), (5, 9)),
    several("H24", "bytes=0-4,5-8", (0, 5), (5, 9)),
    several("H24", "bytes=0-1, 900-2000", (0, 2), (900, 1000)),
    several("H24", "bytes=0-1,,5-6 , 2000-", (0, 2), (5, 7)),
    several("H24", "bytes=0-0,2-2,4-4,-1", (0, 1), (2, 3), (4, 5), (10, 11), of="eleven.txt"),
    several(
        "H24", "bytes=" + ",".join(f"{n}-{n}" for n in range(64)), *((n, n + 1) for n in range(64))
    ),
    part("H24", "bytes=0-1,1000-1001", 0, 2, of="kilo.bin"),
    beyond("H24", "bytes=1000-,2000-", of="kilo.bin"),
    *(
        ignored("H24", f"bytes={asked}")
        for asked in ("0-9, -10, 10-19", "0-9,-10,100000-,10-19", "2000-,0-1", "0-1,x", "0-1,5-2")
    ),
    ignored("H24", "bytes=" + ",".join(f"{n}-{n}" for n in range(65))),
    *(ignored("H25", f"bytes={asked}") for asked in ("0-10001, 0-0", "0-,1-,2-,3-,4-")),
    ignored("H26 1,200 ranges", "bytes=" + ",".join(f"{n}-{n}" for n in range(1200))),
    ignored("H26 1,200 times the file", "bytes=" + ",".join(["0-"] * 1200)),
    *(
        ignored("H27", f"bytes={asked}")
        for asked in ("0-5,3-8", "5-8,0-4", "0-5,5-8", "0-0,0-0,0-0", "0-999,1-999,2-999")
    ),
    part("H28 the tag", "bytes=0-1", 0, 2, f"If-Range: {A}"),
    part("H28 the date", "bytes=0-1", 0, 2, f"If-Range: {DATE}"),
    *(
        ignored("H28 " + repr(value), "bytes=0-1", f"If-Range: {value}", of="eleven.txt")
        for value in ('"B"', f"W/{A}", A.strip('"'), f'"x", {A}', BEFORE, AFTER, "garbage", "*")
    ),
    eleven("H28 no Range", f"If-Range: {A}"),
    eleven("H28 the date of a tag", f"If-Range: {DATE}", "Range: bytes=0-1", reference=TAG),
    beyond("H29 If-Range holds", "bytes=99-", f"If-Range: {A}"),
    ignored("H29 If-Range fails", "bytes=99-", 'If-Range: "B"', of="eleven.txt"),
    eleven("H30", f"If-None-Match: {A}", "Range: bytes=0-1", status=304),
    attrs.evolve(ignored("H31 HEAD", "bytes=0-1"), methods=("HEAD",)),
    *(
        beyond("H32 empty file,", f"bytes={asked}", of="empty.txt")
        for asked in ("0-0", "0-", "-1", "-0")
    ),
    *(
        Case(f"H33 {name}", at(name), has={"accept-ranges": "bytes"})
        for name in ("eleven.txt", "empty.txt", "")
    ),
]  # fmt: skip

# --- 3.5 Paths, methods, misc ---------------------------------------------------------------------


def _paths(row: str, status: int, *paths: str, body: bytes | None = None) -> Iterable[Case]:
    for path in paths:
        yield Case(f"{row} {path}: {status}", at(path), status=status, body=body)


def _targets(row: str, status: int, *targets: str, body: bytes | None = None) -> Iterable[Case]:
    for target in targets:
        yield Case(f"{row} {target}: {status}", target, status=status, body=body)


def escaped(name: str) -> str:
    """Return a name as a segment of a target, with every byte escaped."""
    return "".join(f"%{byte:02x}" for byte in name.encode())


_HOST, _PATH = REPOSITORY.split("/", 1)

PATHS = [
    *_paths(
        "H40", 404,
        "..%2feleven.txt", "%2e%2e%2feleven.txt", "docs%252findex.html", "a/b/../../eleven.txt",
        "docs/./.././eleven.txt", "docs%5cindex.html", "docs\\index.html", "eleven%ff.txt",
        "eleven.txt%00", "%", "%zz", "eleven%2etxt/", "eleven.txt/.", "up", "loop", "loop/x",
        "docs/..", "..", "%2e%2e",
    ),
    *_paths("H40", 200, "docs%2findex.html", "docs%2Findex.html", "docs%2f", body=b"docs"),
    *_paths("H40", 200, "docs/%2e/index.html", "docs/.//index.html", "/docs//", body=b"docs"),
    *_paths("H40", 200, "%65leven%2etxt", "/%2f/eleven.txt", "./eleven.txt", body=ELEVEN),
    *_targets("H40", 404, f"/../{TAG}/eleven.txt", f"/%2e%2e/{TAG}/eleven.txt", "/..", "/%2e%2e/"),
    *_targets(
        "H41", 200,
        f"/{TAG}@{DIGEST}/eleven.txt", f"/{REPOSITORY}:none@{DIGEST}/eleven.txt",
        f"/{REPOSITORY}%3Av1/eleven.txt",
        f"/{REPOSITORY}%40{DIGEST.replace(':', '%3a')}/eleven.txt",
        f"/{_HOST}%2f{_PATH}:v1%2feleven.txt", f"//{_HOST}//{_PATH}:v1//eleven.txt",
        f"/{_HOST.upper()}/{_PATH}:v1/eleven.txt", body=ELEVEN,
    ),
    *_paths("H41 a path like a reference:", 200, "ref.example/x:v2@y/z.txt", body=b"no reference"),
    *_targets(
        "H41", 404,
        f"/{REPOSITORY}/eleven.txt", f"/{REPOSITORY}:/eleven.txt", f"/{REPOSITORY}@/eleven.txt",
        f"/{REPOSITORY}:v1:v1/eleven.txt", f"/{REPOSITORY}@sha256:00/eleven.txt",
        f"/{REPOSITORY}@{DIGEST}@{DIGEST}/eleven.txt", f"/{REPOSITORY}%253Av1/eleven.txt",
        f"/{REPOSITORY}@{DIGEST}:v1/eleven.txt", f"/{REPOSITORY}:v1@{NOWHERE}/eleven.txt",
        f"/{_HOST}/TEAM/site:v1/eleven.txt", f"/{_HOST}:0/{_PATH}:v1/", f"/{_HOST}:v1/eleven.txt",
        "/", "//", "/.", "/favicon.ico", f"/{REPOSITORY}:v%c3%a9/", f"/{REPOSITORY}:v1%0d%0a/",
    ),
    *_targets("H41", 403, f"/{_HOST}:5000/{_PATH}:v1/eleven.txt", f"/{_HOST}.other/{_PATH}:v1/"),
    *(
        Case(f"H42 {target}", target, status=301, has={"location": location}, body=b"")
        for target, location in (
            (f"/{TAG}", "./site:v1/"),
            (f"/{TAG}?a=b&c", "./site:v1/?a=b&c"),
            (f"//{TAG}", "./site:v1/"),
            (f"/{TAG}/docs", "./docs/"),
            (f"/{TAG}/docs?", "./docs/?"),
            (f"/{TAG}//.//docs", "./docs/"),
            (f"/{TAG}//other.example", "./other.example/"),
            (f"/{TAG}/%2fother.example", "./%2fother.example/"),
            (f"/{TAG}/docs?%0d%0aX:%20y", "./docs/?%0d%0aX:%20y"),
            (f"/{TAG}/docs?\\{{}}\"<", "./docs/?%5C%7B%7D%22%3C"),
            *((at(f"dirs/{escaped(n)}"), f"./{escaped(n)}/") for n in ODD_NAMES),
        )
    ),
    *_targets("H42", 404, f"/{TAG}//other.example/..", f"/{TAG}/other.example/%2e%2e"),
    *_paths("H42", 200, "", "index.html", "./", "/index.html", body=PAGE),
    *_paths("H42", 404, "bare/", "index.html/", "docs/index.html/x"),
    Case("H43 HEAD", at("kilo.bin"), has={"content-length": "1000"}, methods=("HEAD",)),
    Case("H43 HEAD of nothing", at("none"), status=404, methods=("HEAD",)),
    *(
        Case(f"H44 {name}", at(name), has={"content-type": kind})
        for name, kind in (
            ("t/A.JS", "text/javascript; charset=utf-8"),
            ("t/a.json", "application/json"),
            ("t/a.svg", "image/svg+xml"),
            ("t/a.wasm", "application/wasm"),
            ("t/a.x1", "text/plain; charset=utf-8"),
            ("t/LICENSE", "text/plain; charset=utf-8"),
            ("text.css", "text/css; charset=utf-8"),
            ("", "text/html; charset=utf-8"),
        )
    ),
    *_paths("H45", 200, *(f"eleven.txt?{q}" for q in ("", "x=1", "/../", "%23")), body=ELEVEN),
    *_paths("H45", 404, "eleven.txt%23x", "eleven.txt%3fx"),
    *(
        attrs.evolve(eleven(f"H46 {fields[0]}", *fields), lacks=frozenset({"upgrade", "trailer"}))
        for fields in (
            ("Expect: 100-continue",),
            ("Expect: something-else",),
            ("Upgrade: websocket", "Sec-WebSocket-Version: 13"),
            ("Upgrade: websocket", "Connection: keep-alive"),
            ("Upgrade: websockets", "Connection: Upgrade"),
            ("Connection: Upgrade",),
            ("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABk"),
            ("TE: trailers", "Connection: TE"),
            ("Max-Forwards: 0",),
        )
    ),
    *(
        Case(f"H46 {fields}", at(name), fields, status=404, body=b"no WebSocket here, only files\n")
        for name in ("eleven.txt", "none", "docs")
        for fields in (
            ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"),
            ("upgrade: WebSocket", "connection: keep-alive, Upgrade"),
            ("Upgrade: h2c,\twebsocket", "Connection: keep-alive", "Connection: upgrade"),
        )
    ),
    *(
        Case(
            f"H46 OPTIONS {target!r} {fields}",
            target,
            fields,
            status,
            has={} if status != 204 else {"allow": "GET, HEAD, OPTIONS"},
            methods=("OPTIONS",),
        )
        for target, status in (
            (at("eleven.txt"), 204),
            (at(""), 204),
            (at("docs/"), 204),
            (at("eleven.txt", FIXED), 204),
            ("http://x", 204),
            (at("docs"), 301),
            (f"/{TAG}", 301),
            (at("none"), 404),
            (at("bare/"), 404),
            (at("eleven.txt/"), 404),
            ("/", 404),
            ("http://x/", 404),
            ("/*", 404),
            (at("eleven.txt", TAG + "-none"), 404),
            (at("eleven.txt", "registry.example/team/other:v1"), 403),
        )
        for fields in (
            (),
            (f"If-None-Match: {A}", "Range: bytes=0-1"),
            ('If-Match: "x"', "Range: bytes=99-"),
        )
    ),
    *(
        Case(
            f"H46 {method} {target[:1]}",
            target,
            status=status,
            has={"allow": "GET, HEAD, OPTIONS"},
            methods=(method,),
        )
        for method, target, status in (
            ("OPTIONS", at("eleven.txt"), 204),
            ("OPTIONS", "*", 204),
            ("TRACE", at("eleven.txt"), 405),
            ("PROPFIND", at("eleven.txt"), 405),
        )
    ),
    *(
        Case(f"H48 the file {name!r}", at(f"odd/{escaped(name)}"), body=b"odd")
        for name in ODD_NAMES
    ),
    *(
        Case(f"H48 nothing in {name!r}", at(f"dirs/{escaped(name)}/none"), status=404)
        for name in ODD_NAMES
    ),
]  # fmt: skip

# --- 3.6 Raw requests -----------------------------------------------------------------------------

ASKED, NEXT, LAST = (
    f"GET {at(f'{name}.txt')} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    for name in ("asked", "next", "last")
)
_LINE = ASKED.partition(b"\r\n")[0]


@attrs.frozen
class Raw:
    """Bytes that are not a single valid request; the target in them is ``asked.txt``."""

    name: str
    raw: bytes = attrs.field(repr=False)
    status: int = 400
    method: str = "GET"
    """The method that the client of these bytes intended."""


def _known(row: str, *names: str, **bodies: bytes) -> Iterable[Raw]:
    """Yield the bad heads of `tests.web.test_site` with a file as target and with their bodies."""
    for name in names:
        status, head = BAD[name]
        method = "HEAD" if head.startswith(b"HEAD") else "GET"
        asked = re.sub(rb" /(?=[ \r\n])", b" " + at("asked.txt").encode(), head, count=1)
        yield Raw(f"{row} {name}", asked + bodies.get(name.replace(" ", "_"), b""), status, method)


def _fields(row: str, *fields: bytes, status: int = 400) -> Iterable[Raw]:
    """Yield requests that are bad only because of these field lines."""
    for field in fields:
        yield Raw(f"{row} {field!r}", ASKED[:-2] + field + b"\r\n\r\n", status)


def _lines(row: str, *lines: bytes) -> Iterable[Raw]:
    """Yield requests that are bad only because of their first line; ``_`` stands for the target."""
    target = at("asked.txt").encode()
    for line in lines:
        asked = line.replace(b"_", target) + b"\r\nHost: x\r\n\r\n"
        yield Raw(f"{row} {line!r}", asked, method="HEAD" if line.startswith(b"HEAD") else "GET")


def _bodies(row: str, *bodies: bytes, coding: bytes = b"chunked") -> Iterable[Raw]:
    """Yield GET and POST requests with chunked bodies."""
    for method, status in ((b"GET", 400), (b"POST", 405)):
        for body in bodies:
            head = _LINE.replace(b"GET", method) + b"\r\nHost: x\r\nTransfer-Encoding: " + coding
            name = f"{row} {method.decode()} {coding.decode('latin-1')!r} {body[:40]!r}"
            yield Raw(name, head + b"\r\n\r\n" + body, status, method.decode())


_CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(MARKER), MARKER)
_BODY = b"Content-Length: %d\r\n" % len(MARKER)

PLAIN = [
    Raw("R10 a body of GET", ASKED[:-2] + _BODY + b"\r\n" + MARKER),
    Raw("R10 a body of HEAD", b"HEAD" + ASKED[3:-2] + _BODY + b"\r\n" + MARKER, method="HEAD"),
    Raw("R10 a body of POST", b"POST" + ASKED[3:-2] + _BODY + b"\r\n" + MARKER, 405, "POST"),
    *(
        Raw(
            f"R10 chunks of {method}",
            method.encode() + ASKED[3:-2] + b"Transfer-Encoding: chunked\r\n\r\n" + _CHUNKS,
            status,
            method,
        )
        for method, status in (("GET", 400), ("POST", 405))
    ),
    Raw("R10 another method", b"PROPFIND" + ASKED[3:], 405, "PROPFIND"),
    Raw("R10 no such file", ASKED.replace(b"asked", b"none"), 404),
    Raw("R10 a file", ASKED, 200),
    Raw("R10 HTTP/1.0", ASKED.replace(b"1.1", b"1.0"), 200),
]
"""Well-formed requests, which a proxy passes on."""

RAW = [
    *_known("R01", "body by length", "body of HEAD", body_by_length=b"x", body_of_HEAD=b"x"),
    *_known("R01", "body by chunks", body_by_chunks=_CHUNKS),
    Raw("R01 a whole body", ASKED[:-2] + _BODY + b"\r\n" + MARKER),
    Raw("R01 a whole body of POST", b"POST" + ASKED[3:-2] + _BODY + b"\r\n" + MARKER, 405),
    Raw("R01 HTTP/1.0", ASKED.replace(b"1.1", b"1.0")[:-2] + _BODY + b"\r\n" + MARKER),
    *_known(
        "R02", "bare LF in the request line", "bare LF in a field", "bare CR in a field",
        "folded line", "folded first line", "space before colon", "no colon", "no name",
        "NUL in a value", "control character in a value", "DEL in a value",
        "control character in the target", "NUL in the target", "high byte in the target",
        "high byte in a name", "tab for space", "two spaces", "bad method",
    ),
    *_fields(
        "R02", b"A\t: b", b"A: b\r", b"\x0bA: b", b"A: b\x0bc", b"A\0: b", b"\0", b" A: b",
        b"\tA: b",
        b"A: b\r\n\tc", b"A: b\n", b"A: b\r\rC: d", b"\rHost: y", b"A\r: b", b"(A): b", b"A;b: c",
        b"Content-Length : 0", b"Transfer-Encoding : chunked", b"A: \x1b[2J", b"A\n: b",
    ),
    *_lines(
        "R02", b" GET _ HTTP/1.1", b"GET _ HTTP/1.1 ", b"GET _\tHTTP/1.1", b"GET _\x0b HTTP/1.1",
        b"GET _\rHTTP/1.1", b"GET _ HTTP/1.1\r", b"G\0ET _ HTTP/1.1", b"GET _ x HTTP/1.1",
        b"\x00GET _ HTTP/1.1", b"GET _\xff HTTP/1.1", b"\x16\x03\x01\x02\x00\x01", b"GET", b"_",
    ),
    Raw("R02 bare LF everywhere", ASKED.replace(b"\r\n", b"\n")),
    Raw("R02 bare CR everywhere", ASKED.replace(b"\r\n", b"\r")),
    Raw("R02 the last line ends in LF", ASKED[:-2] + b"\n"),
    *_known("R03", "no Host", "two Hosts", "two Hosts in 1.0", "malformed Host", "Host with path"),
    *_known("R03", "Host with user", "list of Hosts"),
    *(
        Raw(f"R03 {host!r}", ASKED.replace(b"Host: x", b"Host: " + host))
        for host in (b"x:y", b"x:1:2", b"[::1", b"::1", b"x#y", b"x?y", b"x\\y", b"%zz", b"\xe9")
    ),
    *_known("R04", "no version", "version 0.9", "version 2.0", "version 3.1", "HTTP/2 preface"),
    *_known("R04", "lower-case version"),
    *_lines("R04", b"GET _ HTTP/1.10", b"GET _ HTTP/11", b"GET _ HTTP/3", b"GET _ HTTP/01.1"),
    *_lines("R04", b"GET _ HTTPS/1.1", b"GET _ HTTP/1,1", b"GET _ HTTP/-1.1", b"GET _ HTTP/1."),
    *_known("R05", "length and chunks", "two lengths", "list of lengths", "empty length"),
    *_known("R05", "signed length", "hex length", "length with underscore", signed_length=b"x"),
    *_known("R05", "unknown coding", "identity coding"),
    *_fields(
        "R05",
        b"Content-Length: 0\r\nContent-Length: 1", b"Content-Length: -1", b"Content-Length: 0;",
        b"Content-Length: 1e1", b"Content-Length: 0 0", b"Content-Length: \xb2",
        b"Content-Length: " + b"9" * 30, b"Content-Length: 0\r\nTransfer-Encoding: identity",
        b"Content-Length: 0\r\nTransfer-Encoding: chunked", b"Transfer-Encoding:",
        b"Transfer-Encoding: \x0bchunked", b"Transfer-Encoding: chunked, identity",
    ),
    *(
        Raw(f"R05 {name}", ASKED[:-2] + fields + b"\r\n0\r\n\r\n" + MARKER)
        for name, fields in (
            ("chunks before a length", b"Transfer-Encoding: chunked\r\n" + _BODY),
            ("a length before chunks", _BODY + b"Transfer-Encoding: chunked\r\n"),
        )
    ),
    Raw("R05 two lengths", ASKED[:-2] + b"Content-Length: 0\r\n" + _BODY + b"\r\n" + MARKER),
    *_bodies("R05", _CHUNKS, coding=b"gzip, chunked"),
    *_bodies("R05", _CHUNKS, coding=b"chunked, chunked"),
    *_bodies("R05", _CHUNKS, coding=b"chunked\r\nTransfer-Encoding: chunked"),
    *_bodies("R05", _CHUNKS, coding=b"chunked\r\nTransfer-Encoding: identity"),
    *_bodies("R05", _CHUNKS, coding=b"Chunked"),
    *_bodies("R05", _CHUNKS, coding=b"xchunked"),
    *_bodies(
        "R06", _CHUNKS, b"+1\r\nx\r\n0\r\n\r\n", b"-1\r\nx\r\n0\r\n\r\n", b"0x1\r\nx\r\n0\r\n\r\n",
        b"1_0\r\n" + b"x" * 16 + b"\r\n0\r\n\r\n", b" 1\r\nx\r\n0\r\n\r\n", b"1 \r\nx\r\n0\r\n\r\n",
        b"1\nx\n0\n\n", b"1\r\nx0\r\n\r\n", b"1\r\nxx\r\n0\r\n\r\n", b"\r\n0\r\n\r\n",
        b"1;a=\n0\r\n\r\n",
        b"1;a=b\r\nx\r\n0\r\n\r\n", b"10000000000000001\r\nx\r\n0\r\n\r\n", b"0\r\nA : b\r\n\r\n",
        b"0\r\nContent-Length: 9\r\n\r\n", b"0\r\nA\r\n\r\n", b"0\r\nHost: y\nB: c\r\n\r\n",
        b"g\r\n",
    ),
    *_known("R08", "a target that is no path", "star for GET", "CONNECT", "another scheme"),
    *_known("R08", "two empty lines", "fragment"),
    *_lines("R08", b"GET _#x HTTP/1.1", b"HEAD _?#x HTTP/1.1", b"GET http://x_# HTTP/1.1"),
    *_lines("R08", b"GET http:_ HTTP/1.1", b"GET http:///_ HTTP/1.1", b"HEAD * HTTP/1.1"),
]  # fmt: skip
"""Requests that are refused, and after which the server reads nothing more.

They are sent only to blobserve itself, never through another program.
"""
