"""Defects of the original server in its responses, with a test for each row.

Each test is named after the number of its row. `tests.regressions.test_pulls` and
`tests.regressions.test_disk` have the other rows.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import urljoin

import attrs
import pytest

from blobserve.names.digest import Digest
from blobserve.oci.source import Document
from blobserve.testing import MadeImage, make_image
from tests.support.layers import Directory, File, layer
from tests.support.parts.images import Image, Index, Layer
from tests.support.parts.registry import DockerRegistry
from tests.support.scripted_registry import Answer, listening, status
from tests.support.services import allowing, configured, running
from tests.support.within import within

YEAR = "public, max-age=31536000, immutable"
FILES = {"index.html": b"<html>BASE</html>", "main.js": b"run()", "docs/a.txt": b"a"}


# --- D1 -------------------------------------------------------------------------------------------


@within(30)
async def test_d01_each_representation_has_a_quoted_etag_of_its_own(tmp_path: Path) -> None:
    """Each file, and each inlined form of index.html, has its own ETag and answers 304 to it."""
    rules = {"inlineStatic": [{"search": "BASE", "replacement": "${ide}"}]}
    async with listening() as registry:
        site = registry.push("team/site:v1", make_image(FILES))
        async with running(configured(tmp_path, allowing(registry.host, rules))) as server:
            asked = [
                (f"{site}/main.js", {}),
                (f"{site}/", {}),
                (f"{site}/", {"X-BlobServe-InlineVars": '{"ide": "/one"}'}),
                (f"{site}/", {"X-BlobServe-InlineVars": '{"ide": "/two"}'}),
            ]
            answers = [await server.fetch(target, headers=headers) for target, headers in asked]
            tags = [answer.headers["etag"] for answer in answers]
            assert len(set(tags)) == len(tags)
            assert all(re.fullmatch(r'"[^"]+"', tag) for tag in tags)
            for own, (target, headers) in enumerate(asked):
                for number, tag in enumerate(tags):
                    conditional = {**headers, "If-None-Match": tag}
                    again = await server.fetch(target, headers=conditional)
                    assert again.status == (304 if number == own else 200)
                    assert again.body == (b"" if number == own else answers[own].body)


@within(30)
async def test_d01_an_upgrade_keeps_the_etag_of_what_it_leaves_unchanged(tmp_path: Path) -> None:
    """A new image answers 304 for a file that has not changed, and 200 for the others."""
    async with listening() as registry:
        old = registry.push("team/site:v1", make_image(FILES))
        new = registry.push("team/site:v2", make_image({**FILES, "index.html": b"<html>new"}))
        async with running(configured(tmp_path, allowing(registry.host))) as server:
            for name, code in (("main.js", 304), ("index.html", 200)):
                tag = (await server.fetch(f"{old}/{name}")).headers["etag"]
                answer = await server.fetch(f"{new}/{name}", headers={"If-None-Match": tag})
                assert (answer.status, name) == (code, name)


# --- D5 -------------------------------------------------------------------------------------------


def elsewhere(image: MadeImage, url: str) -> MadeImage:
    """Return the same image with `url` among the URLs of its layers."""
    [document] = image.documents
    manifest = json.loads(document.content)
    for each in manifest["layers"]:
        each["urls"] = [url]
    content = json.dumps(manifest).encode()
    return attrs.evolve(
        image, documents=(Document(Digest.of(content), document.media_type, content),)
    )


@within(30)
async def test_d05_layer_urls_are_not_followed(tmp_path: Path) -> None:
    """A layer comes from its registry alone; the URLs in the manifest are ignored."""
    async with listening() as registry, listening() as inner:
        image = make_image(FILES)
        inner.hold("any", image.blobs[image.layers[0].digest])
        url = f"http://{inner.host}/v2/any/blobs/{image.layers[0].digest}"
        site = registry.push("team/site:v1", elsewhere(image, url))
        lost = registry.push("team/lost:v1", elsewhere(make_image({"b": b"b"}), url))
        registry.always("team/lost/blobs", status(404))
        config = allowing(registry.host)
        config["repos"][f"{inner.host}/*"] = {}  # even if connections to that host are allowed
        config["registries"][inner.host] = {"insecure": True}
        async with running(configured(tmp_path, config)) as server:
            assert (await server.fetch(f"{site}/main.js")).body == FILES["main.js"]
            assert (await server.fetch(f"{lost}/b")).status == 404
        assert inner.accepted == 0


@within(30)
@pytest.mark.parametrize("code", [400, 401, 403, 404, 418])
@pytest.mark.parametrize("part", ["manifests", "blobs"])
async def test_d05_an_upstreams_words_are_not_repeated(
    tmp_path: Path, part: str, code: int
) -> None:
    """The text of a registry's error never reaches a client."""
    secret = "postgres://admin:secret@10.0.0.7/"
    async with listening() as registry:
        site = registry.push("team/site:v1", make_image(FILES))
        answer = Answer(code, body=json.dumps({"errors": [{"message": secret}]}).encode())
        registry.always(part, lambda asked, usual: answer.having(x_secret=secret))
        async with running(configured(tmp_path, allowing(registry.host))) as server:
            refused = await server.fetch(f"{site}/")
        assert refused.status == (404 if code == 404 else 502)
        assert "secret" not in str(refused.headers) + refused.body.decode()


