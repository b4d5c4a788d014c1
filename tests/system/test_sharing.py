"""Layers that several repositories share, over HTTP, with real registries and local sources."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from blobserve.config import RepositoryRules
from blobserve.errors import BlobNotFound, ContentMismatch, RegistryRefused
from tests.support.parts.images import Image, Index, write_layout
from tests.support.parts.registry import DockerRegistry
from tests.support.scripted_registry import cut, listening, status
from tests.support.services import Running, configured, running
from tests.support.sites import packed
from tests.support.source_fixtures import registry_at, until
from tests.support.spaces import names_in, pool
from tests.support.stores import content, standing
from tests.support.within import within

SECRET = Image.of({"index.html": b"a private page", "app.js": b"private" * 100})


def serving_both(
    directory: Path, private: DockerRegistry, public: DockerRegistry
) -> dict[str, Any]:
    """Return a configuration that serves two registries, with the password of the private one."""
    name, _, password = str(private.user).partition(":")
    login = directory / "auth.json"
    login.write_text(
        json.dumps({"auths": {private.host: {"username": name, "password": password}}})
    )
    repos = {f"{private.host}/*": {}, f"{public.host}/*": {}}
    hosts = {each.host: {"insecure": True} for each in (private, public)}
    own = {"timeout": "30s", "repos": repos, "registries": hosts}
    return configured(directory / "space", own, dockerAuth=login)


async def statuses(server: Running, *targets: object) -> list[int]:
    """Request each target twice, the second time from memory; return the statuses."""
    found = []
    for target in targets:
        first, second = [(await server.fetch(f"{target}/")).status for _ in range(2)]
        assert first == second, target
        found.append(first)
    return found


@within(60)
async def test_a_private_page(
    tmp_path: Path, htpasswd_registry: DockerRegistry, docker_registry: DockerRegistry
) -> None:
    """A page of a private registry is not served under the name of a public one."""
    digest = htpasswd_registry.push(SECRET, "team/secret:v1")
    docker_registry.push(Image.of({"index.html": b"public"}), "team/site:v1")
    own = f"{htpasswd_registry.host}/team/secret"
    others = [
        f"{docker_registry.host}/{name}@{digest}" for name in ("team/site", "team/secret", "x")
    ]
    config = serving_both(tmp_path, htpasswd_registry, docker_registry)
    async with running(config) as server:
        assert await statuses(server, f"{own}:v1", f"{own}@{digest}") == [200, 200]
        assert await statuses(server, *others) == [404, 404, 404]
        asked = {each.target for each in docker_registry.requests()}
        assert f"/v2/team/site/manifests/{digest}" in asked
    htpasswd_registry.stop()
    async with running(config) as server:
        assert await statuses(server, f"{own}:v1", f"{own}@{digest}") == [200, 200]
        assert await statuses(server, *others) == [404, 404, 404]
        docker_registry.stop()
        unasked = f"{docker_registry.host}/unasked@{digest}"  # the negative cache has the others
        assert await statuses(server, unasked) == [502]
        assert await statuses(server, f"{own}:v1", f"{own}@{digest}") == [200, 200]
        for target in others:
            answer = await server.fetch(f"{target}/", headers={"X-BlobServe-ReadOnly": "true"})
            assert answer.status == 404


@within(60)
async def test_a_layer_that_both_have(
    tmp_path: Path, htpasswd_registry: DockerRegistry, docker_registry: DockerRegistry
) -> None:
    """A layer in two registries is pulled from one, and served for both without a registry."""
    index = Index((SECRET,))
    digest = htpasswd_registry.push(index, "team/secret:v1")
    docker_registry.push(index, "team/copy:v1")
    own, copy = f"{htpasswd_registry.host}/team/secret", f"{docker_registry.host}/team/copy"
    async with running(serving_both(tmp_path, htpasswd_registry, docker_registry)) as server:
        assert await statuses(server, f"{own}:v1", f"{copy}@{digest}") == [200, 200]
        await until(lambda: len(docker_registry.requests()) >= 3)
        blobs = [each.method for each in docker_registry.requests() if "/blobs/" in each.target]
        assert blobs == ["HEAD"]
        htpasswd_registry.stop()
        docker_registry.stop()
        targets = f"{own}:v1", f"{own}@{digest}", f"{copy}@{digest}", f"{copy}@{SECRET.digest}"
        assert await statuses(server, *targets) == [200, 200, 200, 200]


@within(60)
async def test_the_blob_space_of_the_build_before(
    tmp_path: Path, htpasswd_registry: DockerRegistry, docker_registry: DockerRegistry
) -> None:
    """After an upgrade tags are served without their registry, but no longer shared wrongly."""
    digest = htpasswd_registry.push(SECRET, "team/secret:v1")
    config = serving_both(tmp_path, htpasswd_registry, docker_registry)
    own, other = f"{htpasswd_registry.host}/team/secret", f"{docker_registry.host}/team/site"
    async with running(config) as server:
        assert await statuses(server, f"{own}:v1") == [200]
    with closing(sqlite3.connect(tmp_path / "space" / "state")) as state:
        state.execute("DROP TABLE IF EXISTS provenance")
        # The row that the previous release wrote for such a request.
        state.execute("INSERT INTO refs VALUES (?, ?, 1)", (f"{other}@{digest}", digest))
        state.commit()
    htpasswd_registry.stop()
    async with running(config) as server:
        assert await statuses(server, f"{own}:v1", f"{own}@{digest}") == [200, 200]
        assert await statuses(server, f"{other}@{digest}") == [404]
    htpasswd_registry.start()
    async with running(config) as server:
        assert await statuses(server, f"{own}:v1", f"{own}@{digest}") == [200, 200]
        htpasswd_registry.stop()
    async with running(config) as server:
        assert await statuses(server, f"{own}:v1", f"{own}@{digest}") == [200, 200]


@within(60)
async def test_local_sources(tmp_path: Path) -> None:
    """A local source shares a layer only if its own file has the right bytes."""
    secret, other = tmp_path / "secret", tmp_path / "other"
    write_layout(secret, {"v1": SECRET})
    write_layout(other, {"v1": Image.of({"index.html": b"public"})})
    repos = {
        "local.example/secret": {"source": f"oci:{secret}"},
        "local.example/other/*": {"source": f"oci:{other}", "tagMaxAge": "1h"},
    }
    first, by_digest = (f"local.example/other/{n}@{SECRET.digest}" for n in "ab")
    tags = "local.example/secret:v1", "local.example/other/b:v1"
    async with running(configured(tmp_path / "space", {"repos": repos})) as server:
        assert await statuses(server, *tags) == [200, 200]
        assert await statuses(server, first) == [404]
        own, copied = (each / "blobs" / "sha256" for each in (secret, other))
        manifest = SECRET.digest.removeprefix("sha256:")
        layer = SECRET.layers[0].digest.removeprefix("sha256:")
        shutil.copy(own / manifest, copied)
        assert await statuses(server, by_digest) == [404]
        (copied / layer).write_bytes(bytes(len(SECRET.layers[0].blob)))
        assert await statuses(server, by_digest) == [502]
        shutil.copy(own / layer, copied)
        assert await statuses(server, by_digest) == [200]
        (copied / layer).unlink()
        assert await statuses(server, by_digest) == [200]
    shutil.rmtree(other / "blobs")
    async with running(configured(tmp_path / "space", {"repos": repos})) as server:
        assert await statuses(server, by_digest, tags[1]) == [200, 200]


@within(30)
@pytest.mark.parametrize("is_cut", [False, True], ids=["lies", "cut"])
async def test_an_unlisted_registry_that_has_the_name_alone(tmp_path: Path, is_cut: bool) -> None:
    """An unlisted registry that answers 200 to HEAD must still send the layer completely."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    image = packed(SECRET)
    layer = SECRET.layers[0]
    async with listening() as scripted, registry_at(scripted.host) as registry:
        own = scripted.push("team/secret:v1", image)
        other = scripted.push("team/other:v1", image)
        rules = {other.repository: RepositoryRules(listed=False)}
        with pool() as threads:
            async with standing(
                tmp_path,
                registry,
                reactor,
                rules=rules,
                threads=threads,  # type: ignore[arg-type]
            ) as stand:
                with await stand.ask(own) as lease:
                    assert content(lease) == b"a private page"
                target = f"GET /v2/team/other/blobs/{layer.digest}"
                if is_cut:
                    scripted.script(target, *[cut(10)] * 40)
                    with pytest.raises(Exception, match="failed"):
                        await stand.ask(other)
                    scripted._script.clear()
                for answer in (status(404), status(403)) if not is_cut else ():
                    scripted.script(target, answer)
                    with pytest.raises((BlobNotFound, RegistryRefused)):
                        await stand.ask(other)
                wrong = bytes(len(layer.blob))
                scripted._blobs["team/other", layer.digest] = wrong
                with pytest.raises(ContentMismatch):
                    await stand.ask(other)
                assert stand.store.lease_at_once(other) is None
                scripted._blobs["team/other", layer.digest] = layer.blob
                with await stand.ask(other) as lease:
                    assert content(lease) == b"a private page"
                assert names_in(tmp_path, "ingest") == []
                assert len(names_in(tmp_path, "blobs/sha256")) == 1
                assert scripted.asked("HEAD /v2/team/other/blobs") == []
