"""Single images in applications: their resources, leases on them, and switches of their tags."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
import treq
from klein import Klein
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs
from twisted.web.resource import IResource, Resource
from twisted.web.server import Site

from blobserve import Blobserve, ImageLease
from blobserve.errors import (
    Forbidden,
    ImageNotFound,
    MalformedReference,
    NotCached,
    PathNotFound,
    StoreClosed,
)
from tests.support.parts.images import Image, Link, write_layout
from tests.support.within import within

REPOSITORY = "registry.example/team/site"
TAG = f"{REPOSITORY}:v1"
FOR_EVER = "public, max-age=31536000, immutable"
IMAGE = Image.of(
    {
        "index.html": b"<html>root</html>",
        "docs/index.html": b"<html>docs</html>",
        "files/a:b/x.txt": b"x",
        "app.js": b"0123456789",
        "link": Link("/docs/index.html"),
        "large.bin": bytes(range(256)) * 16384,
    }
)
OTHER = Image.of({"index.html": b"<html>other</html>"})


def the_reactor() -> Any:
    """Return the reactor of the tests."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    return reactor


@asynccontextmanager
async def embedded(directory: Path, **rules: object) -> AsyncIterator[Blobserve]:
    """Run a service for `IMAGE`; stop it at the end."""
    layout = directory / "layout"
    if not layout.exists():
        write_layout(layout, {"v1": IMAGE})
    rules = {"source": f"oci:{layout}", "tagMaxAge": "1s", **rules}
    own = {
        "repos": {REPOSITORY: rules},
        "blobSpace": {"location": directory / "space"},
        "timeout": "20s",
    }
    config = {"blobserve": own, "accessLog": {"format": "off"}}
    service = Blobserve(the_reactor(), config)
    service.startService()
    try:
        await service.when_started()
        yield service
    finally:
        await service.stopService()


@asynccontextmanager
async def listening(root: IResource) -> AsyncIterator[str]:
    """Serve a resource with a server of the application; give its URL."""
    port = the_reactor().listenTCP(0, Site(root), interface="127.0.0.1")
    try:
        yield f"http://127.0.0.1:{port.getHost().port}"
    finally:
        await port.stopListening()


