"""Sites at their own host names: hosts, files, hosting rules, errors."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from twisted.logger import capturedLogs

from blobserve.concurrency.threads import OwnThreads
from blobserve.config import Site
from blobserve.configfile import load
from tests.support.parts.images import Files, Link
from tests.support.sites import REPOSITORY, TAG, Response, Serving, serving
from tests.support.within import within

HOST = "app.example.com"
NAVIGATION = {"Sec-Fetch-Mode": "navigate"}
FOR_EVER = "public, max-age=31536000, immutable"
HASHED = "assets/index-BHxg-xhJ.js"
APP: dict[str, Any] = {
    "index.html": b"<html>home</html>",
    "docs/index.html": b"<html>docs</html>",
    "empty/x.txt": b"x",
    HASHED: b"hashed",
    "app.js": b"plain",
}
WITH_404 = {**APP, "404.html": b"<html>missing</html>", "docs/404.html": b"<html>no docs</html>"}


def sites(**values: object) -> Mapping[str, Site]:
    """Return the sites of a configuration; a double underscore in a name stands for a dot."""
    named = {name.replace("__", "."): value for name, value in values.items()}
    return load({"blobserve": {"sites": named}}).sites


@asynccontextmanager
async def hosting(
    directory: Path, files: Files, more: Mapping[str, object] = {}, **own: object
) -> AsyncIterator[Serving]:
    """Run a server with the site `HOST` of an image with these files."""
    named = {HOST: {"image": TAG, **own}, **more}
    found = load({"blobserve": {"sites": named}}).sites
    async with serving(directory, files, sites=found, repos={}) as it:
        yield it


async def get(it: Serving, path: str, host: str = HOST, **headers: str) -> Response:
    """Return the answer to a GET."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return await it.fetch(path, "GET", fields, host)


async def seen(it: Serving, path: str, host: str = HOST, **headers: str) -> tuple[int, str]:
    """Return the status and the body or the location of a GET."""
    answer = await get(it, path, host, **headers)
    body = answer.body.decode().removeprefix("<html>").removesuffix("</html>")
    return answer.status, answer.headers.get("location", body)


# --- Hosts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", [HOST, "APP.Example.COM", f"{HOST}:8080", f"{HOST}.", f"{HOST}.:1"]
)
@within(20)
async def test_a_host_in_any_spelling(tmp_path: Path, host: str) -> None:
    """Hosts are compared in lower case, without port and trailing dot."""
    async with hosting(tmp_path, APP) as it:
        assert await seen(it, "/", host) == (200, "home")
        assert await seen(it, "/", host) == (200, "home")  # now from memory


@within(20)
async def test_hosts_and_prefixes(tmp_path: Path) -> None:
    """Exact hosts win over wildcards, and those over ``*``; the longest prefix wins."""
    more = {
        "*.example.com": {"image": TAG, "workdir": "/docs"},
        "*": {"image": TAG, "workdir": "/empty", "fallback": "/x.txt"},
        f"{HOST}/docs": {"image": TAG, "workdir": "/assets", "listing": True},
        "only.example.org/a/b": TAG,
        "www.example.com": {"redirect": HOST},
    }
    async with hosting(tmp_path, APP, more) as it:
        assert await seen(it, "/") == (200, "home")
        assert await seen(it, "/", "other.example.com") == (200, "docs")
        assert await seen(it, "/z", "a.other.example.com") == (200, "x")
        assert await seen(it, "/docs/index-BHxg-xhJ.js") == (200, "hashed")
        assert await seen(it, "/docs?q") == (301, "./docs/?q")
        assert await seen(it, "/docsx") == (200, "home")
        assert (await seen(it, "/a", "only.example.org"))[0] == 404
        assert (await seen(it, "/a/bc", "only.example.org"))[0] == 404
        assert await seen(it, "/a/b/", "only.example.org") == (200, "home")
        assert await seen(it, "/p?q=1", "www.example.com") == (308, f"//{HOST}/p?q=1")


@within(20)
async def test_the_authority_of_the_target_counts_first(tmp_path: Path) -> None:
    """The authority of an absolute request target counts before Host."""
    async with hosting(tmp_path, APP) as it:
        assert await seen(it, f"http://{HOST}/docs/", "other.example") == (200, "docs")
        assert (await seen(it, "http://other.example/docs/"))[0] == 404
        assert await seen(it, f"http://u@{HOST}:80/docs", "x") == (301, "./docs/")