# --- D6 -------------------------------------------------------------------------------------------


@within(30)
async def test_d06_what_does_not_exist_is_404(tmp_path: Path) -> None:
    """A repository, tag, digest, layer or file that does not exist gets a 404 in plain text."""
    async with listening() as registry:
        site = registry.push("team/site:v1", make_image(FILES))
        lost = registry.push("team/lost:v1", make_image({"b": b"b"}))
        empty = registry.push("team/empty:v1", make_image())
        registry.always("team/lost/blobs", status(404))
        nowhere = f"{registry.host}/team/site@{Digest.of(b'nothing')}"
        missing = [
            f"{registry.host}/team/none:v1/",
            f"{registry.host}/team/site:v2/",
            f"{nowhere}/",
            f"{lost}/b",
            f"{empty}/",
            f"{site}/none.js",
        ]
        async with running(configured(tmp_path, allowing(registry.host))) as server:
            answers = [await server.fetch(each) for each in missing]
        assert [answer.status for answer in answers] == [404] * len(missing)
        assert {a.headers["content-type"] for a in answers} == {"text/plain; charset=utf-8"}


# --- D7 -------------------------------------------------------------------------------------------


@within(30)
async def test_d07_only_fixed_bytes_are_cached_for_a_year(tmp_path: Path) -> None:
    """Only content named by digest may be cached for a year; not tags, errors or redirects."""
    async with listening() as registry:
        site = registry.push("team/site:v1", make_image(FILES))
        rules = allowing(registry.host, {"contentLocation": True})
        async with running(configured(tmp_path, rules)) as server:
            page = await server.fetch(f"{site}/")
            exact = urljoin(f"/{site}/", page.headers["content-location"]).strip("/")
            assert "/team/site@sha256:" in exact
            policies = {
                f"{site}/": (200, "no-cache"),
                f"{site}/main.js": (200, "public, max-age=60, stale-while-revalidate=60"),
                f"{site}/docs": (301, "no-cache"),
                f"{site}": (301, "no-cache"),
                f"{site}/docs/": (404, "no-store"),
                f"{site}/none": (404, "no-store"),
                f"{exact}/main.js": (200, YEAR),
                f"{exact}/none": (404, "no-store"),
            }
            for target, expected in policies.items():
                answer = await server.fetch(target)
                policy = answer.status, answer.headers["cache-control"]
                assert (target, policy) == (target, expected)


@within(30)
async def test_d07_a_tag_is_looked_up_again(tmp_path: Path) -> None:
    """A running server notices that a tag has moved."""
    async with listening() as registry:
        site = registry.push("team/site:v1", make_image({"a": b"old"}))
        config = configured(tmp_path, allowing(registry.host, {"tagMaxAge": "0s"}))
        async with running(config) as server:
            before = await server.fetch(f"{site}/a")
            registry.push("team/site:v1", make_image({"a": b"new"}))
            for _ in range(100):  # the old image is served until the new one is pulled
                after = await server.fetch(f"{site}/a")
                if after.body != before.body:
                    break
            assert (before.body, after.body) == (b"old", b"new")
            assert after.headers["etag"] != before.headers["etag"]


# --- D14 ------------------------------------------------------------------------------------------


