"""The shapes of notifications, as each registry documents them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from blobserve.errors import BadRequest
from blobserve.web.webhooks.notification import Push, parse

DIGEST = "sha256:" + "0f" * 32


def read(document: Any, **fields: str) -> list[tuple[str, list[str] | None]]:
    """Return the pushes of a document, as plain values."""
    named = {name.replace("_", "-").encode(): value.encode() for name, value in fields.items()}
    pushes = parse(json.dumps(document).encode(), named)
    return [(each.path, None if each.tags is None else sorted(each.tags)) for each in pushes]


def event(action: str = "push", **target: object) -> dict[str, object]:
    """Return an event of the distribution project."""
    return {"id": "e1", "action": action, "target": {"repository": "team/shop", **target}}


def harbor(*tags: str, kind: str = "PUSH_ARTIFACT") -> dict[str, Any]:
    """Return a notification in Harbor's own format."""
    return {"type": kind, "occur_at": 1, "operator": "ci", "event_data": harbor_data(*tags)}


def harbor_data(*tags: str) -> dict[str, Any]:
    """Return the part of Harbor's notifications that both formats have."""
    resources = [{"digest": DIGEST, "tag": tag, "resource_url": f"h/a/b:{tag}"} for tag in tags]
    repository = {"name": "shop", "namespace": "team", "repo_full_name": "team/shop"}
    return {"resources": resources, "repository": repository}


def structured(kind: str, data: object) -> dict[str, object]:
    """Return a CloudEvent in the structured mode."""
    return {"specversion": "1.0", "id": "1", "source": "/x", "type": kind, "data": data}


def github(action: str = "published", key: str = "package", **own: object) -> dict[str, Any]:
    """Return an event of GitHub about a package."""
    version = {"container_metadata": {"tag": {"name": "live", "digest": DIGEST}}}
    package = {
        "name": "shop",
        "namespace": "Team",
        "owner": {"login": "Team"},
        "package_type": "CONTAINER",
        "package_version": version,
        **own,
    }
    return {"action": action, key: package, "repository": {"full_name": "Team/code"}}


def hub(tag: str | None = "live") -> dict[str, Any]:
    """Return a notification of Docker Hub."""
    data = {"pusher": "ci", "pushed_at": 1.5e9, **({} if tag is None else {"tag": tag})}
    return {
        "callback_url": "https://x",
        "push_data": data,
        "repository": {"repo_name": "team/shop"},
    }


def quay(updated: object) -> dict[str, Any]:
    """Return a Repository Push of Quay."""
    document = {"name": "shop", "repository": "team/shop", "docker_url": "quay.example/team/shop"}
    return document if updated is None else {**document, "updated_tags": updated}


ZOT = {"name": "team/shop", "reference": "live", "digest": DIGEST, "mediaType": "m"}
LIVE = [("team/shop", ["live"])]