@within(20)
async def test_forwarded_hosts_of_trusted_proxies(tmp_path: Path) -> None:
    """X-Forwarded-Host counts from trusted proxies only."""
    forwarded = {"X_Forwarded_Host": f"{HOST}, inner.example"}
    async with hosting(tmp_path, APP) as it:
        assert (await seen(it, "/", "inner.example", **forwarded))[0] == 404
        proxies = load({"blobserve": {"trustedProxies": ["127.0.0.0/8"]}}).trusted_proxies
        it.config = attrs.evolve(it.config, trusted_proxies=proxies)
        for _ in range(2):
            assert await seen(it, "/", "inner.example", **forwarded) == (200, "home")


@within(20)
async def test_the_host_that_a_page_names(tmp_path: Path) -> None:
    """A page of a site for any host names the host that chose the site."""
    files = {"docs/x.txt": b"x"}
    more = {"*": {"image": TAG, "listing": True}}
    async with hosting(tmp_path, files, more) as it:
        proxies = load({"blobserve": {"trustedProxies": ["127.0.0.0/8"]}}).trusted_proxies
        it.config = attrs.evolve(it.config, trusted_proxies=proxies)
        forwarded = {**NAVIGATION, "X-Forwarded-Host": "outer.example:8443"}
        for path in ("/docs/", "/nope"):
            for target, host, fields, name in (
                (path, "inner.example", NAVIGATION, b"inner.example"),
                (path, "inner.example", forwarded, b"outer.example"),
                (f"http://target.example{path}", "inner.example", NAVIGATION, b"target.example"),
            ):
                body = (await it.fetch(target, "GET", fields, host)).body
                assert name in body
                assert (b"inner" in body) is (name == b"inner.example")
                assert b"8443" not in body


@pytest.mark.parametrize("hot_path", [True, False])
@within(20)
async def test_the_host_in_the_log(tmp_path: Path, hot_path: bool) -> None:
    """The access log has the host that the client asked for, on the fast path too."""
    forwarded = {"X-Forwarded-Host": "outer.example, inner.example", "X-Forwarded-For": "192.0.2.7"}
    async with hosting(tmp_path, APP, {"*": TAG}) as it:
        proxies = load({"blobserve": {"trustedProxies": ["127.0.0.0/8"]}}).trusted_proxies
        for trusted, fields, target, expected in (
            ((), {}, "/", b"APP.example.com:80"),
            ((), forwarded, "/", b"APP.example.com:80"),
            (proxies, forwarded, "/", b"outer.example"),
            (proxies, forwarded, "/nope.js", b"outer.example"),
            (proxies, {}, "http://target.example/", b"target.example"),
        ):
            it.config = attrs.evolve(it.config, trusted_proxies=trusted, hot_path=hot_path)
            it.log.clear()
            for _ in range(3):
                await it.fetch(target, "GET", fields, "APP.example.com:80")
            assert [each.host for each in it.log] == [expected] * 3
        it.config = attrs.evolve(it.config, sites={})
        it.log.clear()
        await it.fetch("http://target.example/", "GET", {})
        await it.fetch("/", "GET", forwarded)
        assert [each.host for each in it.log] == [b"target.example", b"outer.example"]
        it.config = attrs.evolve(it.config, sites=sites(**{"*": TAG}))
        it.log.clear()
        await it.fetch("/", "GET", {}, "bad host")
        client = await it.connect()
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        await client.all()
        assert [(each.status, each.host) for each in it.log] == [(400, None), (200, None)]


@within(20)
async def test_the_form_by_path(tmp_path: Path) -> None:
    """A host without a site uses the form by path; ``*`` gives way to repositories of `repos`."""
    async with hosting(tmp_path, APP) as it:
        status, text = await seen(it, f"/{TAG}/", "x.example")
        assert (status, text) == (403, f'forbidden repo: "{REPOSITORY}"\n')
        it.config = attrs.evolve(it.config, allow_any_repo=True)
        assert (await seen(it, f"/{TAG}/", "x.example"))[0] == 403
        it.config = attrs.evolve(it.config, allow_any_repo=False, sites=sites(**{"*": TAG}))
        it.rule()
        assert await seen(it, f"/{TAG}/docs/", "x.example") == (200, "docs")
        assert await seen(it, "/docs/", "x.example") == (200, "docs")
        assert await seen(it, f"/{REPOSITORY}x:v1/docs/", "x.example") == (200, "home")
        for any_other, outside in (
            ({"*": {"redirect": HOST}, HOST: TAG}, (308, f"//{HOST}/app.js")),
            ({"*/p": TAG}, (404, "This site has no page at this address.\n")),
        ):
            it.config = attrs.evolve(it.config, sites=sites(**any_other))
            assert await seen(it, f"/{TAG}/docs/", "x.example") == (200, "docs")
            assert await seen(it, f"/{TAG}", "x.example") == (301, "./site:v1/")
            assert await seen(it, "/app.js", "x.example") == outside


