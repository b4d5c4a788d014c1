"""Every row of the table of responses in the reference, over real sockets."""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64encode
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import urljoin

import attrs
import pytest
from twisted.internet.error import ConnectionDone
from twisted.logger import capturedLogs
from twisted.web.resource import Resource
from twisted.web.server import Site

from blobserve.config import InlineVariable, Limits
from blobserve.errors import (
    DiskFull,
    ImageTooLarge,
    QueueFull,
    RegistryBusy,
    RegistryFailed,
    RegistryRefused,
)
from tests.support.parts.images import Link
from tests.support.sites import LOCATED, REPOSITORY, TAG, Client, Response, Serving, serving
from tests.support.within import within

INDEX = b"<html>index</html>"
SITE = {
    "index.html": INDEX,
    "app.js": b"0123456789",
    "empty.txt": b"",
    "docs/index.html": b"docs",
    "assets/x.js": b"x",
    "bare/x.txt": b"x",
    "odd/index.html/x.txt": b"x",
    "404.html": b"<html>nothing here</html>",
    "with space/\u00e9%2e?.txt": b"odd",
    "link.js": Link("/app.js"),
    "up": Link("../../../../etc/passwd"),
    "loop": Link("loop"),
}
FOR_EVER = "public, max-age=31536000, immutable"
SHORT = "public, max-age=60, stale-while-revalidate=60"


def tag_of(content: bytes) -> str:
    """Return the ETag of these bytes."""
    return f'"{urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()}"'


