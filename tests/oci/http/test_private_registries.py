"""Registries with private addresses: allowAnyRepo, and the allowHosts of each registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blobserve.testing import make_image
from tests.support.scripted_registry import Answer, Scripted, listening, redirect, status
from tests.support.services import Running, configured, running
from tests.support.source_fixtures import until
from tests.support.within import within

IMAGE = make_image({"a": b"inside"})
OTHER = make_image({"a": b"of another repository"})
OPT_IN = "set allowAnyRepo: true in registries"


def own(*listed: str, any_repo: bool = True, **registries: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration under ``blobserve`` with registries over plain HTTP."""
    return {
        "timeout": "20s",
        "allowAnyRepo": any_repo,
        "repos": {name: {} for name in listed},
        "registries": {host: {"insecure": True, **rules} for host, rules in registries.items()},
    }


async def is_refused(server: Running, registry: Scripted, *names: str) -> str:
    """Check that these images are a 502 without a connection; return the last message."""
    before, body = registry.accepted, ""
    for name in names:
        answer = await server.fetch(f"{registry.host}/{name}/a")
        assert answer.status == 502
        assert b"inside" not in answer.body
        assert (await server.fetch(f"{registry.host}/{name}/a", "HEAD")).status == 502
        body = answer.body.decode()
    assert registry.accepted == before
    return body


async def content(server: Running, name: object) -> tuple[int, bytes]:
    """Return status and body of the file in an image."""
    answer = await server.fetch(f"{name}/a")
    return answer.status, answer.body


@within(60)
@pytest.mark.parametrize("named", ["repos", "wildcard", "registries", "allowHosts"])
async def test_an_unlisted_repository_of_a_private_registry(tmp_path: Path, named: str) -> None:
    """An unlisted repository has no access to the private addresses of configured hosts.

    The entry of its registry may allow it, and a reload changes this at once.
    """
    async with listening() as private, listening() as public:
        secret = private.push("secret/site:v1", IMAGE)
        private.push("secret/other:v1", OTHER)
        listed = private.push("team/site:v1", OTHER)
        names = {"repos": [f"{private.host}/team/site"], "wildcard": [f"{private.host}/team/*"]}
        rules: dict[str, Any] = {private.host: {}}
        if named == "allowHosts":
            rules = {public.host: {"allowHosts": [private.host]}}
        config = own(*names.get(named, ()), **rules)
        opted_in = own(*names.get(named, ()), **{private.host: {"allowAnyRepo": True}})
        async with running(configured(tmp_path, config)) as server:
            if named in names:
                assert await content(server, listed) == (200, b"of another repository")
            asked = ["secret/site:v1", f"secret/site@{IMAGE.digest}", "teams/site:v1", "team:v1"]
            said = await is_refused(server, private, *asked)
            assert f'list the repository, or {OPT_IN}."{private.host}"' in said
            server.service.reload(configured(tmp_path, opted_in))
            assert await content(server, secret) == (200, b"inside")
            assert {each.authorization for each in private.asked("secret")} == {None}
            server.service.reload(configured(tmp_path, config))
            await is_refused(server, private, "secret/other:v1")
            if named in names:
                assert await content(server, listed) == (200, b"of another repository")


@within(30)
async def test_opting_in_alone_serves_nothing(tmp_path: Path) -> None:
    """A registry's allowAnyRepo has no effect without the global one: 403, without a request."""
    async with listening() as private:
        secret = private.push("secret/site:v1", IMAGE)
        config = own(any_repo=False, **{private.host: {"allowAnyRepo": True}})
        async with running(configured(tmp_path, config)) as server:
            assert (await content(server, secret))[0] == 403
        assert private.accepted == 0


def sent_to(registry: Scripted, target: Scripted, way: str) -> None:
    """Let a registry redirect its clients to another one for blobs, manifests or a token."""
    if way == "realm":
        challenge = f'Bearer realm="http://{target.host}/token"'
        registry.always("/v2/", status(401, WWW_Authenticate=challenge))
        target.always("/token", lambda *_: Answer(body=b'{"token": "t"}'))
    else:
        path = "/v2/team/site/manifests/v1"
        if way == "blobs":
            path = f"/v2/team/site/blobs/{IMAGE.layers[0].digest}"
        registry.always(way, redirect(f"http://{target.host}{path}"))


@within(60)
@pytest.mark.parametrize("way", ["blobs", "manifests", "realm"])
async def test_a_registry_that_leads_to_another_one(tmp_path: Path, way: str) -> None:
    """A listed registry leads to a private one only by its own allowHosts, not by another's.

    It does not help that the other one is listed, configured as a registry and allowed plain HTTP.
    """
    async with listening() as registry, listening() as private:
        site = registry.push("team/site:v1", IMAGE)
        private.push("team/site:v1", IMAGE)
        sent_to(registry, private, way)
        listed = f"{registry.host}/team/site", f"{private.host}/team/*"
        rules: dict[str, dict[str, Any]] = {
            registry.host: {},
            private.host: {"allowHosts": [registry.host, private.host]},
        }
        async with running(configured(tmp_path, own(*listed, **rules))) as server:
            status_, body = await content(server, site)
            assert status_ == 502
            assert b'add "%b" to' % private.host.encode() in body
            assert private.accepted == 0
            rules[registry.host]["allowHosts"] = [private.host]
            server.service.reload(configured(tmp_path, own(*listed, **rules)))
            await server.begin(f"/{site}/a")
            await until(lambda: private.accepted > 0)


@within(60)
@pytest.mark.parametrize("way", ["blobs", "manifests", "realm"])
async def test_where_an_unlisted_repository_leads(tmp_path: Path, way: str) -> None:
    """An unlisted repository with access to its registry has that registry's allowHosts as well."""
    async with listening() as registry, listening() as private:
        site = registry.push("team/site:v1", IMAGE)
        private.push("team/site:v1", IMAGE)
        sent_to(registry, private, way)
        listed = f"{private.host}/team/site"
        rules: dict[str, dict[str, Any]] = {
            registry.host: {"allowAnyRepo": True},
            private.host: {"allowAnyRepo": True},
        }
        async with running(configured(tmp_path, own(listed, **rules))) as server:
            assert (await content(server, site))[0] == 502
            assert private.accepted == 0
            rules[registry.host]["allowHosts"] = [private.host]
            server.service.reload(configured(tmp_path, own(listed, **rules)))
            await server.begin(f"/{site}/a")
            await until(lambda: private.accepted > 0)


@within(30)
async def test_pre_pull_from_a_private_registry(tmp_path: Path) -> None:
    """prePull pulls tags of listed repositories at the start, also from a private registry."""
    async with listening() as private:
        site = private.push("team/site:v1", IMAGE)
        config = own(**{private.host: {}})
        config["repos"] = {f"{private.host}/team/site": {"prePull": ["v1"]}}
        async with running(configured(tmp_path, config)) as server:
            read_only = {"X-BlobServe-ReadOnly": "true"}
            found = 0
            while found != 200:
                found = (await server.fetch(f"{site}/a", headers=read_only)).status
            await is_refused(server, private, "secret/site:v1")