@within(20)
async def test_previews(tmp_path: Path) -> None:
    """A wildcard serves the tag of its label; the answers are not indexed."""
    more = {"*.preview.example.com": f"{REPOSITORY}:{{1}}"}
    async with hosting(tmp_path, APP, more) as it:
        answer = await get(it, "/", "V1.preview.example.com")
        assert (answer.status, answer.headers["x-robots-tag"]) == (200, "noindex")
        assert "x-robots-tag" not in (await get(it, "/")).headers
        for label in ("v2", "-x", "v1.v1", "x" * 129):
            answer = await get(it, "/", f"{label}.preview.example.com", **NAVIGATION)
            assert (answer.status, answer.headers.get("x-robots-tag")) == (
                404,
                None if label == "v1.v1" else "noindex",
            )
            assert b"registry.example" not in answer.body


@within(20)
async def test_a_site_has_rules_of_its_own(tmp_path: Path) -> None:
    """A site may choose other layers than the repository, and both are served side by side."""
    second = {"index.html": b"<html>second</html>"}
    found = load({"blobserve": {"sites": {HOST: {"image": TAG, "layers": "all"}}}}).sites
    async with serving(tmp_path, APP, second, sites=found) as it:
        for _ in range(2):
            assert await seen(it, "/") == (200, "second")
            assert await seen(it, f"/{TAG}/", "x") == (200, "home")


# --- Files ----------------------------------------------------------------------------------------


@within(20)
async def test_missing_paths_of_an_application(tmp_path: Path) -> None:
    """Without a 404 page, a path that may be a route is answered with the application."""
    async with hosting(tmp_path, APP) as it:
        for path in ("/a", "/a/b/", "/users/jane.doe", "/docs/nope", "/empty", "/v1.2"):
            assert await seen(it, path) == (200, "home"), path
            assert await seen(it, path) == (200, "home"), path
        for path in ("/a.js", "/a/b.png", "/assets/index-00000000.js", "/a.js/"):
            assert (await seen(it, path))[0] == 404, path
        answer = await get(it, "/users/jane.zip", Sec_Fetch_Mode="navigate")
        assert (answer.status, answer.headers["vary"]) == (200, "Sec-Fetch-Mode")
        assert (await seen(it, "/users/jane.zip"))[0] == 404


@within(20)
async def test_the_nearest_404_page(tmp_path: Path) -> None:
    """The nearest ``404.html`` upwards answers a missing path."""
    async with hosting(tmp_path, WITH_404) as it:
        for path in ("/a", "/a/b", "/a.js", "/docsx/y", "/empty"):
            assert await seen(it, path) == (404, "missing"), path
        for path in ("/docs/a", "/docs/a/b/", "/docs/a.js"):
            assert await seen(it, path) == (404, "no docs"), path
        assert await seen(it, "/docs") == (301, "./docs/")
        assert (await get(it, "/a")).headers["cache-control"] == "no-store"
        assert await seen(it, "/404.html") == (200, "missing")


@pytest.mark.parametrize(
    ("own", "status", "text"),
    [
        ({"fallback": False}, 404, "There is nothing"),
        ({"fallback": "/docs/index.html"}, 200, "docs"),
        ({"notFound": "/docs/index.html"}, 404, "docs"),
    ],
)
@within(20)
async def test_configured_pages_win(
    tmp_path: Path, own: dict[str, object], status: int, text: str
) -> None:
    """`fallback` and `notFound` of the configuration win; `fallback: false` turns it off."""
    async with hosting(tmp_path, APP, **own) as it:
        found, body = await seen(it, "/a")
        assert (found, body.startswith(text) or text == "There is nothing") == (status, True)