async def both(site: Serving, target: str, **headers: str) -> Response:
    """Return the answer to a GET, after a check that HEAD has the same headers."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    get = await site.fetch(target, headers=named)
    head = await site.fetch(target, "HEAD", named)
    assert head.body == b""
    assert head.status == get.status
    ignored = {"date"}
    assert {k: v for k, v in head.headers.items() if k not in ignored} == {
        k: v for k, v in get.headers.items() if k not in ignored
    }
    return get


@within(30)
async def test_files(tmp_path: Path) -> None:
    """A file comes with its type, its length, its tag, and where it is to be had for ever."""
    async with serving(tmp_path, repos=LOCATED) as site:
        by_digest = site.push(SITE)
        answer = await both(site, f"/{TAG}/app.js")
        assert (answer.status, answer.body) == (200, b"0123456789")
        expected = {
            "content-type": "text/javascript; charset=utf-8",
            "content-length": "10",
            "x-content-type-options": "nosniff",
            "accept-ranges": "bytes",
            "etag": tag_of(b"0123456789"),
            "cache-control": SHORT,
            "content-location": f"../../../{by_digest}/app.js",
            "server": "blobserve",
            "connection": "close",
        }
        assert {k: v for k, v in answer.headers.items() if k != "date"} == expected
        assert (await both(site, f"/{TAG}/empty.txt")).headers["content-length"] == "0"
        assert (await both(site, f"/{TAG}/link.js")).body == b"0123456789"


@within(30)
async def test_fixed_urls(tmp_path: Path) -> None:
    """Under a digest or an immutable tag files are immutable and have a date."""
    async with serving(tmp_path) as site:
        by_digest = site.push(SITE)
        both_named = f"{TAG}@{by_digest.partition('@')[2]}"
        for reference in (by_digest, both_named):
            answer = await both(site, f"/{reference}/app.js")
            assert answer.headers["cache-control"] == FOR_EVER
            assert answer.headers["last-modified"] == "Sun, 13 Sep 2020 12:26:40 GMT"
            assert "content-location" not in answer.headers
        site.rule(immutable_tags=("v*",), content_location=True)
        answer = await both(site, f"/{TAG}/index.html")
        assert answer.headers["cache-control"] == FOR_EVER
        assert "last-modified" in answer.headers
        assert "content-location" in answer.headers
        since = {"If_Modified_Since": "Sun, 13 Sep 2020 12:26:40 GMT"}
        assert (await both(site, f"/{TAG}/index.html", **since)).status == 304
        site.rule()
        assert (await both(site, f"/{TAG}/index.html", **since)).status == 200


@within(30)
async def test_cache_control(tmp_path: Path) -> None:
    """Pages are revalidated, other files cached briefly, and files under a digest for ever."""
    async with serving(tmp_path, SITE) as site:
        site.rule(immutable_paths=("assets/*",), tag_max_age=90.0)
        controls = {
            name: (await both(site, f"/{TAG}/{name}")).headers["cache-control"]
            for name in ("", "index.html", "app.js", "assets/x.js")
        }
        assert controls == {
            "": "no-cache",
            "index.html": "no-cache",
            "app.js": "public, max-age=90, stale-while-revalidate=90",
            "assets/x.js": FOR_EVER,
        }


@within(30)
async def test_content_location(tmp_path: Path) -> None:
    """Content-Location leads to the same bytes under the digest, from wherever the URL is."""
    async with serving(tmp_path, repos=LOCATED) as site:
        by_digest = site.push(SITE)
        host, path = TAG.split("/", 1)
        odd = "with%20space/%C3%A9%252e%3F.txt"
        for target, rest in {
            f"/{TAG}/": "/",
            f"/{TAG}/app.js?x=/y/": "/app.js",
            f"/{TAG}/docs/": "/docs/",
            f"/{TAG}//docs/./index.html": "/docs/index.html",
            f"//{host}//{path}/app.js": "/app.js",
            f"/{host}%2F{path.replace('/', '%2f')}/app.js": "/app.js",
            f"/{TAG}/{odd}": f"/{odd}",
        }.items():
            answer = await both(site, target)
            assert answer.status == 200, target
            # With a scheme: urljoin would take the empty first segment for a host.
            found = urljoin(f"http://h{target}", answer.headers["content-location"])
            assert found == f"http://h/{by_digest}{rest}"
            assert (await site.fetch(found.removeprefix("http://h"))).body == answer.body


@pytest.mark.parametrize("hot_path", [True, False])
@within(30)
async def test_no_content_location_unasked(tmp_path: Path, hot_path: bool) -> None:
    """Unless the repository asks for it, no response names the image or the registry."""
    async with serving(tmp_path, SITE, hot_path=hot_path) as site:
        etag = tag_of(b"0123456789")
        asked = {
            "app.js": {},
            "app.js?": {"If-None-Match": etag},
            "app.js??": {"Range": "bytes=2-4"},
            "docs/": {},
            "bare/": {},
            "none/at/all": {},
        }
        for rules in ({}, {"listing": True}, {"not_found": "/404.html", "fallback": "/app.js"}):
            site.rule(**rules)
            site.site.flush()
            answers = [
                await site.fetch(f"/{TAG}/{name}", headers=fields)
                for name, fields in asked.items()
                for _ in range(2)
            ]
            assert {200, 206, 304} <= {answer.status for answer in answers}
            for answer in answers:
                assert "content-location" not in answer.headers
                assert not [each for each in answer.headers.values() if "sha256:" in each]
        site.rule(listing=True, content_location=True)
        site.site.flush()
        for name in ("app.js", "bare/"):
            assert "content-location" in (await site.fetch(f"/{TAG}/{name}")).headers


@within(30)
async def test_conditions(tmp_path: Path) -> None:
    """304, 412 and 416 say what they must, and nothing of the file."""
    async with serving(tmp_path, SITE, repos=LOCATED) as site:
        target, etag = f"/{TAG}/app.js", tag_of(b"0123456789")
        unchanged = await both(site, target, If_None_Match=f'W/{etag}, "x"')
        assert (unchanged.status, unchanged.body) == (304, b"")
        assert unchanged.headers["etag"] == etag
        assert unchanged.headers["cache-control"] == SHORT
        assert "content-location" in unchanged.headers
        assert not unchanged.headers.keys() & {"content-length", "content-type"}
        failed = await both(site, target, If_Match='"x"')
        assert failed.status == 412
        assert "etag" not in failed.headers
        assert failed.headers["cache-control"] == "no-store"
        part = await site.fetch(target, headers={"Range": "bytes=2-4", "If-Range": etag})
        assert (part.status, part.body) == (206, b"234")
        assert part.headers["content-range"] == "bytes 2-4/10"
        assert part.headers["content-length"] == "3"
        assert (await site.fetch(target, "HEAD", {"Range": "bytes=2-4"})).status == 200
        beyond = await site.fetch(target, headers={"Range": "bytes=10-"})
        assert beyond.status == 416
        assert beyond.headers["content-range"] == "bytes */10"
        missing = await both(site, f"/{TAG}/nothing", If_Match='"x"')
        assert missing.status == 404


@within(30)
async def test_upgrade(tmp_path: Path) -> None:
    """A file that a new image leaves unchanged keeps its ETag."""
    async with serving(tmp_path, SITE) as site:
        etag = (await site.fetch(f"/{TAG}/app.js")).headers["etag"]
        site.push({**SITE, "index.html": b"new"}, reference=f"{REPOSITORY}:v2")
        for name, status in {"app.js": 304, "index.html": 200}.items():
            answer = await site.fetch(f"/{REPOSITORY}:v2/{name}", headers={"If-None-Match": etag})
            assert answer.status == status


@within(30)
async def test_directories(tmp_path: Path) -> None:
    """The URL of a directory ends with a slash; redirects are relative and keep the query."""
    async with serving(tmp_path, SITE) as site:
        for target, location in {
            f"/{TAG}": "./site:v1/",
            f"/{TAG}?a=b&c": "./site:v1/?a=b&c",
            f"/{TAG}/docs?": "./docs/?",
            f"/{TAG}//.//docs": "./docs/",
            f"/{TAG}/with%20space": "./with%20space/",
            f"/{TAG.replace(':', '%3A')}": "./site%3Av1/",
        }.items():
            answer = await both(site, target)
            assert (answer.status, answer.headers["location"]) == (301, location), target
            assert answer.headers["cache-control"] == "no-cache"
            followed = urljoin(f"http://h{target}", location).removeprefix("http://h")
            assert (await site.fetch(followed)).status in (200, 404)
        for target in ("/", "/index.html", "/./", "//index.html", "/docs/", "/docs/index.html"):
            assert (await both(site, f"/{TAG}{target}")).status == 200, target
        for target in ("/bare/", "/odd/", "/app.js/", "/index.html/", "/docs/index.html/x"):
            assert (await both(site, f"/{TAG}{target}")).status == 404, target


@within(30)
async def test_bare_reference_with_variables(tmp_path: Path) -> None:
    """A reference without a slash is the page itself for a request with inline variables."""
    async with serving(tmp_path, {"index.html": b"{{X}}"}) as site:
        site.rule(inline_static=(InlineVariable("{{X}}", "${x}"),))
        answer = await both(site, f"/{TAG}", X_BlobServe_InlineVars='{"x": "/y"}')
        assert (answer.status, answer.body) == (200, b"/y")
        assert answer.headers["cache-control"] == "private, no-cache"
        plain = await both(site, f"/{TAG}")
        assert plain.status == 301
        assert answer.headers["vary"] == plain.headers["vary"] == "X-BlobServe-InlineVars"


@within(30)
async def test_paths_stay_inside(tmp_path: Path) -> None:
    """A path never leaves an image, and percent-encoding is decoded exactly once."""
    async with serving(tmp_path, SITE) as site:
        for path in (
            "..", "../", "%2e%2e", "docs/..%2findex.html", "docs/../index.html", "%2e%2e%2fapp.js",
            "a/b/../../app.js", "app.js%00", "%00", "docs%252findex.html", "docs%5cindex.html",
            "%252e%252e/app.js", "up", "loop", "app.js/.", "nothing",
        ):  # fmt: skip
            answer = await both(site, f"/{TAG}/{path}")
            assert answer.status == 404, path
            assert answer.headers["content-type"] == "text/plain; charset=utf-8"
            assert "etag" not in answer.headers
        assert (await both(site, f"/{TAG}/docs%2findex.html")).body == b"docs"
        assert (await both(site, f"/{TAG}/%61pp.js")).body == b"0123456789"


@within(30)
async def test_malformed_references(tmp_path: Path) -> None:
    """A URL without a registry, tag or digest gets an answer that says so."""
    async with serving(tmp_path, SITE) as site:
        assert b"/<registry>/<repository>:<tag>/<file>" in (await both(site, "/")).body
        for target, word in {
            "//": b"/<registry>",
            "/favicon.ico": b"no repository",
            f"/{REPOSITORY}/app.js": b"no tag and no digest",
            f"/{REPOSITORY}@sha256:00/app.js": b"sha256",
            "/r.example/UPPER:x/": b"lower-case",
        }.items():
            answer = await both(site, target)
            assert (answer.status, word in answer.body) == (404, True), target


@within(30)
async def test_refusals(tmp_path: Path) -> None:
    """Each failure of the registry, the image or the disk has its status and our message."""
    async with serving(tmp_path, SITE) as site:
        answer = await both(site, "/r.example/other:v1/")
        assert (answer.status, answer.body) == (403, b'forbidden repo: "r.example/other"\n')
        assert (await both(site, f"/{REPOSITORY}:nothing/")).status == 404
        for error, status, body in (
            (RegistryRefused(REPOSITORY), 502, f"registry refused access to {REPOSITORY}\n"),
            (RegistryFailed("r", "it is down"), 502, "registry r failed: it is down\n"),
            (RegistryBusy("r", 7.0), 503, "timeout"),
            (QueueFull(), 503, "timeout"),
            (ImageTooLarge("sha256:00", 5), 507, None),
            (DiskFull(), 507, None),
        ):
            site.source.fail("resolve", error, error)
            answer = await both(site, f"/{TAG}/app.js")
            assert answer.status == status
            assert body is None or answer.body == body.encode()
            assert answer.headers["cache-control"] == "no-store"
        assert (await both(site, f"/{TAG}/app.js")).status == 200


@within(30)
async def test_timeout(tmp_path: Path) -> None:
    """A pull that takes too long is a 503 ``timeout``, goes on, and serves the next request."""
    async with serving(tmp_path, SITE, timeout=0.05) as site:
        gate = site.source.hold("fetch")
        answer = await site.fetch(headers={"Sec-Fetch-Mode": "navigate"})
        assert (answer.status, answer.body) == (503, b"timeout")
        assert (answer.headers["retry-after"], answer.headers["refresh"]) == ("1", "2")
        again = await site.fetch()
        assert (again.status, again.body) == (503, b"timeout")
        assert "refresh" not in again.headers
        counted = site.metrics.registry.get_sample_value
        assert counted("http_server_requests_total", {"method": "get", "code": "503"}) == 2
        gate.open()
        assert (await site.fetch()).status == 200
        assert site.source.count("fetch") == 1


@within(30)
async def test_warm_up(tmp_path: Path) -> None:
    """HEAD pulls an image, and is 404 for a file that it does not have."""
    async with serving(tmp_path, SITE) as site:
        assert (await site.fetch(f"/{TAG}/app.js", "HEAD")).status == 200
        assert (await site.fetch(f"/{TAG}/nothing.js", "HEAD")).status == 404
        assert site.source.count("fetch") == 1


@within(30)
async def test_read_only(tmp_path: Path) -> None:
    """A read-only request causes no pull, and gets cached images."""
    async with serving(tmp_path, SITE) as site:
        read_only = {"X_BlobServe_ReadOnly": "true"}
        assert (await both(site, f"/{TAG}/app.js", **read_only)).status == 404
        assert site.source.requests == []
        assert (await site.fetch(f"/{TAG}/app.js")).status == 200
        assert (await both(site, f"/{TAG}/app.js", **read_only)).status == 200


@within(30)
async def test_several_layers(tmp_path: Path) -> None:
    """A file that is only in a later layer is a 404 with the reason."""
    async with serving(tmp_path, {"a.txt": b"1"}, {"b.txt": b"2"}) as site:
        assert (await both(site, f"/{TAG}/a.txt")).body == b"1"
        answer = await both(site, f"/{TAG}/b.txt")
        assert (answer.status, b"2 layers" in answer.body) == (404, True)
        assert b"layers: first" in answer.body


@within(30)
async def test_paths_that_are_too_deep(tmp_path: Path) -> None:
    """A path deeper than an image may be is 404 at once: nothing is looked up, nothing pulled."""
    deep = "/".join("abc" * 3)
    limits = Limits(depth=9)
    async with serving(tmp_path, {deep: b"deep", "up": Link(".")}, limits=limits) as site:
        site.rule(fallback=f"/{deep}", not_found=f"/{deep}")
        for name in (f"{deep}/x", "x/" * 10, "up/" * 2000, "./" + "x//" * 9 + "x"):
            for method in ("GET", "HEAD", "OPTIONS"):
                answer = await site.fetch(f"/{TAG}/{name}", method)
                assert (answer.status, b"deep" in answer.body) == (404, False)
        forbidden = TAG.replace("team", "other")
        assert (await site.fetch(f"/{forbidden}/{'x/' * 10}")).status == 403
        assert site.source.requests == []
        site.rule()
        for name in (deep, f"up//./{deep[2:]}", "up/" * 8 + "up"):
            asked = await site.fetch(f"/{TAG}/{name}")
            assert asked.status == (301 if name.endswith("up") else 200 if name == deep else 404)
        assert (await site.fetch(f"/{TAG}/{deep}/")).status == 404


@within(30)
async def test_other_methods(tmp_path: Path) -> None:
    """Methods other than GET, HEAD and OPTIONS are refused."""
    async with serving(tmp_path, SITE) as site:
        for method in ("POST", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND", "get"):
            answer = await site.fetch(f"/{TAG}/app.js", method, {"If-None-Match": "*"})
            assert answer.status == 405, method
            assert answer.headers["allow"] == "GET, HEAD, OPTIONS"
        assert site.source.requests == []
        counted = site.metrics.registry.get_sample_value
        assert counted("http_server_requests_total", {"method": "unknown", "code": "405"}) == 2
        assert counted("http_server_requests_total", {"method": "post", "code": "405"}) == 1


@within(30)
async def test_preflight(tmp_path: Path) -> None:
    """A preflight of a file is answered where an origin is allowed, and refused as a GET is."""
    asked = {
        "Origin": "https://x.example",
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "x-blobserve-inlinevars, range",
    }
    async with serving(tmp_path, SITE) as site:
        answer = await site.fetch(f"/{TAG}/app.js", "OPTIONS", asked)
        assert (answer.status, answer.body) == (204, b"")
        assert not any(name.startswith("access-control") for name in answer.headers)
        site.rule(headers=(("Access-Control-Allow-Origin", "*"),))
        answer = await site.fetch(f"/{TAG}/app.js", "OPTIONS", asked)
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["access-control-allow-methods"] == "GET, HEAD, OPTIONS"
        assert answer.headers["access-control-allow-headers"] == "x-blobserve-inlinevars, range"
        bad = {**asked, "Access-Control-Request-Headers": "a b; c"}
        answer = await site.fetch(f"/{TAG}/app.js", "OPTIONS", bad)
        assert "access-control-allow-headers" not in answer.headers
        assert (site.log[-1].method, site.log[-1].status) == (b"OPTIONS", 204)
        assert site.log[-1].cache == "hit"
        for target, status in {
            f"/{TAG}/none": 404,
            f"/{REPOSITORY}:none/app.js": 404,
            f"/{TAG.replace('team', 'other')}/app.js": 403,
        }.items():
            answer = await site.fetch(target, "OPTIONS", asked)
            assert answer.status == status
            assert "access-control-allow-methods" not in answer.headers
            assert answer.body == (await site.fetch(target)).body
        site.rule(not_found="/404.html")
        answer = await site.fetch(f"/{TAG}/none", "OPTIONS")
        assert (answer.status, answer.body) == (404, SITE["404.html"])
        site.rule(fallback="/index.html", listing=True)
        for name in ("none", "bare/"):
            assert (await site.fetch(f"/{TAG}/{name}", "OPTIONS")).status == 204
        site.source.fail("resolve", RegistryBusy(REPOSITORY, 7))
        answer = await site.fetch(f"/{REPOSITORY}:busy/app.js", "OPTIONS", asked)
        assert (answer.status, answer.headers["retry-after"]) == (503, "7")


@within(30)
async def test_configured_headers(tmp_path: Path) -> None:
    """Configured headers are on every response, but make no error cacheable."""
    async with serving(tmp_path, SITE) as site:
        site.rule(headers=(("X-Team", "web"), ("cache-control", "public, max-age=7")))
        for target, method, status in (
            (f"/{TAG}/app.js", "GET", 200),
            (f"/{TAG}", "GET", 301),
            (f"/{TAG}/nothing", "GET", 404),
            (f"/{REPOSITORY}:nothing/", "HEAD", 404),
            (f"/{TAG}/app.js", "POST", 405),
            (f"/{TAG}/app.js", "OPTIONS", 204),
        ):
            answer = await site.fetch(target, method)
            assert (answer.status, answer.headers["x-team"]) == (status, "web")
            expected = "no-store" if status >= 400 else "public, max-age=7"
            assert answer.headers["cache-control"] == expected


@within(30)
async def test_unlisted(tmp_path: Path) -> None:
    """A response of an unlisted repository is sandboxed, errors included."""
    async with serving(tmp_path, SITE, allow_any_repo=True) as site:
        site.push(SITE, reference="r.example/any:v1")
        for target in ("/r.example/any:v1/", "/r.example/any:v1", "/r.example/any:v1/nothing"):
            headers = (await both(site, target)).headers
            assert headers["content-security-policy"] == "sandbox allow-scripts"
        assert "content-security-policy" not in (await both(site, f"/{TAG}/")).headers


@within(30)
async def test_workdir(tmp_path: Path) -> None:
    """Paths, the fallback and the not-found page are relative to the workdir."""
    files = {f"ide/{name}": content for name, content in SITE.items()}
    async with serving(tmp_path, {**files, "secret.txt": b"outside"}) as site:
        site.rule(workdir="/ide", fallback="/index.html", not_found="/404.html")
        assert (await both(site, f"/{TAG}/app.js")).body == b"0123456789"
        assert (await both(site, f"/{TAG}/")).body == INDEX
        assert (await both(site, f"/{TAG}/secret.txt")).body == SITE["404.html"]
        assert (await both(site, f"/{TAG}/some/route")).body == INDEX
        site.rule(workdir="/nothing")
        assert (await both(site, f"/{TAG}/")).status == 404


@within(30)
async def test_fallback(tmp_path: Path) -> None:
    """A route of an application gets its page, not immutable; a missing file is still a 404."""
    async with serving(tmp_path) as site:
        by_digest = site.push(SITE)
        site.rule(fallback="/index.html")
        for reference in (TAG, by_digest):
            for route in ("route", "some/route", "some/route/", "v1.2/route"):
                answer = await both(site, f"/{reference}/{route}")
                assert (answer.status, answer.body) == (200, INDEX)
                assert answer.headers["cache-control"] == "no-cache"
                assert answer.headers["content-type"] == "text/html; charset=utf-8"
                assert "last-modified" not in answer.headers
        for route in ("missing.js", "bare/", "app.js/", "../route", "some/../route"):
            assert (await both(site, f"/{TAG}/{route}")).status == 404, route


@within(30)
async def test_not_found_page(tmp_path: Path) -> None:
    """An image's own not-found page is sent with 404 and no-store."""
    async with serving(tmp_path, SITE) as site:
        site.rule(not_found="404.html")
        answer = await both(site, f"/{TAG}/nothing", If_None_Match="*", Range="bytes=0-1")
        assert (answer.status, answer.body) == (404, SITE["404.html"])
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not answer.headers.keys() & {"etag", "last-modified", "accept-ranges"}
        site.rule(not_found="nothing.html")
        assert (await both(site, f"/{TAG}/nothing")).headers["content-type"].startswith("text/pl")


