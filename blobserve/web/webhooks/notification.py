"""Notifications of registries as values: from a body and its header fields to the pushes it names.

Pure. A push has the path of a repository and the tags that moved. No digest is read, because a
notification is only a hint. Everything else that a registry reports, such as pulls and deletions,
is no push. Each shape is recognized by members that only its registry writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import NoReturn

import attrs

from blobserve.errors import BadRequest
from blobserve.web.http.conditional import Fields

_MOST_EVENTS = 1000
"""Events of one notification that are read; registries send a few at a time."""

_TAG = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.-]{0,127}")
_LONGEST_PATH = 255

_HARBOR_PUSHES = ("PUSH_ARTIFACT", "pushImage")
_HARBOR_CLOUD_EVENT = ".artifact.pushed"
_ZOT_CLOUD_EVENT = ".image.updated"
_GITHUB_ACTIONS = ("published", "updated")

Document = dict[str, object]


@attrs.frozen
class Push:
    """One repository that an image was pushed to."""

    path: str
    """The repository without its registry, as the registry writes it."""
    tags: frozenset[str] | None
    """The tags that were pushed; None if the notification does not name all of them."""


def parse(body: bytes, fields: Fields) -> tuple[Push, ...]:
    """Return the pushes of a notification; none for an unknown shape.

    :param fields: the header fields, with names in lower case.
    :raises BadRequest: when the body is not JSON.
    """
    document = _decoded(body)
    if not isinstance(document, dict):
        return ()
    for shape in _SHAPES:
        pushes = shape(document, fields)
        if pushes is not None:
            return _merged(pushes)
    return ()


def _decoded(body: bytes) -> object:
    try:
        return _DECODER.decode(body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        # Not chained: the error of the decoder has the whole text.
        raise BadRequest("the body of a notification is JSON") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError("NaN or Infinity")


# Numbers are not used. Reading an integer as a float takes linear time for any length.
_DECODER = json.JSONDecoder(parse_int=float, parse_constant=_no_constant)


def _distribution(document: Document, _fields: Fields) -> list[Push] | None:
    """Read the envelope of the distribution project: one event for each blob and manifest."""
    events = document.get("events")
    if not isinstance(events, list):
        return None
    found = []
    for event in events[:_MOST_EVENTS]:
        target = _mapping(_mapping(event).get("target"))
        # The events of blobs, and those of manifests that were pushed by digest, have no tag.
        if _mapping(event).get("action") == "push" and "tag" in target:
            found += _push(target.get("repository"), [target["tag"]])
    return found


def _harbor(document: Document, _fields: Fields) -> list[Push] | None:
    """Read Harbor's own format."""
    data = document.get("event_data")
    if not isinstance(data, dict):
        return None
    return _harbor_push(data) if document.get("type") in _HARBOR_PUSHES else []


def _cloud_event(document: Document, fields: Fields) -> list[Push] | None:
    """Read a CloudEvent of Harbor or zot, in the structured or the binary mode."""
    kind: object
    if b"ce-type" in fields:
        kind, data = fields[b"ce-type"].decode("latin-1"), document
    elif "specversion" in document:
        kind, data = document.get("type"), _mapping(document.get("data"))
    else:
        return None
    # Both registries let their operators choose the words in front.
    if isinstance(kind, str) and f".{kind}".endswith(_HARBOR_CLOUD_EVENT):
        return _harbor_push(data)
    if isinstance(kind, str) and f".{kind}".endswith(_ZOT_CLOUD_EVENT):
        return _push(data.get("name"), [data.get("reference")])
    return []


def _harbor_push(data: Document) -> list[Push]:
    repository = _mapping(data.get("repository"))
    resources = data.get("resources")
    listed = resources[:_MOST_EVENTS] if isinstance(resources, list) else []
    return _push(repository.get("repo_full_name"), [_mapping(each).get("tag") for each in listed])


def _github(document: Document, _fields: Fields) -> list[Push] | None:
    """Read an event ``package`` or ``registry_package`` of GitHub.

    It names one tag at most, also after a push of several, so all tags of the package may have
    moved. Repositories are in lower case, and names of owners need not be.
    """
    package = document.get("registry_package", document.get("package"))
    if not isinstance(package, dict):
        return None
    kind, name = package.get("package_type"), package.get("name")
    owner = _mapping(package.get("owner")).get("login") or package.get("namespace")
    is_image = isinstance(kind, str) and kind.lower() in ("container", "docker")
    if document.get("action") not in _GITHUB_ACTIONS or not is_image:
        return []
    if not isinstance(owner, str) or not isinstance(name, str):
        return []
    path = name if name.lower().startswith(f"{owner}/".lower()) else f"{owner}/{name}"
    return _push(path.lower(), None)


def _docker_hub(document: Document, _fields: Fields) -> list[Push] | None:
    """Read the format of Docker Hub, which reports nothing but pushes."""
    data = document.get("push_data")
    if not isinstance(data, dict):
        return None
    tag, repository = data.get("tag"), _mapping(document.get("repository"))
    return _push(repository.get("repo_name"), [tag] if tag else None)


def _quay(document: Document, _fields: Fields) -> list[Push] | None:
    """Read a Repository Push of Quay; only this event has ``updated_tags``."""
    updated = document.get("updated_tags")
    if "docker_url" not in document:
        return None
    if not isinstance(updated, (list, dict)):
        return []
    return _push(document.get("repository"), list(updated)[:_MOST_EVENTS])


_SHAPES: tuple[Callable[[Document, Fields], list[Push] | None], ...] = (
    _distribution,
    _cloud_event,
    _harbor,
    _github,
    _docker_hub,
    _quay,
)


def _push(path: object, tags: Iterable[object] | None) -> list[Push]:
    """Return the push to a repository; none if the path or every tag is impossible.

    A digest in place of a tag moves no tag.
    """
    if not isinstance(path, str) or not path or len(path) > _LONGEST_PATH:
        return []
    if tags is None:
        return [Push(path, None)]
    valid = frozenset(each for each in tags if isinstance(each, str) and _TAG.fullmatch(each))
    return [Push(path, valid)] if valid else []


def _merged(pushes: list[Push]) -> tuple[Push, ...]:
    """Return one push for each repository."""
    found: dict[str, frozenset[str] | None] = {}
    for push in pushes:
        before = found.get(push.path, frozenset())
        found[push.path] = None if before is None or push.tags is None else before | push.tags
    return tuple(Push(path, tags) for path, tags in found.items())


def _mapping(value: object) -> Document:
    return value if isinstance(value, dict) else {}