CLEAN = {
    "index.html": b"<html>home</html>",
    "about.html": b"<html>about</html>",
    "about/team.html": b"<html>team</html>",
    "blog/index.html": b"<html>blog</html>",
    "blog.html": b"<html>not seen</html>",
    "data": b"<html>data</html>",
    "data.html": b"<html>data page</html>",
    "404.html": b"<html>missing</html>",
}


@pytest.mark.parametrize(
    ("slash", "expected"),
    [
        (
            "keep",
            {
                "/about": (200, "about"),
                "/about/": (301, "../about"),
                "/about.html": (301, "./about"),
                "/about/team": (200, "team"),
                "/about/team.html?q": (301, "../about/team?q"),
                "/blog": (301, "./blog/"),
                "/blog/": (200, "blog"),
                "/blog/index.html": (301, "../blog/"),
                "/blog.html": (200, "not seen"),
                "/index.html": (301, "./"),
                "/data": (200, "data"),
                "/data.html": (200, "data page"),
                "/nope": (404, "missing"),
            },
        ),
        (
            "add",
            {
                "/about": (301, "./about/"),
                "/about/": (200, "about"),
                "/about.html": (301, "./about/"),
                "/about/team": (301, "./team/"),
                "/blog": (301, "./blog/"),
                "/blog/": (200, "blog"),
                "/data": (200, "data"),
                "/": (200, "home"),
            },
        ),
        (
            "remove",
            {
                "/about": (200, "about"),
                "/about/": (301, "../about"),
                "/blog": (200, "blog"),
                "/blog/": (301, "../blog"),
                "/blog/index.html": (301, "../blog"),
                "/blog//?q": (301, "../../blog?q"),
                "/index.html": (301, "./"),
                "/": (200, "home"),
            },
        ),
    ],
)
@within(30)
async def test_clean_urls(tmp_path: Path, slash: str, expected: dict[str, tuple[int, str]]) -> None:
    """With `cleanUrls` a page has one URL, in the form that `trailingSlash` asks for."""
    async with hosting(tmp_path, CLEAN, cleanUrls=True, trailingSlash=slash) as it:
        for path, answer in expected.items():
            assert await seen(it, path) == answer, path
            assert await seen(it, path) == answer, path


@within(20)
async def test_hashed_names_are_immutable(tmp_path: Path) -> None:
    """A name with a content hash is immutable, until it has had two contents."""
    async with hosting(tmp_path, APP, tagMaxAge="0s") as it:
        assert (await get(it, f"/{HASHED}")).headers["cache-control"] == FOR_EVER
        assert (await get(it, "/app.js")).headers["cache-control"] != FOR_EVER
        it.push({**APP, HASHED: b"other"})
        for _ in range(2):
            answer = await get(it, f"/{HASHED}")
            assert (answer.body, answer.headers["cache-control"] == FOR_EVER) == (b"other", False)
        it.push(APP)
        answer = await get(it, f"/{HASHED}")
        assert (answer.body, answer.headers["cache-control"] == FOR_EVER) == (b"hashed", False)


@within(20)
async def test_a_listing_of_a_site(tmp_path: Path) -> None:
    """A listing names the site, and its order and filter come from the URL."""
    async with hosting(tmp_path, APP, {f"{HOST}/p": TAG}, listing=True, workdir="/empty") as it:
        listed = await get(it, "/?sort=size&filter=x")
        text = listed.body.decode()
        assert (listed.status, HOST in text, "x.txt" in text) == (200, True, True)
        assert "registry.example" not in text + str(listed.headers)
        assert b"x.txt" not in (await get(it, "/?filter=y")).body
        as_json = await get(it, "/?format=json")
        assert as_json.headers["content-type"] == "application/json"


@within(20)
async def test_no_response_of_a_site_is_immutable_by_its_reference(tmp_path: Path) -> None:
    """A site under a digest or an immutable tag may get another image later."""
    async with hosting(tmp_path, APP, immutableTags=["v*"], contentLocation=True) as it:
        headers = (await get(it, "/app.js")).headers
        assert headers["cache-control"] != FOR_EVER
        assert {"content-location", "last-modified"}.isdisjoint(headers)


# --- Rules ----------------------------------------------------------------------------------------