def replacing(word: str) -> dict[str, object]:
    """Return rules that replace BASE by `word`."""
    return {"replacements": [{"path": "index.html", "search": "BASE", "replacement": word}]}


@within(30)
async def test_d14_edits_belong_to_a_repository_and_change_with_its_rules(tmp_path: Path) -> None:
    """Edits belong to the repository, not to a shared layer, and follow a reload."""
    async with listening() as registry:
        one, two = (registry.push(f"team/{n}:v1", make_image(FILES)) for n in ("one", "two"))
        config = configured(tmp_path, allowing(registry.host))
        rules = config["blobserve"]["repos"] = {
            f"{registry.host}/team/one": replacing("first"),
            f"{registry.host}/team/two": replacing("second"),
        }
        async with running(config) as server:
            pages = [await server.fetch(f"{each}/") for each in (one, two)]
            rules[f"{registry.host}/team/two"] = replacing("third")
            server.service.reload(config)
            pages.append(await server.fetch(f"{two}/"))
        words = [b"first", b"second", b"third"]
        assert [page.body for page in pages] == [b"<html>%b</html>" % word for word in words]
        assert len({page.headers["etag"] for page in pages}) == 3
        assert len(registry.asked("GET .*blobs")) == 1


# --- D15 ------------------------------------------------------------------------------------------


@within(30)
async def test_d15_methods_mean_what_they_say(tmp_path: Path) -> None:
    """HEAD gets the headers of GET without a body, and a writing method gets a 405."""
    async with listening() as registry:
        site = registry.push("team/site:v1", make_image(FILES))
        async with running(configured(tmp_path, allowing(registry.host))) as server:
            for name in ("", "main.js", "docs", "none", "none/"):
                head = await server.fetch(f"{site}/{name}", "HEAD")
                get = await server.fetch(f"{site}/{name}")
                for answer in (head, get):
                    answer.headers.pop("date")
                assert (head.status, head.headers) == (get.status, get.headers)
                assert head.body == b""
            for method in ("POST", "PUT", "DELETE", "PATCH"):
                refused = await server.fetch(f"{site}/main.js", method)
                assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
                assert FILES["main.js"] not in refused.body


# --- D16 ------------------------------------------------------------------------------------------


@within(30)
@pytest.mark.parametrize(
    ("rules", "expected"), [({}, b"amd64"), ({"platform": "linux/arm64"}, b"arm64")]
)
async def test_d16_zstd_and_platforms(
    tmp_path: Path, docker_registry: DockerRegistry, rules: dict[str, object], expected: bytes
) -> None:
    """An index serves the image of the configured platform, or linux/amd64; zstd layers work."""
    images = [
        Image.of({"which": name.encode()}, "zstd", platform=f"linux/{name}")
        for name in ("s390x", "arm64", "amd64")
    ]
    docker_registry.push(Index(tuple(images)), "team/site:v1")
    async with running(configured(tmp_path, allowing(docker_registry.host, rules))) as server:
        answer = await server.fetch(f"{docker_registry.host}/team/site:v1/which")
    assert (answer.status, answer.body) == (200, expected)


@within(30)
async def test_d16_whiteouts_and_listings(tmp_path: Path, docker_registry: DockerRegistry) -> None:
    """Whiteouts are not served, dotfiles are, and a directory without index lists nothing."""
    entries = [
        Directory(b"docs/"),
        File(b"docs/.wh.gone", b"whiteout"),
        File(b"docs/.wh..wh..opq", b"opaque"),
        File(b"docs/.well-known/security.txt", b"contact"),
        File(b"docs/secret-name.txt", b"x"),
    ]
    docker_registry.put(Image((Layer.of_tar(layer(entries, "none")),)), "team/site:v1")
    site = f"{docker_registry.host}/team/site:v1"
    async with running(configured(tmp_path, allowing(docker_registry.host))) as server:
        for hidden in (".wh.gone", ".wh..wh..opq", "gone"):
            assert (await server.fetch(f"{site}/docs/{hidden}")).status == 404
        assert (await server.fetch(f"{site}/docs/.well-known/security.txt")).body == b"contact"
        listing = await server.fetch(f"{site}/docs/")
        assert (listing.status, b"secret-name" in listing.body) == (404, False)