@within(30)
async def test_bad_variables(tmp_path: Path) -> None:
    """Invalid inline variables are a 400."""
    async with serving(tmp_path, SITE) as site:
        for value in ("{", '{"ide": "javascript:x"}'):
            answer = await both(site, f"/{TAG}/", X_BlobServe_InlineVars=value)
            assert answer.status == 400


@within(30)
async def test_the_log(tmp_path: Path) -> None:
    """Every request is logged, with the cache result and the digest of its image."""
    async with serving(tmp_path) as site:
        digest = site.push(SITE).partition("@")[2]
        asked = {"User-Agent": "a browser", "Referer": "http://x/", "X-Forwarded-For": "9.9.9.9"}
        await site.fetch(f"/{TAG}/app.js?q", headers=asked)
        await site.fetch(f"/{TAG}/app.js", "HEAD")
        await site.fetch("/r.example/other:1/")
        first, second, third = site.log
        assert (first.method, first.target) == (b"GET", f"/{TAG}/app.js?q".encode())
        assert (first.status, first.sent, first.version) == (200, 10, b"HTTP/1.1")
        assert (first.cache, first.digest) == ("pull", digest)
        assert (first.address, first.agent, first.referer) == (
            "127.0.0.1", b"a browser", b"http://x/",
        )  # fmt: skip
        assert (second.status, second.sent, second.cache) == (200, 0, "hit")
        assert (third.status, third.cache, third.digest) == (403, None, None)
        assert len({first.request_id, second.request_id, third.request_id}) == 3
        counted = site.metrics.registry.get_sample_value
        assert counted("http_server_requests_total", {"method": "get", "code": "200"}) == 1
        assert (
            counted(
                "http_server_requests_duration_seconds_count", {"method": "head", "code": "200"}
            )
            == 1
        )
        assert counted("blobserve_requests_in_flight") == 0