REDIRECTS = b"""
/old /new
/moved/* /docs/:splat 301
/out https://other.example/:x 302
/app/* /docs/index.html 200
/docs/* /docs/index.html 200
/x /_headers 200
"""
HEADERS = b"""
/*
  X-Site: yes
/docs/*
  Cache-Control: max-age=5
  ! X-Site
"""
RULED: dict[str, Any] = {**WITH_404, "_redirects": REDIRECTS, "_headers": HEADERS}


@within(20)
async def test_rules_of_the_image(tmp_path: Path) -> None:
    """The rules of ``_redirects`` and ``_headers`` apply, and the files are not served."""
    async with hosting(tmp_path, RULED) as it:
        assert await seen(it, "/old?a=1") == (302, "/new?a=1")
        assert await seen(it, "/moved/a/b") == (301, "/docs/a/b")
        assert await seen(it, "/app/any") == (200, "docs")
        assert await seen(it, "/docs/any") == (200, "docs")
        for path in ("/_redirects", "/_headers", "/x", "/%5Fheaders", "/./_headers", "//_headers"):
            assert await seen(it, path) == (404, "missing"), path
        for _ in range(2):
            assert (await get(it, "/")).headers["x-site"] == "yes"
            docs = (await get(it, "/docs/")).headers
            assert (docs["cache-control"], docs.get("x-site")) == ("max-age=5", None)
        missing = await get(it, "/nope.js")
        assert missing.headers["x-site"] == "yes"
        assert missing.headers["cache-control"] == "no-store"
        assert (await get(it, "/old")).headers["x-site"] == "yes"


@within(20)
async def test_rules_below_a_prefix(tmp_path: Path) -> None:
    """Rules see and write paths below the prefix of the site."""
    more = {"example.org/base": TAG}
    async with hosting(tmp_path, RULED, more) as it:
        assert await seen(it, "/base/old", "example.org") == (302, "/base/new")
        assert await seen(it, "/base/moved/a", "example.org") == (301, "/base/docs/a")


@within(20)
async def test_listings_leave_the_rule_files_out(tmp_path: Path) -> None:
    """A listing does not show the two files of a site, but files of their names elsewhere."""
    link = Link("../_headers")
    deep = {"a/_headers": b"x", "a/b.txt": b"x", "a/link.txt": link}
    files: Files = {"_headers": HEADERS, "c.txt": b"x", **deep}
    more = {"plain.example.com": {"image": TAG, "hostingDialect": "none", "listing": True}}
    async with hosting(tmp_path, files, more, listing=True) as it:

        async def names(path: str, host: str = HOST) -> list[str]:
            listed = (await get(it, f"{path}?format=json", host)).body
            return [each["name"] for each in json.loads(listed)]

        assert await names("/") == ["a", "c.txt"]
        assert b"_headers" not in (await get(it, "/")).body
        assert await names("/a/") == ["_headers", "b.txt"]
        assert (await get(it, "/a/_headers")).body == b"x"
        assert await names("/", "plain.example.com") == ["a", "_headers", "c.txt"]


@within(20)
async def test_without_a_dialect(tmp_path: Path) -> None:
    """Without a dialect the two files are ordinary files."""
    async with hosting(tmp_path, RULED, hostingDialect="none") as it:
        assert (await get(it, "/_headers")).body == HEADERS
        assert await seen(it, "/old") == (404, "missing")


@within(20)
async def test_netlify_prefers_files(tmp_path: Path) -> None:
    """Under Netlify's dialect a file wins over a rule that is not forced."""
    rules = b"/app.js /a 301\n/docs/* /b 301!\n/* /index.html 200\n/gone /404.html 404\n"
    async with hosting(tmp_path, {**WITH_404, "_redirects": rules}, hostingDialect="netlify") as it:
        assert await seen(it, "/app.js") == (200, "plain")
        assert await seen(it, "/docs/") == (301, "/b")
        assert await seen(it, "/any") == (200, "home")


@within(20)
async def test_a_link_to_a_rule_file(tmp_path: Path) -> None:
    """A link to a rule file is not served either."""
    async with hosting(tmp_path, {**RULED, "link.txt": Link("_headers")}) as it:
        assert await seen(it, "/link.txt") == (404, "missing")


@within(20)
async def test_new_rules_come_with_a_new_image(tmp_path: Path) -> None:
    """The rules of an image apply from the moment of the switch."""
    async with hosting(tmp_path, RULED, tagMaxAge="0s") as it:
        assert (await get(it, "/")).headers["x-site"] == "yes"
        it.push({**WITH_404, "_headers": b"/*\n  X-Site: new\n"})
        assert (await get(it, "/")).headers["x-site"] == "new"
        assert await seen(it, "/old") == (404, "missing")