@pytest.mark.parametrize(
    ("document", "pushes"),
    [
        ({"events": [event(tag="live", digest=DIGEST)]}, LIVE),
        ({"events": [event(digest=DIGEST), event(tag="live"), event(tag="v2")]}, [
            ("team/shop", ["live", "v2"])
        ]),
        ({"events": [event(tag="live"), event(tag="a", repository="b")]}, [
            ("team/shop", ["live"]), ("b", ["a"])
        ]),
        ({"events": [event("pull", tag="live")]}, []),
        ({"events": [event("delete", tag="live")]}, []),
        ({"events": [event(digest=DIGEST)]}, []),
        ({"events": []}, []),
        (harbor("live"), LIVE),
        (harbor("live", kind="pushImage"), LIVE),
        (harbor("live", DIGEST, "v2"), [("team/shop", ["live", "v2"])]),
        (harbor(DIGEST), []),
        (harbor("live", kind="PULL_ARTIFACT"), []),
        (harbor("live", kind="DELETE_ARTIFACT"), []),
        (structured("harbor.artifact.pushed", harbor_data("live")), LIVE),
        (structured("io.goharbor.artifact.pushed", harbor_data("live")), LIVE),
        (structured("harbor.artifact.pulled", harbor_data("live")), []),
        (structured("harbor.artifact.deleted", harbor_data("live")), []),
        (structured("zotregistry.image.updated", ZOT), LIVE),
        (structured("com.example.registry.image.updated", ZOT), LIVE),
        (structured("zotregistry.image.deleted", ZOT), []),
        (structured("zotregistry.image.lint_failed", ZOT), []),
        (structured("zotregistry.repository.created", {"name": "team/shop"}), []),
        (structured("zotregistry.image.updated", {**ZOT, "reference": DIGEST}), []),
        (github(), [("team/shop", None)]),
        (github("updated", "registry_package"), [("team/shop", None)]),
        (github(name="shop/web"), [("team/shop/web", None)]),
        (github(owner=None), [("team/shop", None)]),
        (github("deleted"), []),
        (github(package_type="npm"), []),
        (github(name=None), []),
        ({"zen": "x", "hook_id": 1, "hook": {}}, []),
        (hub(), LIVE),
        (hub(None), [("team/shop", None)]),
        (quay(["live", "v2"]), [("team/shop", ["live", "v2"])]),
        (quay({"live": "0f" * 32}), LIVE),
        (quay([]), []),
        (quay(None), []),
    ],
)  # fmt: skip
def test_shapes(document: object, pushes: object) -> None:
    """A notification names repositories and tags that were pushed; nothing else is a push."""
    assert read(document) == pushes


@pytest.mark.parametrize(
    ("kind", "pushes"),
    [
        ("zotregistry.image.updated", LIVE),
        ("my.zot.image.updated", LIVE),
        ("zotregistry.image.deleted", []),
        ("x.reimage.updated", []),
    ],
)
def test_binary_mode(kind: str, pushes: object) -> None:
    """A CloudEvent in the binary mode has its type in a header field, as zot sends it."""
    assert read(ZOT, ce_type=kind, ce_specversion="1.0") == pushes


@pytest.mark.parametrize(
    "document",
    [
        [],
        None,
        1,
        "text",
        {},
        {"events": 1},
        {"events": [1, None, {}, {"action": "push"}, event(tag=1), event(tag="a b")]},
        {"events": [event(tag="live", repository=7), event(tag="live", repository="x" * 300)]},
        {"event_data": {}, "type": "PUSH_ARTIFACT"},
        {"event_data": {"repository": [], "resources": {}}, "type": "PUSH_ARTIFACT"},
        structured("harbor.artifact.pushed", None),
        structured("zotregistry.image.updated", [1]),
        {"specversion": "1.0", "type": 7},
        {"package": {"package_type": "container"}, "action": "published"},
        {"push_data": {}, "repository": "x"},
        {"push_data": {"tag": {}}, "repository": {"repo_name": ["x"]}},
        {"docker_url": 1, "updated_tags": [None, {}], "repository": {}},
    ],
)
def test_unknown_shapes(document: object) -> None:
    """Documents of other shapes, and members of other types, name no push."""
    assert read(document) == []


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff{}", b"{'a': 1}", b"payload=%7B%7D", b"[" * 100_000, b'{"a": NaN}'],
)
def test_no_json(body: bytes) -> None:
    """A body that is not JSON is refused; the text quotes nothing of it."""
    with pytest.raises(BadRequest) as caught:
        parse(body, {})
    assert str(caught.value) == "the body of a notification is JSON"
    assert caught.value.__cause__ is None


def test_odd_json() -> None:
    """Long numbers, repeated members and a byte order mark are JSON all the same."""
    assert parse(b'{"n": ' + b"9" * 100_000 + b"}", {}) == ()
    assert parse(b'\xef\xbb\xbf{"a": 1, "a": 2}', {}) == ()


def test_many_events() -> None:
    """A notification with very many events costs bounded work."""
    events = [event(tag=f"t{number}") for number in range(5000)]
    [push] = parse(json.dumps({"events": events}).encode(), {})
    assert push.tags is not None
    assert len(push.tags) == 1000
    assert isinstance(push, Push)