@within(30)
async def test_trusted_proxies(tmp_path: Path) -> None:
    """The client in X-Forwarded-For counts only if a trusted proxy sent it."""
    async with serving(tmp_path, SITE) as site:
        named = {"X-Forwarded-For": "192.0.2.7"}
        await site.fetch(headers=named)
        site.config = attrs.evolve(site.config, trusted_proxies=(ip_network("127.0.0.0/8"),))
        await site.fetch(headers=named)
        assert [served.address for served in site.log] == ["127.0.0.1", "192.0.2.7"]


@within(30)
async def test_a_client_that_leaves(tmp_path: Path) -> None:
    """A client that leaves ends its wait, not the pull, and is logged."""
    async with serving(tmp_path, SITE) as site:
        gate = site.source.hold("fetch")
        client = await site.connect()
        client.send(f"GET /{TAG}/app.js HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        while not gate.waiting:
            await site.turn()
        client.transport.abortConnection()
        while not site.log:
            await site.turn()
        [served] = site.log
        assert (served.status, served.sent) == (499, 0)
        gate.open()
        assert (await site.fetch(f"/{TAG}/app.js")).status == 200
        assert site.source.count("fetch") == 1


async def opened(site: Serving, target: str) -> Client:
    """Begin a response on a connection that is then not read."""
    client = await site.connect()
    client.send(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await client.some(1)
    client.transport.pauseProducing()
    return client


@within(30)
async def test_damage(tmp_path: Path) -> None:
    """A file truncated on disk ends its connection, and never looks complete."""
    size = 8 << 20
    async with serving(tmp_path, {"a.bin": b"x" * size}) as site:
        client = await opened(site, f"/{TAG}/a.bin")
        [content] = (tmp_path / "space").glob("blobs/*/*/content")
        with capturedLogs() as events:
            with content.open("r+b") as file:
                file.truncate(size // 2)
            client.transport.resumeProducing()
            received = await client.all()
        assert len(received) < size
        assert client.ended is not None
        assert not client.ended.check(ConnectionDone)
        [served] = site.log
        assert served.sent < size
        assert any(served.request_id in str(event) for event in events)


@within(30)
async def test_the_unexpected(tmp_path: Path) -> None:
    """An unexpected error is a 500 with an id that the log has, and no details."""
    async with serving(tmp_path, SITE) as site:
        site.source.fail("resolve", ZeroDivisionError("a secret"))  # type: ignore[arg-type]
        with capturedLogs() as events:
            answer = await site.fetch(f"/{TAG}/app.js")
        assert answer.status == 500
        assert b"secret" not in answer.body
        assert site.log[0].request_id in answer.body.decode()
        assert any(site.log[0].request_id in str(event) for event in events)


@within(30)
async def test_embedded(tmp_path: Path) -> None:
    """Mounted in another site, images are served, counted and logged as in our own."""
    async with serving(tmp_path, repos=LOCATED) as site:
        by_digest = site.push(SITE)
        root = Resource()
        root.putChild(b"files", site.site.resource)
        other = Site(root, reactor=site.reactor)
        port = site.reactor.listenTCP(0, other, interface="127.0.0.1")
        embedded = attrs.evolve(site, port=port.getHost().port)
        try:
            answer = await both(embedded, f"/files/{TAG}/docs/")
            assert (answer.status, answer.body) == (200, b"docs")
            found = urljoin(f"/files/{TAG}/docs/", answer.headers["content-location"])
            assert found == f"/files/{by_digest}/docs/"
            assert (await both(embedded, f"/files/{TAG}")).headers["location"] == "./site:v1/"
            assert (await both(embedded, f"/files/{TAG}/x%2f..%2f")).status == 404
            bad_host = f"GET /files/{TAG}/app.js HTTP/1.0\r\nHost: \xe9..\r\n\r\n".encode("latin-1")
            assert (await embedded.exchange(bad_host)).endswith(b"0123456789")
            body = f"GET /files/{TAG}/app.js HTTP/1.0\r\nContent-Length: 1\r\n\r\nx".encode()
            assert b" 400 Bad Request" in await embedded.exchange(body)
            assert len(site.log) == 8
            await site.site.resource.drain(1)
            refused = await embedded.fetch(f"/files/{TAG}/app.js")
            assert (refused.status, refused.body) == (503, b"timeout")
            assert refused.headers["connection"] == "close"
        finally:
            await port.stopListening()


@pytest.mark.parametrize("size", [0, 1, 65_536, 3_000_000])
@within(30)
async def test_sizes(tmp_path: Path, size: int) -> None:
    """Files of any size arrive byte for byte."""
    content = bytes(index * 7 % 251 for index in range(size))
    async with serving(tmp_path, {"a.bin": content}) as site:
        assert (await site.fetch(f"/{TAG}/a.bin")).body == content