@within(20)
async def test_wrong_lines_are_logged_once(tmp_path: Path) -> None:
    """A wrong line is skipped, and logged once with its file and line."""
    rules = {**APP, "_redirects": b"/a /b\nnonsense\n"}
    with capturedLogs() as events:
        async with hosting(tmp_path, rules) as it:
            for _ in range(3):
                assert await seen(it, "/a") == (302, "/b")
    lines = [(each["file"], each["line"]) for each in events if "problem" in each]
    assert lines == [("_redirects", 2)]


@within(20)
async def test_wrong_lines_of_several_sites_are_logged_once(tmp_path: Path) -> None:
    """A wrong line of an image is logged once for each dialect of the sites that serve it."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    rules = {**APP, "_redirects": b"/a /b\nnonsense\n"}
    named = {
        HOST: TAG,
        "example.com/docs": TAG,
        "netlify.example.com": {"image": TAG, "hostingDialect": "netlify"},
        "plain.example.com": {"image": TAG, "hostingDialect": "none"},
    }
    found = load({"blobserve": {"sites": named}}).sites
    disk = OwnThreads(reactor, 1, "disk")
    disk.start()
    with capturedLogs() as events:
        async with serving(tmp_path, rules, disk=disk, sites=found, repos={}) as it:
            assert (await get(it, "/", "plain.example.com")).status == 200
            # As when the image becomes READY: one site after another.
            await it.site.images.responder.read_rules(found[HOST].reference())
            assert await seen(it, "/a") == (302, "/b")
            assert await seen(it, "/docs/a", "example.com") == (302, "/docs/b")
            assert await seen(it, "/a", "netlify.example.com") == (301, "/b")
    disk.stop()
    assert [each["site"] for each in events if "problem" in each] == [HOST, "netlify.example.com"]


# --- Errors ---------------------------------------------------------------------------------------


@within(20)
async def test_error_pages_do_not_name_the_registry(tmp_path: Path) -> None:
    """An error of a site shows its host, and neither the registry nor the repository."""
    more = {"down.example.com": f"{REPOSITORY}:gone"}
    async with hosting(tmp_path, APP, more, fallback=False) as it:
        for host, path in ((HOST, "/a.js"), ("down.example.com", "/"), (HOST, "/../x")):
            for headers in ({}, {"Sec_Fetch_Mode": "navigate"}):
                answer = await get(it, path, host, **headers)
                assert answer.status == 404
                assert b"registry" not in answer.body
                kind = "text/html" if headers else "text/plain"
                assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
                assert (host.encode() in answer.body) is bool(headers)


@within(20)
async def test_a_site_that_is_being_prepared(tmp_path: Path) -> None:
    """While the first pull runs, a navigation gets a page that loads again."""
    async with hosting(tmp_path, APP) as it:
        it.config = attrs.evolve(it.config, timeout=0.05)
        gate = it.source.hold("fetch")
        answer = await get(it, "/docs/", Sec_Fetch_Mode="navigate")
        plain = await get(it, "/docs/")
        gate.open()
        headers = answer.headers
        assert (answer.status, headers["content-type"]) == (503, "text/html; charset=utf-8")
        assert (headers["refresh"], headers["cache-control"]) == ("2", "no-store")
        assert int(headers["retry-after"]) > 0
        assert b"being prepared" in answer.body
        assert (plain.status, plain.body) == (503, b"timeout")


@within(20)
async def test_other_methods(tmp_path: Path) -> None:
    """HEAD and OPTIONS of a site answer as GET would."""
    async with hosting(tmp_path, RULED) as it:
        head = await it.fetch("/docs/", "HEAD", host=HOST)
        assert (head.status, head.body, head.headers["cache-control"]) == (200, b"", "max-age=5")
        assert (await it.fetch("/docs/", "OPTIONS", host=HOST)).status == 204
        assert (await it.fetch("/nope", "OPTIONS", host=HOST)).status == 404
        assert (await it.fetch("/", "POST", host=HOST)).status == 405
        etag = (await get(it, "/")).headers["etag"]
        unchanged = await get(it, "/", If_None_Match=etag)
        assert (unchanged.status, unchanged.headers.get("x-site")) == (304, None)
