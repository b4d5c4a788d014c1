"""The registry client against real registries, real storage and a real token realm."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from blobserve.config import RegistryRules
from blobserve.errors import RegistryFailed, RegistryRefused
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference
from blobserve.oci.credentials.keychain import Credential
from blobserve.oci.manifest import Descriptor
from tests.support.parts.images import Image
from tests.support.source_fixtures import Sink, registry_at
from tests.support.within import within

IMAGE = Image.of({"index.html": b"a page", "noise": bytes(range(256)) * 4096})
BLOB = IMAGE.layers[0].blob
LAYER = Descriptor("", Digest.of(BLOB), len(BLOB))
READER = Credential("reader", "correct horse")


def pushed(registry: Any) -> Reference:
    """Push the image to this registry; return its reference."""
    registry.push(IMAGE, "team/site:v1")
    return Reference.parse(f"{registry.host}/team/site:v1")


@within(20)
async def test_password(htpasswd_registry: Any) -> None:
    """A registry with passwords is readable with the right one, and refused without."""
    tagged = pushed(htpasswd_registry)
    async with registry_at(tagged.repository.registry, credential=READER) as registry:
        assert str((await registry.resolve(tagged)).digest) == IMAGE.digest
    for credential in (None, Credential("reader", "wrong")):
        async with registry_at(tagged.repository.registry, credential=credential) as registry:
            with pytest.raises(RegistryRefused):
                await registry.resolve(tagged)


@within(20)
async def test_storage(cdn_registry: Any, cdn: Any) -> None:
    """Blobs come from the storage that a registry redirects to, if it is allowed (C32)."""
    tagged = pushed(cdn_registry)
    host = tagged.repository.registry
    rules = RegistryRules(insecure=True, allow_hosts=frozenset({cdn.host}))
    async with registry_at(host, rules, READER) as registry:
        sink = Sink()
        await registry.fetch(tagged.repository, LAYER, sink)
        assert sink.content == BLOB
        assert await registry.holds(tagged.repository, LAYER)
    async with registry_at(host, RegistryRules(insecure=True), READER) as registry:
        with pytest.raises(RegistryFailed, match=f'to allow it, add "{cdn.host}" to registries'):
            await registry.fetch(tagged.repository, LAYER, Sink())
    cdn.stop()
    assert [(each.method, each.authorization) for each in cdn.requests()] == [("GET", "")]


@within(20)
async def test_signed_tokens(token_registry: Any, token_endpoint: Any) -> None:
    """A registry that accepts only its realm's signed tokens is readable (A01)."""
    tagged = pushed(token_registry)
    before = len(token_endpoint.requests)
    rules = RegistryRules(insecure=True, allow_hosts=frozenset({token_endpoint.host}))
    async with registry_at(tagged.repository.registry, rules, READER) as registry:
        sink = Sink()
        await registry.fetch(tagged.repository, LAYER, sink)
        assert sink.content == BLOB
        assert await registry.holds(tagged.repository, LAYER)
    (asked,) = token_endpoint.requests[before:]
    assert asked.scopes == ("repository:team/site:pull",)


@within(20)
async def test_without_tls(docker_registry: Any) -> None:
    """A configured loopback registry without TLS is used over plain HTTP by concurrent calls.

    Row N07.
    """
    tagged = pushed(docker_registry)
    known = Digest.parse(IMAGE.digest)
    async with registry_at(tagged.repository.registry, RegistryRules()) as registry:
        asking = [Deferred.fromCoroutine(registry.refresh(tagged, known)) for _ in range(5)]
        assert {(await each).digest for each in asking} == {known}
