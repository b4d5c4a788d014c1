"""The image of a local file that a reference stands for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from blobserve.config import Limits
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference
from blobserve.oci.local.image_names import ImageName, ImageNames
from blobserve.oci.manifest import ImageIndex, parse
from tests.support.parts.archives import named

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
AMD64 = {"os": "linux", "architecture": "amd64"}
ARM64 = {"os": "linux", "architecture": "arm64"}
UNKNOWN = {"os": "unknown", "architecture": "unknown"}


def digest(label: str) -> str:
    """Return the digest of the image with this label."""
    return str(Digest.of(label.encode()))


def index(*images: tuple[str, dict[str, Any]]) -> ImageIndex:
    """Return an index of images, each with a label and the members of its entry."""
    listed = [
        {"mediaType": MANIFEST, "digest": digest(label), "size": 7, **members}
        for label, members in images
    ]
    content = json.dumps({"schemaVersion": 2, "manifests": listed}).encode()
    parsed = parse(content, INDEX, Limits())
    assert isinstance(parsed, ImageIndex)
    return parsed


def found(listed: ImageIndex, asked: str) -> str:
    """Return the labels, of one letter each, of the images for a reference."""
    reference = Reference.parse(asked)
    labels = {digest(label): label for label in "abcdefgh"}
    images = ImageNames(listed, reference.repository).find(reference.tag or "")
    return "".join(labels[str(each.digest)] for each in images)


SAVED = index(
    ("a", named("v1", "docker.io/library/shop:v1")),
    ("b", named("v1", "docker.io/library/blog:v1")),
    ("c", named("v2", "docker.io/library/blog:v2")),
)
"""The index that `docker save shop:v1 blog:v1 blog:v2` writes."""

BARE = index(("a", named("v1")), ("b", named("v2")), ("c", named("twice")), ("d", named("twice")))

FULL = index(
    ("a", named("registry.example/team/site:v1")),
    ("b", named("registry.example/other/site:v1")),
    ("c", named("localhost/page:v1")),
    ("d", named("registry.example/other/site:v2")),
    ("e", named("v3")),
)

PLATFORMS = index(
    ("a", named("v1", platform=AMD64)),
    ("b", named("v1", platform=ARM64)),
    ("c", named("v2", platform=AMD64)),
    ("d", named("v2", platform=AMD64)),
    ("e", named("v3", platform=AMD64)),
    ("f", named("v3")),
    ("g", named("x/site:v4", platform=AMD64)),
    ("h", named("y/site:v4", platform=ARM64)),
)


@pytest.mark.parametrize(
    ("listed", "asked", "images"),
    [
        (SAVED, "docker.io/shop:v1", "a"),
        (SAVED, "docker.io/library/blog:v1", "b"),
        (SAVED, "registry.example/team/shop:v1", "a"),
        (SAVED, "registry.example/team/blog:v1", "b"),
        (SAVED, "registry.example/team/blog:v2", "c"),
        (SAVED, "registry.example/team/shop:v2", ""),
        (SAVED, "registry.example/team/other:v1", ""),
        (SAVED, "registry.example/shop/blogs:v1", ""),
        (SAVED, "registry.example/team/shop:v3", ""),
        (BARE, "registry.example/any:v1", "a"),
        (BARE, "localhost/other:v2", "b"),
        (BARE, "localhost/other:twice", ""),
        (BARE, "localhost/other:latest", ""),
        (FULL, "registry.example/team/site:v1", "a"),
        (FULL, "registry.example/other/site:v1", "b"),
        (FULL, "registry.example/third/site:v1", ""),
        (FULL, "registry.example/third/site:v2", "d"),
        (FULL, "registry.example/team/site:v2", ""),
        (FULL, "registry.example/team/site:v3", "e"),
        (FULL, "registry.example/page:v1", "c"),
        (FULL, "registry.example/blog:v1", ""),
        (FULL, "registry.example/blog:v3", "e"),
        (PLATFORMS, "localhost/any:v1", "ab"),
        (PLATFORMS, "localhost/any:v2", ""),
        (PLATFORMS, "localhost/any:v3", ""),
        (PLATFORMS, "localhost/site:v4", ""),
        (PLATFORMS, "docker.io/x/site:v4", "g"),
    ],
)
def test_names(listed: ImageIndex, asked: str, images: str) -> None:
    """A tag stands for an image of its own repository, or for one without a repository."""
    assert found(listed, asked) == images


@pytest.mark.parametrize(
    ("images", "chosen"),
    [
        ([named("localhost/site:v1"), named("v1", "docker.io/library/site:v1")], "b"),
        ([named("v1", "docker.io/library/site:v1"), named("docker.io/library/site:v1")], "b"),
        ([named("docker.io/library/site:v1"), named("v1", "docker.io/library/site:v1")], "a"),
        ([named("v1", "docker.io/library/site:v1"), named("v1")], "a"),
        ([named("v1"), named("v1", "docker.io/library/site:v1")], "b"),
        ([named("v1"), named("v1", "docker.io/library/blog:v1")], "a"),
        ([named("v1"), named("localhost/site:v1")], "b"),
        ([named("v1"), named("v1", "docker.io/library/blog:v1", platform=ARM64)], "a"),
        ([named("site:v1")], "a"),
        ([named("index.docker.io/site:v1")], "a"),
        ([named("site:v1"), named("site:v1")], "b"),
        ([named("localhost/site:v1"), named("localhost/site:v1")], "b"),
        ([named("site:v1", platform=AMD64), named("site:v1", platform=ARM64)], "ab"),
        ([named("docker.io/library/blog:v1", "docker.io/library/site:v1")], "a"),
        ([named("a/site:v2", "b/blog:v1")], ""),
        ([named("v1"), named("v1", platform=UNKNOWN)], "a"),
        ([named("v1"), named("v1", artifactType="application/spdx+json")], "a"),
        ([named("v1", artifactType="application/vnd.example.site")], "a"),
        ([named("v1", mediaType="application/xml"), named("v1")], "b"),
        ([named("site@sha256:" + "0" * 64)], ""),
        ([named("site"), named("SITE:v1"), named(":v1"), named("site:")], ""),
    ],
)
def test_order(images: list[dict[str, Any]], chosen: str) -> None:
    """A more exact name is preferred at any position; the last of equal full names counts."""
    assert found(index(*zip("abcdefgh", images, strict=False)), "docker.io/site:v1") == chosen


@pytest.mark.parametrize(
    ("images", "chosen"),
    [
        ([named()], "a"),
        ([{}], "a"),
        ([named(), named(platform=UNKNOWN)], "a"),
        ([named(artifactType="application/spdx+json"), named()], "b"),
        ([named(), named()], ""),
        ([named(platform=AMD64), named(platform=ARM64)], ""),
        ([named(), named("v2")], ""),
        ([named("v2")], ""),
        ([], ""),
    ],
)
def test_the_only_image(images: list[dict[str, Any]], chosen: str) -> None:
    """A single image without a name matches every repository and tag."""
    listed = index(*zip("abcdefgh", images, strict=False))
    for asked in ("docker.io/site:v1", "registry.example/team/blog:latest"):
        assert found(listed, asked) == chosen


def test_one_image_twice() -> None:
    """An image that is listed twice under one tag is one image."""
    listed = index(("a", named("v1")), ("a", named("v1")), ("b", named("v2")), ("a", named("v2")))
    assert found(listed, "docker.io/site:v1") == "a"
    assert found(listed, "docker.io/site:v2") == ""
    again = index(("a", named("x:v1")), ("b", named("x:v1")), ("a", named("x:v1")))
    assert found(again, "docker.io/x:v1") == "a"


@pytest.mark.parametrize(
    ("listed", "names", "more"),
    [
        (SAVED, [f"docker.io/library/{each}" for each in ("shop:v1", "blog:v1", "blog:v2")], 0),
        (BARE, ["v1", "v2", "twice (2 images)"], 0),
        (index(*[(each, named(each)) for each in "abcdefgh"]), list("abcde"), 3),
        (index(("a", named("<b>\n")), ("b", named("x" * 500)), ("c", named("ü"))), [], 3),
        (index(("a", {}), ("b", {})), ["2 images without a name"], 0),
        (index(("a", {})), ["one image without a name"], 0),
        (index(), ["no image"], 0),
    ],
)
def test_description(listed: ImageIndex, names: list[str], more: int) -> None:
    """The description has at most five names, each cut to the length of a name."""
    described = ImageNames(listed, Reference.parse("docker.io/x:v1").repository).described()
    assert described == (tuple(names), more)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("v1", ":v1"),
        ("site:v1", "docker.io/library/site:v1"),
        ("team/site:v1", "docker.io/team/site:v1"),
        ("localhost/site:v1", "localhost/site:v1"),
        ("Registry.Example:5000/site", "registry.example:5000/site:latest"),
        ("registry.example/site@sha256:0", "registry.example/site:"),
        ("registry.example/site:v1@sha256:0", "registry.example/site:v1"),
    ],
)
def test_parsing(text: str, name: str) -> None:
    """Names are parsed as Docker and containerd write them."""
    parsed = ImageName.parse(text)
    assert f"{parsed.repository}:{parsed.tag}" == name
