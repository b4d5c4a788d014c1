"""Manifests, indexes and platforms."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobserve.config import Limits
from blobserve.errors import BadImage, PlatformNotFound
from blobserve.names.digest import Digest
from blobserve.names.platform import Platform
from blobserve.oci.manifest import Descriptor, ImageIndex, Manifest, parse
from tests.support.parts.images import Image, Layer
from tests.support.parts.images import Index as RigIndex

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

CONFIG = "application/vnd.oci.image.config.v1+json"

LIMITS = Limits()


def descriptor(media_type: str | None = OCI_LAYER, **members: object) -> dict[str, object]:
    digest = str(Digest.of(repr(members).encode()))
    return {"mediaType": media_type, "digest": digest, "size": 7, **members}


def document(**members: object) -> bytes:
    return json.dumps({"schemaVersion": 2, **members}).encode()


def index(*manifests: object) -> ImageIndex:
    parsed = parse(document(manifests=manifests), OCI_INDEX, LIMITS)
    assert isinstance(parsed, ImageIndex)
    return parsed


def image(name: str | None = None, **members: object) -> dict[str, object]:
    if name is not None:
        parts = ("os", "architecture", "variant")
        members["platform"] = dict(zip(parts, name.split("/"), strict=False))
    return descriptor(OCI_MANIFEST, **members)


@pytest.mark.parametrize("docker", [False, True])
@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_image(docker: bool, compression: str) -> None:
    """The layers of OCI and Docker images are parsed, lowest first, with digest and size."""
    layers = tuple(Layer.of({name: b"x"}, compression) for name in ("a", "b"))
    packed = Image(layers, docker=docker)
    parsed = parse(packed.manifest, packed.media_type, LIMITS)
    assert isinstance(parsed, Manifest)
    assert [(str(each.digest), each.size) for each in parsed.layers] == [
        (layer.digest, len(layer.blob)) for layer in layers
    ]


@pytest.mark.parametrize("docker", [False, True])
def test_index(docker: bool) -> None:
    """The image of a platform is found in an index."""
    images = [
        Image((Layer.of({platform: b"x"}),), docker=docker, platform=platform)
        for platform in ("linux/arm64", "linux/amd64", "linux/arm/v7")
    ]
    packed = RigIndex(tuple(images), docker=docker)
    parsed = parse(packed.manifest, packed.media_type, LIMITS)
    assert isinstance(parsed, ImageIndex)
    for each in images:
        chosen, warning = parsed.choose(Platform.parse(each.platform))
        assert (str(chosen.digest), warning) == (str(Digest.of(each.manifest)), None)
    assert str(parsed.choose(None)[0].digest) == str(Digest.of(images[1].manifest))


@pytest.mark.parametrize("own_type", [None, OCI_MANIFEST, DOCKER_MANIFEST])
@pytest.mark.parametrize(
    "media_type",
    [
        *["", "text/plain", "application/json", "application/octet-stream", OCI_MANIFEST],
        "binary/octet-stream",
        *[f"{DOCKER_MANIFEST}; charset=utf-8", OCI_MANIFEST.upper()],
    ],
)
def test_media_type_is_inferred(media_type: str, own_type: str | None) -> None:
    """A manifest without a specific media type is recognized by its content.

    Row M02.
    """
    members = {"layers": [descriptor()]} | ({} if own_type is None else {"mediaType": own_type})
    assert isinstance(parse(document(**members), media_type, LIMITS), Manifest)


@pytest.mark.parametrize("layers", [[], None])
def test_no_layers(layers: object) -> None:
    """An image without layers is valid, in each notation of the empty list."""
    assert parse(document(layers=layers), OCI_MANIFEST, LIMITS) == Manifest(())
    assert parse(document(), OCI_MANIFEST, LIMITS) == Manifest(())


def test_layer_twice() -> None:
    """A layer that is listed twice counts twice (M15)."""
    parsed = parse(document(layers=[descriptor(), descriptor()]), OCI_MANIFEST, LIMITS)
    assert isinstance(parsed, Manifest)
    assert len(parsed.layers) == 2
    assert len(set(parsed.layers)) == 1


def test_layer_of_no_bytes() -> None:
    """A layer may have 0 bytes."""
    parsed = parse(document(layers=[descriptor(size=0)]), OCI_MANIFEST, LIMITS)
    assert isinstance(parsed, Manifest)
    assert [layer.size for layer in parsed.layers] == [0]


ODD: list[object] = [
    *[descriptor("a/b"), descriptor(digest="md5:" + "a" * 32), descriptor(digest=None)],
    *[descriptor(size=-1), descriptor(size="7"), descriptor(size=None)],
    *[{}, 5, None, [], descriptor(OCI_LAYER + "+encrypted")],
]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("config", [{}, {"config": descriptor(CONFIG)}, {"config": {}}])
def test_layers_that_are_not_used(odd: object, config: dict[str, object]) -> None:
    """A higher layer that cannot be used is recorded apart from the layers below it."""
    layers = [descriptor(), descriptor(n=1), odd, descriptor()]
    parsed = parse(document(layers=layers, **config), OCI_MANIFEST, LIMITS)
    assert isinstance(parsed, Manifest)
    assert [str(each.digest) for each in parsed.layers] == [each["digest"] for each in layers[:2]]
    assert (parsed.left_out, bool(parsed.problem), parsed.is_artifact) == (2, True, False)
    with pytest.raises(BadImage):
        parse(document(layers=[odd, descriptor()], **config), OCI_MANIFEST, LIMITS)


@pytest.mark.parametrize("odd", [*ODD[1:-1], descriptor(None)])
def test_entries_that_are_not_used(odd: object) -> None:
    """Invalid entries of an index are skipped; an index that has only such is an error."""
    listed = index(odd, image("linux/amd64"), odd)
    assert [each.platform for each in listed.manifests] == [Platform("linux", "amd64")]
    assert listed.choose(None)[1] is None
    with pytest.raises(BadImage, match="descriptor"):
        index(odd, odd)


def test_pieces_of_an_artifact_that_are_not_used() -> None:
    """An invalid layer of an artifact without a path does not affect the others."""
    title = {"annotations": {"org.opencontainers.image.title": "a.txt"}}
    used = descriptor("text/plain", **title)
    config = descriptor("application/vnd.oci.empty.v1+json")
    odd = descriptor("text/plain", size=-1)
    parsed = parse(document(layers=[odd, used], config=config), OCI_MANIFEST, LIMITS)
    assert isinstance(parsed, Manifest)
    assert [each.file for each in parsed.layers] == ["a.txt"]
    with pytest.raises(BadImage, match="not a positive number"):
        parse(document(layers=[{**odd, **title}, used], config=config), OCI_MANIFEST, LIMITS)


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ],
)
def test_urls_are_ignored(media_type: str) -> None:
    """The urls and inline data of a layer, and the configuration of the image, are ignored.

    Rows M11, M12.
    """
    layer = descriptor(media_type, urls=["http://169.254.169.254/"], data="not base64")
    parsed = parse(document(layers=[layer], config=5), OCI_MANIFEST, LIMITS)
    assert isinstance(parsed, Manifest)
    assert parsed.layers[0] == Descriptor(media_type, Digest.parse(str(layer["digest"])), 7)


@pytest.mark.parametrize(
    ("content", "media_type", "problem"),
    [
        (document(layers=[], manifests=[]), OCI_MANIFEST, "ambiguous"),
        (document(layers=[]), OCI_INDEX, "ambiguous"),
        (document(manifests=[]), DOCKER_MANIFEST, "ambiguous"),
        (document(manifests=[], mediaType=OCI_MANIFEST), "", "ambiguous"),
        (document(mediaType=OCI_INDEX), OCI_MANIFEST, "ambiguous"),
        (document(layers=[], fsLayers=[]), OCI_MANIFEST, "schema 1"),
        (b'{"schemaVersion": 1}', "", "schema 1"),
        (document(layers=[]), SCHEMA_1, "schema 1"),
        (document(mediaType=SCHEMA_1), "text/plain", "schema 1"),
        (b'{"layers": []}', OCI_MANIFEST, "schema 2"),
        (document(), "", "neither a manifest nor an index"),
        (document(layers=[]), "text/html", "media type"),
        (document(layers=[], mediaType="application/vnd.oci.artifact"), "", "media type"),
        (document(layers=[], mediaType=5), "", "media type"),
        (document(layers={}), OCI_MANIFEST, "layers are not a list"),
        (document(layers=[5]), OCI_MANIFEST, "not a JSON object"),
        (document(layers=[descriptor()] * 257), OCI_MANIFEST, "257 layers, more than 256"),
        (document(layers=[descriptor("application/vnd.in-toto+json")]), "", "attestation"),
        (document(layers=[descriptor(OCI_LAYER + "+encrypted")]), "", "encrypted"),
        (document(layers=[descriptor(digest=None)]), "", "has no media type or no digest"),
        (document(layers=[descriptor(digest="sha256:../../x")]), "", "malformed digest"),
        (document(manifests=[descriptor(digest="md5:" + "a" * 32)]), "", "malformed digest"),
    ],
)
def test_unusable_document(content: bytes, media_type: str, problem: str) -> None:
    """A document that is ambiguous, of schema 1 or no image is refused with the reason.

    Rows M06, M07, M13.
    """
    with pytest.raises(BadImage) as raised:
        parse(content, media_type, LIMITS)
    assert problem in raised.value.problem
    assert raised.value.subject == f"manifest {Digest.of(content)}"


@pytest.mark.parametrize("size", ["-1", "1.0", "1e3", '"7"', "null", "true", "1" + "0" * 19])
def test_size(size: str) -> None:
    """A descriptor with an invalid size is refused before anything is fetched.

    Row M10.
    """
    content = document(layers=[descriptor(size="SIZE")]).replace(b'"SIZE"', size.encode())
    with pytest.raises(BadImage):
        parse(content, OCI_MANIFEST, LIMITS)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"<html>",
        b"[" * 5000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        document(layers=[]) + b"x",
        b'{"schemaVersion": 2, "layers": [], "layers": []}',
        b'{"schemaVersion": 2, "layers": [{"size": 1, "size": 1}]}',
        b'{"schemaVersion": 2, "layers": [], "x": NaN}',
        b'{"schemaVersion": 2, "layers": [], "x": -Infinity}',
        b'{"schemaVersion": 2, "layers": [], "x": 9223372036854775808}',
        b'{"schemaVersion": 2, "layers": [], "x": ' + b"9" * 4_000_000 + b"}",
        b'{"schemaVersion": 2, "layers": [], "x": "\xff"}',
        '{"schemaVersion": 2, "layers": []}'.encode("utf-16"),
    ],
    ids=range(15),
)
def test_not_strict_json(content: bytes) -> None:
    """JSON that is ambiguous or nested very deep is refused (M04)."""
    with pytest.raises(BadImage, match=r"strict JSON|not a JSON object"):
        parse(content, OCI_MANIFEST, LIMITS)


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=5,
)
descriptors = st.fixed_dictionaries(
    {},
    optional={
        "mediaType": st.one_of(values, st.sampled_from([OCI_LAYER, OCI_MANIFEST])),
        "digest": st.one_of(values, st.just(str(Digest.of(b"")))),
        "size": st.one_of(values, st.just(7)),
        "platform": st.one_of(values, st.dictionaries(st.sampled_from(["os", "variant"]), values)),
        "annotations": values,
    },
)
documents = st.fixed_dictionaries(
    {"schemaVersion": st.one_of(st.just(2), values)},
    optional={
        "mediaType": st.one_of(values, st.just(OCI_INDEX)),
        "layers": st.one_of(values, st.lists(descriptors)),
        "manifests": st.one_of(values, st.lists(descriptors)),
    },
)


@given(
    st.one_of(st.binary(), st.one_of(values, documents).map(json.dumps).map(str.encode)),
    st.sampled_from(["", OCI_INDEX]),
)
def test_hostile_document(content: bytes, media_type: str) -> None:
    """Any bytes parse to a manifest, an index or a `BadImage`."""
    try:
        parsed = parse(content, media_type, LIMITS)
    except BadImage:
        return
    assert isinstance(parsed, Manifest | ImageIndex)


def test_many_images() -> None:
    """An index of the largest size is parsed and searched (M09)."""
    assert index(*[image("linux/arm64")] * 20_000).choose(Platform.parse("linux/arm64"))


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm/v7", "linux/arm"),
        ("linux/arm/v6", "linux/arm/v6"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/x86-64/v3", "linux/amd64/v3"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/aarch64/v8", "linux/arm64"),
        ("linux/i686", "linux/386"),
    ],
)
def test_platform(text: str, canonical: str) -> None:
    """A platform is the same with its usual variant and without it."""
    platform = Platform.parse(text)
    assert str(platform) == canonical
    assert Platform.parse(canonical) == platform


@pytest.mark.parametrize(
    "text", ["", "linux", "linux/", "/amd64", "a/b/c/d", "Linux/amd64", "a/b\n"]
)
def test_no_platform(text: str) -> None:
    """A platform that is not os/architecture[/variant] is refused with an example."""
    with pytest.raises(ValueError, match="such as linux/arm64"):
        Platform.parse(text)


ATTESTATION = {"vnd.docker.reference.type": "attestation-manifest"}


@pytest.mark.parametrize(
    ("asked", "images", "chosen", "warned"),
    [
        (None, ["linux/arm64", "linux/amd64"], 1, False),
        (None, ["linux/arm64", "linux/amd64/v1"], 1, False),
        (None, ["linux/arm64", "windows/amd64"], 0, True),
        (None, ["unknown/unknown", "linux/arm64"], 1, True),
        (None, [None, "linux/arm64"], 0, True),
        (None, [None, "linux/amd64"], 1, False),
        ("linux/arm64", ["linux/amd64", "linux/arm64/v8"], 1, False),
        ("linux/arm64/v8", ["linux/amd64", "linux/arm64"], 1, False),
        ("linux/arm/v6", ["linux/arm/v7", "linux/arm/v6"], 1, False),
        ("linux/amd64", ["linux/amd64", "linux/amd64"], 0, False),
        ("linux/amd64", ["linux/arm64", "linux/x86_64"], 1, False),
        ("linux/aarch64", ["linux/amd64", "linux/arm64"], 1, False),
        ("linux/arm64", ["linux/amd64", "linux/aarch64/v8"], 1, False),
        (None, ["linux/arm64", "linux/x86_64"], 1, False),
        ("linux/arm64", ["linux/amd64", None], 1, False),
        ("linux/arm64", [None, "linux/amd64"], 0, False),
        ("linux/arm64", [None, "linux/arm64"], 1, False),
        ("linux/arm64", [None], 0, False),
        ("linux/arm64", ["unknown/unknown", None], 1, False),
        ("linux/arm64", ["linux/amd64", None, None], 1, True),
    ],
)
def test_choice(asked: str | None, images: list[str | None], chosen: int, warned: bool) -> None:
    """An index serves the requested platform, or else linux/amd64, or else its first image.

    Row M08.
    """
    listed = index(*[image(platform, n=n) for n, platform in enumerate(images)])
    found, warning = listed.choose(None if asked is None else Platform.parse(asked))
    assert found == listed.manifests[chosen]
    assert (warning is not None) == warned


def test_choice_without_a_match_is_told() -> None:
    """A choice without a match causes a warning that names the setting."""
    _, warning = index(image("linux/arm64")).choose(None)
    assert (
        warning == "has no image for linux/amd64: chose linux/arm64; set platform to choose another"
    )


@pytest.mark.parametrize(
    ("asked", "manifests"),
    [
        ("linux/arm64", [image("linux/amd64"), image(annotations=ATTESTATION)]),
        ("linux/arm64", [image("linux/arm64/v9")]),
        ("linux/arm64", [image("linux/arm64", annotations=ATTESTATION)]),
        (None, []),
        (None, [image("unknown/unknown")]),
        (None, [image(annotations=ATTESTATION)]),
        (None, [descriptor("application/vnd.example.sbom")]),
        (None, [descriptor(SCHEMA_1)]),
    ],
)
def test_no_image_for_the_platform(asked: str | None, manifests: list[dict[str, object]]) -> None:
    """An index without a suitable image counts as a missing image (M08)."""
    with pytest.raises(PlatformNotFound) as raised:
        index(*manifests).choose(None if asked is None else Platform.parse(asked))
    text, _, _kind = str(raised.value).partition(": ")
    assert text == f"the index has no image for {asked or 'any platform'}"


AMD64 = {"os": "linux", "architecture": "amd64"}
SOCI = "application/vnd.amazon.soci.index.v2+json"
EROFS = image(platform={**AMD64, "os.features": ["erofs"]})
NYDUS = image(platform={**AMD64, "os.features": ["nydus.remoteimage.v1"]}, n=1)


@pytest.mark.parametrize("asked", [None, Platform.parse("linux/amd64")])
@pytest.mark.parametrize(
    ("manifests", "chosen"),
    [
        ([EROFS, image("linux/amd64")], 1),
        ([NYDUS, EROFS, image("linux/amd64")], 2),
        ([image("linux/amd64"), EROFS], 0),
        ([image("linux/amd64", artifactType=SOCI), image("linux/amd64")], 1),
        ([image(artifactType="application/spdx+json"), image("linux/amd64")], 1),
        ([image("linux/amd64", artifactType=CONFIG), image("linux/amd64", n=1)], 0),
        ([image("linux/amd64", artifactType=""), image("linux/amd64", n=1)], 0),
        ([image("linux/amd64", artifactType=7), image("linux/amd64", n=1)], 0),
        ([image(platform={**AMD64, "os.features": []}), image("linux/amd64")], 0),
        ([image(platform={**AMD64, "os.features": "x"}), image("linux/amd64")], 0),
        ([EROFS, descriptor(OCI_INDEX)], 1),
        ([image("linux/arm64"), EROFS, NYDUS, image("linux/amd64", n=1)], 3),
        ([image("linux/amd64", artifactType=SOCI)], 0),
        ([NYDUS], 0),
    ],
)
def test_special_images_come_last(
    asked: Platform | None, manifests: list[dict[str, object]], chosen: int
) -> None:
    """A plain image is preferred to one with features or an artifact type, at any position."""
    listed = index(*manifests)
    assert listed.choose(asked) == (listed.manifests[chosen], None)


def test_special_images_come_after_other_platforms() -> None:
    """Without a requested platform a plain image of another one is preferred to a special one."""
    listed = index(
        EROFS, image("linux/amd64", artifactType=SOCI, n=1), image("linux/arm64"), image()
    )
    found, warning = listed.choose(None)
    assert found == listed.manifests[2]
    assert warning is not None
    assert index(image(artifactType=SOCI), image("linux/arm64")).choose(None)[0].platform


@pytest.mark.parametrize("asked", [None, Platform.parse("linux/arm64")])
def test_nested_index(asked: Platform | None) -> None:
    """The search goes on in a nested index, without a warning (M09)."""
    nested = index(descriptor(DOCKER_LIST), image("linux/s390x"), image())
    assert nested.choose(asked) == (nested.manifests[0], None)
    assert nested.manifests[0].is_index


@pytest.mark.parametrize(
    "platform",
    [
        *[{}, None, 5, {"os": "linux"}, {"architecture": "amd64"}, {"os": 5, "architecture": []}],
        *[{"architecture": "amd64", "variant": "v8"}, {"os": "a/b", "architecture": "c/d"}],
    ],
)
def test_odd_platform(platform: object) -> None:
    """An incomplete or malformed platform counts as none, and does not affect others."""
    listed = index(image(platform=platform, annotations={"a": 5, "b": "c"}), image("linux/amd64"))
    assert listed.manifests[0].platform is None
    assert listed.manifests[0].annotations == {"b": "c"}
    assert listed.choose(None) == (listed.manifests[1], None)