async def get(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Return status, fields and body of a GET that follows no redirect."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await treq.get(url, headers=named, persistent=False, allow_redirects=False)
    fields = {
        name.decode().lower(): values[0].decode()
        for name, values in answer.headers.getAllRawHeaders()
    }
    return answer.code, fields, await answer.content()


def below_child(site: IResource) -> IResource:
    """Mount a resource below two children."""
    root, middle = Resource(), Resource()
    root.putChild(b"a b", middle)
    middle.putChild(b"app", site)
    return root


def below_route(route: str, site: IResource) -> IResource:
    """Mount a resource below a route of Klein."""
    app = Klein()

    @app.route(route, branch=True)
    def serve(request: object) -> IResource:
        return site

    return app.resource()


PLACES = {
    "root": ("/", lambda site: site),
    "child": ("/a%20b/app/", below_child),
    "klein": ("/team/app/", lambda site: below_route("/team/app/", site)),
    "klein at the root": ("/", lambda site: below_route("/", site)),
}


@pytest.mark.parametrize("place", PLACES)
@within(60)
async def test_an_image_at_a_mount_point(place: str, tmp_path: Path) -> None:
    """The mount point is the root of the image, and every answer stays below it."""
    path, mount = PLACES[place]
    async with (
        embedded(tmp_path, contentLocation=True, listing=True) as images,
        listening(mount(images.site(TAG))) as host,
    ):
        top = host + path
        code, fields, body = await get(top)
        assert (code, body) == (200, b"<html>root</html>")
        assert "content-location" not in fields
        assert (await get(top + "app.js"))[::2] == (200, b"0123456789")
        assert (await get(top + "app.js", Range="bytes=2-3"))[::2] == (206, b"23")
        assert (await get(top + "link"))[::2] == (200, b"<html>docs</html>")
        code, fields, _ = await get(top + "docs?q=1")
        assert (code, urljoin(top + "docs?q=1", fields["location"])) == (301, top + "docs/?q=1")
        code, fields, _ = await get(top + "files/a:b")
        assert (code, urljoin(top + "files/a:b", fields["location"])) == (
            301,
            top + "files/a:b/",
        )
        assert (await get(top + "docs/"))[2] == b"<html>docs</html>"
        code, fields, body = await get(top + "files/")
        assert (code, b'href="./a%3Ab/"' in body) == (200, True)
        assert REPOSITORY.encode() not in body
        assert (await get(top + "missing.js"))[0] == 404
        assert (await get(top + "%2e%2e/app.js"))[0] == 404
        assert (await get(top + f"{TAG}/app.js"))[0] == 404


@within(60)
async def test_a_mount_point_without_a_slash(tmp_path: Path) -> None:
    """A mount point without a slash redirects to itself with a slash, also after a request there.

    Otherwise relative links of the page would lead elsewhere.
    """
    async with embedded(tmp_path) as images, listening(below_child(images.site(TAG))) as host:
        for _ in range(2):
            for query in ("", "?q=%20", "?"):
                code, fields, _ = await get(f"{host}/a%20b/app{query}")
                found = urljoin(f"{host}/a%20b/app{query}", fields["location"])
                assert (code, found) == (301, f"{host}/a%20b/app/{query}".rstrip("?"))
            assert (await get(f"{host}/a%20b/app/"))[0] == 200


@within(60)
async def test_an_image_as_the_page_of_a_resource(tmp_path: Path) -> None:
    """An image that is mounted as the child "" answers at the URL of its parent."""
    async with embedded(tmp_path) as images:
        root = Resource()
        root.putChild(b"", images.site(TAG))
        async with listening(root) as host:
            assert (await get(f"{host}/"))[::2] == (200, b"<html>root</html>")


@within(60)
async def test_urls_that_do_not_show_a_digest(tmp_path: Path) -> None:
    """A file is not immutable where its URL does not show the digest or the immutable tag."""
    async with embedded(tmp_path, immutableTags=["v*"]) as images:
        with await images.blob_for(TAG) as lease:
            exact = f"{REPOSITORY}@{lease.digest}"
        root = Resource()
        root.putChild(b"tag", images.site(TAG))
        root.putChild(b"digest", images.site(exact))
        root.putChild(b"images", images.resource)
        async with listening(root) as host:
            for place in ("tag", "digest"):
                for _ in range(2):
                    _, fields, body = await get(f"{host}/{place}/app.js")
                    assert body == b"0123456789"
                    assert fields["cache-control"] != FOR_EVER
                    assert "last-modified" not in fields
            for reference in (TAG, exact):
                _, fields, _ = await get(f"{host}/images/{reference}/app.js")
                assert fields["cache-control"] == FOR_EVER


@within(60)
async def test_two_images_in_one_application(tmp_path: Path) -> None:
    """Each resource answers with its own image, also from the response cache."""
    write_layout(tmp_path / "layout", {"v1": IMAGE, "v2": OTHER})
    async with embedded(tmp_path) as images:
        root = Resource()
        root.putChild(b"1", images.site(TAG))
        root.putChild(b"2", images.site(f"{REPOSITORY}:v2"))
        async with listening(root) as host:
            for _ in range(3):
                assert (await get(f"{host}/1/"))[2] == b"<html>root</html>"
                assert (await get(f"{host}/2/"))[2] == b"<html>other</html>"


@within(60)
async def test_methods_and_rules_of_an_image_resource(tmp_path: Path) -> None:
    """OPTIONS, other methods and the headers of the rules work as they do by path."""
    async with (
        embedded(tmp_path, headers={"X-Own": "yes"}) as images,
        listening(images.site(TAG)) as host,
    ):
        options = await treq.request("OPTIONS", f"{host}/app.js", persistent=False)
        assert (options.code, options.headers.getRawHeaders("X-Own")) == (204, ["yes"])
        assert (await treq.request("OPTIONS", f"{host}/missing.js", persistent=False)).code == 404
        assert (await treq.delete(f"{host}/app.js", persistent=False)).code == 405
        _, fields, _ = await get(f"{host}/missing.js")
        assert fields["x-own"] == "yes"
        etag = (await get(f"{host}/app.js"))[1]["etag"]
        assert (await get(f"{host}/app.js", If_None_Match=etag))[0] == 304


@within(60)
async def test_references_that_cannot_be_mounted(tmp_path: Path) -> None:
    """A malformed reference is an error at once; one that is not allowed is 403 at each request."""
    async with embedded(tmp_path) as images:
        with pytest.raises(MalformedReference):
            images.site(REPOSITORY)
        async with listening(images.site("registry.example/other/site:v1")) as host:
            assert (await get(f"{host}/"))[0] == 403


@within(60)
async def test_reading_files_of_a_leased_image(tmp_path: Path) -> None:
    """A lease reads files whole and in parts, with links followed inside the image."""
    async with embedded(tmp_path, workdir="/docs") as images:
        lease = await images.blob_for(TAG)
        assert isinstance(lease, ImageLease)
        with lease:
            assert lease.digest == IMAGE.digest
            assert await lease.read("index.html") == b"<html>root</html>"
            assert await lease.read("/link") == b"<html>docs</html>"
            large = bytes(range(256)) * 16384
            assert await lease.read("large.bin") == large
            assert await lease.read("large.bin", 5, 3_000_000) == large[5:3_000_005]
            assert await lease.read("large.bin", len(large) - 1, 9) == b"\xff"
            assert await lease.read("large.bin", len(large) + 1) == b""
            assert lease.size("large.bin") == len(large)
            assert lease.names() == ["app.js", "docs", "files", "index.html", "large.bin", "link"]
            assert lease.names("/files/a:b") == lease.names("files/a:b/") == ["x.txt"]
            for path in ("missing", "docs", "app.js/x", "app.js/", "../../etc/passwd"):
                with pytest.raises(PathNotFound):
                    await lease.read(path)
            with pytest.raises(PathNotFound):
                lease.names("app.js")
            with pytest.raises(ValueError, match="negative"):
                await lease.read("app.js", -1)
        for call in (lambda: lease.size("app.js"), lambda: lease.names()):
            with pytest.raises(ValueError, match="released"):
                call()
        with pytest.raises(ValueError, match="released"):
            await lease.read("app.js")
        lease.release()


@within(60)
async def test_a_lease_keeps_its_image(tmp_path: Path) -> None:
    """A lease reads its own image after the tag has moved, and a release ends a read."""
    async with embedded(tmp_path) as images:
        lease = await images.blob_for(TAG)
        write_layout(tmp_path / "layout", {"v1": OTHER})
        await moved(images)
        assert await lease.read("index.html") == b"<html>root</html>"
        reading = lease.read("large.bin")
        lease.release()
        with pytest.raises(ValueError, match="released"):
            await reading


@within(60)
async def test_leases_that_are_refused(tmp_path: Path) -> None:
    """A lease fails with the reason, before the start and after the stop too."""
    async with embedded(tmp_path) as images:
        with pytest.raises(NotCached):
            await images.blob_for(TAG, read_only=True)
        with pytest.raises(MalformedReference):
            await images.blob_for("site")
        with pytest.raises(Forbidden):
            await images.blob_for("registry.example/other/site:v1")
        with pytest.raises(ImageNotFound):
            await images.blob_for(f"{REPOSITORY}:v9")
        held = await images.blob_for(TAG)
    with pytest.raises(StoreClosed):
        await images.blob_for(TAG)
    with pytest.raises(ValueError, match="released"):
        await held.read("app.js")
    unstarted = Blobserve(the_reactor(), images.config)
    with pytest.raises(StoreClosed):
        await unstarted.blob_for(TAG)


@within(60)
async def test_a_lease_waits_for_the_start(tmp_path: Path) -> None:
    """A lease that is asked for during the start comes after it."""
    async with embedded(tmp_path) as images:
        config = images.config
    again = Blobserve(the_reactor(), config)
    again.startService()
    try:
        with await again.blob_for(TAG) as lease:
            assert await lease.read("app.js") == b"0123456789"
    finally:
        await again.stopService()


async def moved(images: Blobserve) -> None:
    """Wait until requests for the tag get `OTHER`."""
    while True:
        with await images.blob_for(TAG) as lease:
            if lease.digest == OTHER.digest:
                return
        await deferLater(the_reactor(), 0.1)


@within(60)
async def test_callbacks_at_a_switch(tmp_path: Path) -> None:
    """A callback gets every switch of a tag once, and errors of others do not matter."""
    told: list[tuple[str, str | None, str]] = []
    other: list[str] = []
    async with embedded(tmp_path) as images:

        def fail(reference: str, old: str | None, new: str) -> None:
            raise RuntimeError("a callback's own error")

        async def fail_later(reference: str, old: str | None, new: str) -> None:
            await deferLater(the_reactor(), 0)
            raise RuntimeError("a coroutine's own error")

        images.on_switch(fail)
        images.on_switch(fail_later)
        images.on_switch(lambda *switch: told.append(switch))
        remove = images.on_switch(lambda reference, old, new: other.append(new))
        with capturedLogs() as logs:
            (await images.blob_for(TAG)).release()
            (await images.blob_for(TAG)).release()
            (await images.blob_for(f"{REPOSITORY}@{IMAGE.digest}")).release()
            assert told == [(TAG, None, IMAGE.digest)]
            remove()
            remove()
            write_layout(tmp_path / "layout", {"v1": OTHER})
            await moved(images)
            await deferLater(the_reactor(), 0.01)
        assert told[1:] == [(TAG, IMAGE.digest, OTHER.digest)]
        assert other == [IMAGE.digest]
        texts = [str(each["log_failure"].value) for each in logs if each.get("log_failure")]
        assert texts.count("a callback's own error") == 2
        assert texts.count("a coroutine's own error") == 2
    async with embedded(tmp_path) as images:
        images.on_switch(lambda *switch: told.append(switch))
        (await images.blob_for(TAG)).release()
        assert len(told) == 2, "a start is no switch"


@within(60)
async def test_callbacks_that_remove_each_other(tmp_path: Path) -> None:
    """A callback that was removed by one before it is not called."""
    told: list[str] = []
    async with embedded(tmp_path) as images:
        waiting: Deferred[None] = Deferred()
        images.on_switch(lambda *_: remove())
        remove = images.on_switch(lambda *_: told.append("removed"))
        images.on_switch(lambda *_: waiting.callback(None))
        (await images.blob_for(TAG)).release()
        await waiting
    assert told == []
