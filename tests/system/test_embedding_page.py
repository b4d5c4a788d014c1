"""The examples of the page on embedding, executed as they are printed."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import treq
import yaml
from klein import Klein
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.internet.interfaces import IReactorCore
from twisted.web.resource import Resource
from zope.interface import implementer

from blobserve.config import WebhookRules
from blobserve.errors import VersionPurged
from tests.support.parts.images import Image, write_layout
from tests.support.parts.server import ROOT
from tests.support.within import within
from tests.system.test_embedding import EXAMPLE, PAGE, configured
from tests.system.test_embedding_images import get, listening, the_reactor

TAG = "blobserve.example/site:v1"
TEXT = (ROOT / "docs" / "embedding.md").read_text()
USED = {
    "mount",
    "application",
    "on_two_hosts",
    "protected",
    "front_page",
    "announce",
    "mount_webhooks",
    "roll_back",
    "release",
    "withdraw",
    "fetch",
    "Readers",
}


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    """The names that the examples define, each block in the namespace of those before it."""
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S):
        exec(compile(block, "docs/embedding.md", "exec"), names)  # noqa: S102 - our own page
    return names


def test_every_example_is_executed(example: dict[str, Any]) -> None:
    """Each function and class of the examples is used by a test of this module."""
    defined = set(re.findall(r"^(?:async def|def|class) (\w+)", TEXT, re.M))
    assert defined == USED
    assert defined <= set(example)
    blocks = TEXT.split("```python\n")[1:]
    assert all(re.search(r"^(async def|def) ", block.split("```")[0], re.M) for block in blocks)


@implementer(IReactorCore)
class OwnReactor:
    """The reactor of the tests, with a list of the triggers for a shutdown."""

    def __init__(self) -> None:
        self.at_shutdown: list[Any] = []

    def addSystemEventTrigger(self, phase: str, event: str, do: Any) -> None:
        """See `IReactorCore.addSystemEventTrigger`."""
        assert (phase, event) == ("before", "shutdown")
        self.at_shutdown.append(do)

    def __getattr__(self, name: str) -> Any:
        return getattr(the_reactor(), name)


@asynccontextmanager
async def mounted(
    example: dict[str, Any], directory: Path, **rules: object
) -> AsyncIterator[tuple[Any, Resource]]:
    """Give the service of the first example and the root that it is mounted on; stop it."""
    reactor, root = OwnReactor(), Resource()
    images = await example["mount"](reactor, configured(directory / "cache", **rules), root)
    try:
        yield images, root
    finally:
        [stop] = reactor.at_shutdown
        await stop()


@within(60)
async def test_mounting_all_images(example: dict[str, Any], tmp_path: Path) -> None:
    """The first example serves images below /sites/, over a socket and by StubTreq with flush."""
    async with mounted(example, tmp_path) as (_, root):
        async with listening(root) as host:
            code, _, page = await get(f"{host}/sites{PAGE}")
            assert (code, b"<html" in page) == (200, True)
        fetch = example["fetch"]
        assert await fetch(the_reactor(), root, f"http://host/sites{PAGE}") == (200, page)
        code, script = await fetch(the_reactor(), root, f"http://host/sites{PAGE}app.js")
        assert code == 200
        assert script
        assert (await fetch(the_reactor(), root, f"http://host/sites{PAGE}missing.js"))[0] == 404


@within(60)
async def test_the_klein_application(example: dict[str, Any], tmp_path: Path) -> None:
    """The Klein example has its own page, and an image below its branch route."""
    async with (
        mounted(example, tmp_path) as (images, _),
        listening(example["application"](images).resource()) as host,
    ):
        assert (await get(f"{host}/"))[2] == b"My own page.\n"
        assert b"<html" in (await get(f"{host}/docs/"))[2]
        code, fields, _ = await get(f"{host}/docs")
        assert (code, fields["location"]) == (308, f"{host}/docs/")
        code, fields, _ = await get(f"{host}/docs/docs")
        assert (code, fields["location"]) == (301, "./docs/")
        assert (await get(f"{host}/docs/docs/"))[0] == 200


@within(60)
async def test_a_configured_site(example: dict[str, Any], tmp_path: Path) -> None:
    """A configured site answers below a child as at its host, and follows a reload."""
    async with mounted(example, tmp_path) as (images, root):
        with_site = configured(tmp_path / "cache")
        source = {"source": f"oci:{EXAMPLE}"}
        with_site["blobserve"]["sites"] = {
            "app.example.com": TAG,
            "example.com/docs": {"image": TAG, "workdir": "/docs", "fallback": False, **source},
        }
        images.reload(with_site)
        example["on_two_hosts"](images, root)
        root.putChild(b"deep", images.site("example.com/docs"))
        async with listening(root) as host:
            code, fields, page = await get(f"{host}/shop/")
            assert (code, b"<html" in page, fields["x-frame-options"]) == (200, True, "DENY")
            for path, location in (
                ("shop", "./shop/"),
                ("shop?q", "./shop/?q"),
                ("shop/docs", "./docs/"),
                ("shop/about", "/shop/docs/"),
                ("deep", "./deep/"),
            ):
                code, fields, _ = await get(f"{host}/{path}")
                assert (code, fields["location"]) == (301, location)
            code, _, text = await get(f"{host}/shop/no/such/page")
            assert (code, b"There is no page at this address." in text) == (404, True)
            assert b"How this site answers" in (await get(f"{host}/deep/sites/"))[2]
            assert (await get(f"{host}/deep/app.js"))[0] == 404
            code, _, page = await get(f"{host}/images/", Host="app.example.com")
            assert (code, b"<html" in page) == (200, True)
            images.reload(configured(tmp_path / "cache"))
            assert (await get(f"{host}/shop/"))[0] == 404
            images.reload(with_site)
            assert (await get(f"{host}/shop/"))[0] == 200


@within(60)
async def test_mounting_webhooks(example: dict[str, Any], tmp_path: Path) -> None:
    """The example of webhooks takes notifications with the secret, at a place of its choice."""
    secret = tmp_path / "secret"
    secret.write_text("geheim")
    secret.chmod(0o600)
    async with mounted(example, tmp_path) as (images, root):
        example["mount_webhooks"](images, root)
        rules = WebhookRules(secret_file=secret)
        images.reload(attrs.evolve(images.config, webhooks=rules))
        statuses = []
        async with listening(root) as host:
            while statuses[-1:] != [202]:  # until the file has been read
                answer = await treq.post(f"{host}/hooks/geheim", b"{}")
                statuses.append(answer.code)
                await answer.content()
            answer = await treq.post(f"{host}/hooks/wrong", b"{}")
            assert answer.code == 401
            await answer.content()


@within(60)
async def test_a_password_in_front(example: dict[str, Any], tmp_path: Path) -> None:
    """The example of authentication lets requests with the password pass, and no others."""
    [headers] = (yaml.safe_load(each) for each in re.findall(r"```yaml\n(.*?)```", TEXT, re.S))
    async with mounted(example, tmp_path, **headers) as (images, root):
        checker = InMemoryUsernamePasswordDatabaseDontUse(reader=b"secret")
        site = example["protected"](images.site(TAG), checker)
        root.putChild(b"child", site)
        app = Klein()
        app.route("/docs/", branch=True)(lambda request: site)
        root.putChild(b"klein", app.resource())
        root.putChild(b"all", example["protected"](images.resource, checker))
        right = {"Authorization": "Basic cmVhZGVyOnNlY3JldA=="}
        wrong = {"Authorization": "Basic cmVhZGVyOndyb25n"}
        async with listening(root) as host:
            for top in (f"{host}/child/", f"{host}/klein/docs/", f"{host}/all{PAGE}"):
                for path in ("", "app.js", "docs/", "missing.js"):
                    assert (await get(top + path))[0] == 401
                    assert (await get(top + path, **wrong))[0] == 401
                for path in ("", "app.js", "docs/"):
                    code, fields, _ = await get(top + path, **right)
                    assert (code, fields["cache-control"]) == (200, "private, no-cache")
                assert (await get(top + "missing.js", **right))[0] == 404


@within(60)
async def test_reading_a_page(example: dict[str, Any], tmp_path: Path) -> None:
    """The example of a lease reads the page that a request gets."""
    async with mounted(example, tmp_path) as (images, root), listening(root) as host:
        page, digest = await example["front_page"](images)
        assert page == (await get(f"{host}/sites{PAGE}"))[2]
        blob = EXAMPLE / "blobs" / digest.replace(":", "/")
        assert b'"layers"' in blob.read_bytes()


@within(60)
async def test_announcing_a_switch(example: dict[str, Any], tmp_path: Path) -> None:
    """The example of a callback reports the first image, until it is removed."""
    told: list[str] = []
    async with mounted(example, tmp_path) as (images, _):
        example["announce"](images, told.append)
        remove = example["announce"](images, told.append)
        remove()
        with await images.blob_for(TAG) as image:
            assert told == [f"{TAG} is {image.digest}"]


@within(60)
async def test_versions(example: dict[str, Any], tmp_path: Path) -> None:
    """The examples hold a tag at an earlier image, release it, and withdraw that image."""
    images_of = {tag: Image.of({"a.txt": tag.encode()}) for tag in ("v1", "old")}
    layout = write_layout(tmp_path / "layout", images_of)
    source = {"source": f"oci:{layout}"}
    async with mounted(example, tmp_path, **source) as (images, _):

        async def content() -> bytes:
            with await images.blob_for(TAG) as image:
                return await image.read("a.txt")

        old = images_of["old"].digest
        assert await content() == b"v1"
        await example["roll_back"](images, TAG, old)
        assert await content() == b"old"
        await example["release"](images, TAG)
        assert await content() == b"v1"
        await example["withdraw"](images, TAG, old)
        with pytest.raises(VersionPurged):
            await example["roll_back"](images, TAG, old)


@within(60)
async def test_a_large_file_without_a_network(example: dict[str, Any], tmp_path: Path) -> None:
    """StubTreq gets a file of several megabytes whole."""
    large = bytes(range(256)) * 16384
    layout = write_layout(tmp_path / "layout", {"v1": Image.of({"large.bin": large})})
    async with mounted(example, tmp_path, source=f"oci:{layout}") as (images, _):
        url = "http://host/large.bin"
        assert await example["fetch"](the_reactor(), images.site(TAG), url) == (200, large)
