"""Manifests, indexes and descriptors through a whole server: rows M01 to M18.

`tests.oci.test_manifest` tests the content of documents, `tests.oci.registry.test_registry` the way
they are read.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from blobserve.config import MIB
from blobserve.names.digest import Digest
from blobserve.oci.source import Document
from blobserve.testing import MadeImage, make_image, make_index
from tests.support.layers import Compression
from tests.support.parts.faults import Fault, faulty, having
from tests.support.parts.images import Image, Layer
from tests.support.parts.registry import DockerRegistry
from tests.support.scripted_registry import Answer, listening
from tests.support.services import allowing, configured, running
from tests.support.within import within

OCI = "application/vnd.oci.image."
DOCKER = "application/vnd.docker."
MANIFEST, INDEX = f"{OCI}manifest.v1+json", f"{OCI}index.v1+json"
SCHEMA_1 = f"{DOCKER}distribution.manifest.v1+json"
LAYER_TYPE = f"{OCI}layer.v1.tar+gzip"
SITE = "team/site:v1"
IMAGE = make_image({"a": b"a"})
LAYER = IMAGE.layers[0]


def serving(directory: Path, host: str, **own: Any) -> Any:
    """Return a server for the registry at `host`."""
    return running(configured(directory, allowing(host, **own)))


def descriptor(media_type: str = LAYER_TYPE, **members: object) -> dict[str, object]:
    """Return a descriptor of the layer of `IMAGE`, changed by `members`."""
    return {"mediaType": media_type, "digest": str(LAYER.digest), "size": LAYER.size, **members}


def document(**members: object) -> bytes:
    """Return a manifest or an index as JSON."""
    return json.dumps({"schemaVersion": 2, **members}).encode()


def image_of(content: bytes, blobs: dict[Digest, bytes], media_type: str = MANIFEST) -> MadeImage:
    """Return an image with this manifest."""
    return MadeImage((Document(Digest.of(content), media_type, content),), (), blobs)


# --- Media types: M01, M02 ------------------------------------------------------------------------


@pytest.mark.parametrize("docker", [False, True])
@within(20)
async def test_m01_m02_types_of_a_real_registry(
    tmp_path: Path, docker_registry: DockerRegistry, docker: bool
) -> None:
    """A manifest request lists the accepted types, and generic types of an answer are ignored."""
    types = [
        None, "text/plain", "application/json", "application/octet-stream", "binary/octet-stream",
        f"{MANIFEST}; charset=utf-8", MANIFEST.upper(), f"{DOCKER}distribution.manifest.v2+json",
    ]  # fmt: skip
    async with (
        faulty(docker_registry.port) as proxy,
        serving(tmp_path, proxy.host) as server,
    ):
        for n, media_type in enumerate(types):
            docker_registry.put(Image.of({"a": b"%d" % n}, docker=docker), f"team/type:v{n}")
            proxy.always(f"type/manifests/v{n}", having(content_type=media_type))
            answer = await server.fetch(f"{proxy.host}/team/type:v{n}/a")
            assert (media_type, answer.body) == (media_type, b"%d" % n)
        docker_registry.put(Image.of({"a": b"page"}, docker=docker), SITE)
        proxy.script("site/manifests/v1", having(content_type="text/html"))
        assert (await server.fetch(f"{proxy.host}/{SITE}/a")).status == 502
        for asked in proxy.asked("manifests"):
            assert asked.headers["accept"].count("application/vnd.") == 4


# --- Sizes: M03, M10 ------------------------------------------------------------------------------


@within(20)
async def test_m03_four_mebibytes(tmp_path: Path) -> None:
    """A manifest of four mebibytes is served, and one with a byte more is refused."""
    async with listening() as scripted, serving(tmp_path, scripted.host) as server:
        for size, code in ((4 * MIB, 200), (4 * MIB + 1, 502)):
            short = document(layers=[descriptor()], annotations={"x": ""})
            content = short.replace(b'""', b'"%b"' % (b"x" * (size - len(short))))
            assert len(content) == size
            for framing in ("length", "chunked", "close"):
                scripted.push(f"team/site:{size}-{framing}", image_of(content, dict(IMAGE.blobs)))
                scripted.script(
                    f"{size}-{framing}", lambda _, usual, f=framing: attrs.evolve(usual, framing=f)
                )
                answer = await server.fetch(f"{scripted.host}/team/site:{size}-{framing}/a")
                assert (size, framing, answer.status) == (size, framing, code)
        assert b"exceeds 4194304 bytes" in answer.body


@pytest.mark.parametrize("length", ["10", "0", "100000"])
@within(20)
async def test_m03_a_head_that_lies(
    tmp_path: Path, docker_registry: DockerRegistry, length: str
) -> None:
    """A manifest with a wrong Content-Length fails, and the next request is served."""
    docker_registry.put(Image.of({"a": b"a"}), SITE)
    async with faulty(docker_registry.port) as proxy, serving(tmp_path, proxy.host) as server:
        proxy.script("manifests", having(content_length=length))
        answers = [await server.fetch(f"{proxy.host}/{SITE}/a") for _ in range(2)]
        assert [each.status for each in answers] == [200 if length == "100000" else 502, 200]
        assert not list(tmp_path.glob("ingest/*"))


@pytest.mark.parametrize("bound", [None, 8 * MIB])
@within(20)
async def test_m10_sizes_of_layers(tmp_path: Path, bound: int | None) -> None:
    """A layer with an impossible size in its descriptor is refused before it is fetched."""
    sizes: dict[object, tuple[int, ...]] = {
        -1: (502,), 0: (502,), 1.5: (502,), "7": (502,), None: (502,), True: (502,),
        1 << 63: (502,), (1 << 62): (502, 507), 1 << 40: (502, 507), LAYER.size + 1: (502,),
    }  # fmt: skip
    space = {} if bound is None else {"blobSpace": {"maxSizeBytes": bound}}
    async with (
        listening() as scripted,
        running(configured(tmp_path, allowing(scripted.host, **space))) as server,
    ):
        for n, (size, statuses) in enumerate(sizes.items()):
            content = document(layers=[descriptor(size=size)])
            site = scripted.push(f"team/site:v{n}", image_of(content, dict(IMAGE.blobs)))
            before = len(scripted.asked("blobs"))
            answer = await server.fetch(f"{site}/a")
            assert (size, answer.status in statuses) == (size, True), answer.body
            can_be = type(size) is int and 0 < size < 1 << 63
            assert can_be or len(scripted.asked("blobs")) == before
        assert not [*tmp_path.rglob("content"), *tmp_path.glob("ingest/*")]


# --- Documents that are invalid, or no images: M04, M06 to M09, M13, M15 --------------------------

LAYERS = [descriptor()]
OTHERS = [descriptor(MANIFEST, platform={"os": "linux", "architecture": "arm64"})]
NO_IMAGE = f"{OCI[:-6]}empty.v1+json"

DOCUMENTS: dict[str, tuple[bytes, str, int, str]] = {
    "M04 deep": (b"[" * 5000, MANIFEST, 502, "strict JSON"),
    "M04 deep objects": (b'{"a":' * 5000, MANIFEST, 502, "strict JSON"),
    "M04 twice": (
        document(layers=LAYERS)[:-1] + b', "layers": []}', MANIFEST, 502, "strict JSON"
    ),
    "M04 NaN": (document(layers=LAYERS, x=float("nan")), MANIFEST, 502, "strict JSON"),
    "M04 large number": (document(layers=LAYERS, x=1 << 63), MANIFEST, 502, "strict JSON"),
    "M04 no UTF-8": (document(layers=LAYERS, x="y").replace(b"y", b"\xff"), "", 502, "strict JSON"),
    "M04 more behind it": (document(layers=LAYERS) + b"{}", MANIFEST, 502, "strict JSON"),
    "M04 empty": (b"", MANIFEST, 502, "strict JSON"),
    "M06 both": (document(layers=LAYERS, manifests=OTHERS), MANIFEST, 502, "ambiguous"),
    "M06 called an index": (document(layers=LAYERS), INDEX, 502, "ambiguous"),
    "M06 calls itself an index": (document(layers=LAYERS, mediaType=INDEX), "", 502, "ambiguous"),
    "M06 fsLayers too": (document(layers=LAYERS, fsLayers=[]), MANIFEST, 502, "schema 1"),
    "M07 schema 1": (b'{"schemaVersion": 1, "fsLayers": []}', SCHEMA_1, 502, "schema 1"),
    "M07 signed": (document(layers=LAYERS), SCHEMA_1[:-4] + "prettyjws", 502, "schema 1"),
    "M07 without a type": (b'{"schemaVersion": 1}', "", 502, "schema 1"),
    "M08 no images": (document(manifests=[]), INDEX, 404, "no image for"),
    "M08 attestations alone": (
        document(manifests=[descriptor(MANIFEST, platform={"os": "unknown",
                                                           "architecture": "unknown"})]),
        INDEX, 404, "no image for",
    ),
    "M10 digest": (document(layers=[descriptor(digest="sha256:../../x")]), "", 502, "digest"),
    "M10 no digest": (document(layers=[descriptor(digest=None)]), MANIFEST, 502, "digest"),
    "M13 artifact": (
        document(config=descriptor(NO_IMAGE), layers=[descriptor("text/plain")]),
        MANIFEST, 502, "it is an artifact",
    ),
    "M13 of a type": (
        document(mediaType=f"{OCI[:-6]}artifact.manifest.v1+json"), "", 502, "withdrawn",
    ),
    "M13 encrypted": (
        document(layers=[descriptor(f"{LAYER_TYPE}+encrypted")]), "", 502, "encrypted layers",
    ),
    "M14 unknown type": (document(layers=[descriptor("a/b")]), MANIFEST, 502, "not tar archives"),
    "M15 no layers": (document(layers=[]), MANIFEST, 404, "has no layers"),
    "M15 a thousand layers": (document(layers=LAYERS * 1000), MANIFEST, 502, "more than 256"),
}  # fmt: skip


@within(30)
async def test_documents_that_cannot_be_served(tmp_path: Path) -> None:
    """An unusable document gets our error message; no layer is fetched and nothing is left."""
    async with listening() as scripted, serving(tmp_path, scripted.host) as server:
        for n, (what, (content, media_type, code, said)) in enumerate(DOCUMENTS.items()):
            answer = Answer(body=content).having(content_type=media_type)
            scripted.script(f"manifests/v{n}$", lambda *_, answer=answer: answer)
            found = await server.fetch(f"{scripted.host}/team/site:v{n}/a")
            assert (what, found.status, said in found.body.decode()) == (what, code, True)
        assert not scripted.asked("blobs")
        assert not [*tmp_path.rglob("content"), *tmp_path.glob("ingest/*")]


@within(30)
async def test_m08_m09_indexes(tmp_path: Path) -> None:
    """Indexes may be nested once, and one manifest of many children is requested."""
    amd64 = {"os": "linux", "architecture": "amd64"}
    top = IMAGE.documents[0]
    ours = {"mediaType": top.media_type, "digest": str(top.digest), "size": len(top.content)}
    children = [*OTHERS * 10_000, {**ours, "platform": {**amd64, "os.version": "1"}}]
    wide = image_of(document(mediaType=INDEX, manifests=children), dict(IMAGE.blobs), INDEX)
    nested = make_index({"": make_index({"linux/amd64": IMAGE})})
    cases = {
        "wide": (attrs.evolve(wide, documents=(*wide.documents, top)), 200, 2),
        "nested": (nested, 200, 3),
        "deep": (make_index({"": nested}), 502, 3),
        "too deep": (make_index({"": make_index({"": make_index({"": nested})})}), 502, 3),
        "variants": (make_index({"linux/arm64/v8": nested, "linux/amd64/v1": IMAGE}), 200, 2),
    }  # fmt: skip
    for name, (image, code, asked) in cases.items():
        async with listening() as scripted, serving(tmp_path / name, scripted.host) as server:
            answer = await server.fetch(f"{scripted.push(SITE, image)}/a")
            assert (name, answer.status) == (name, code)
            assert answer.body == b"a" or code != 200
            assert (name, len(scripted.asked("manifests"))) == (name, asked)


@within(10)
async def test_m09_size_of_a_child(tmp_path: Path) -> None:
    """A manifest that differs in size from its descriptor in the index is refused."""
    top = IMAGE.documents[0]
    for change, code in ((0, 200), (1, 502), (-1, 502)):
        child = {"mediaType": top.media_type, "digest": str(top.digest)}
        content = document(manifests=[{**child, "size": len(top.content) + change}])
        index = image_of(content, dict(IMAGE.blobs), INDEX)
        async with (
            listening() as scripted,
            serving(tmp_path / str(change), scripted.host) as server,
        ):
            site = scripted.push(SITE, attrs.evolve(index, documents=(*index.documents, top)))
            assert (await server.fetch(f"{site}/a")).status == code


# --- Other members of descriptors: M11, M12, M17, M18 ---------------------------------------------


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param({"data": "d3Jvbmc="}, id="M11 wrong data"),
        pytest.param({"data": "not base64"}, id="M11 odd data"),
        pytest.param({"data": 5, "urls": 5}, id="M11 no text"),
        pytest.param({"urls": ["http://{}/x", f"file://{__file__}"]}, id="M12 urls"),
        pytest.param({"urls": ["https://{}/x"], "mediaType": LAYER_TYPE.replace(
            "layer.", "layer.nondistributable.")}, id="M12 nondistributable"),
        pytest.param({"urls": ["http://{}/x"], "mediaType":
            f"{DOCKER}image.rootfs.foreign.diff.tar.gzip"}, id="M12 foreign"),
    ],
)  # fmt: skip
@within(10)
async def test_what_a_layer_says_of_itself(tmp_path: Path, extra: dict[str, object]) -> None:
    """A layer comes from its registry alone, not from other places in its descriptor."""
    async with (
        listening() as inner,
        listening() as scripted,
        serving(tmp_path, scripted.host) as server,
    ):
        layer = json.loads(json.dumps(descriptor(**extra)).replace("{}", inner.host))
        content = document(layers=[layer])
        for name, blobs, code in (("site", IMAGE.blobs, 200), ("lost", {}, 404)):
            scripted.push(f"team/{name}:v1", image_of(content + b" " * code, dict(blobs)))
            scripted.always(f"{name}/blobs", lambda _, usual, b=blobs: usual if b else Answer(404))
        assert (await server.fetch(f"{scripted.host}/team/lost:v1/a")).status == 404
        assert (await server.fetch(f"{scripted.host}/team/site:v1/a")).body == b"a"
        assert inner.accepted == 0


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(None, id="M17 none"),
        pytest.param({"digest": f"sha256:{'0' * 64}", "size": 7}, id="M17 lost"),
        pytest.param({"digest": f"sha256:{'0' * 64}", "size": 1 << 62}, id="M17 large"),
        pytest.param({"digest": "../../x", "size": -1}, id="M17 malformed"),
        pytest.param(5, id="M17 no descriptor"),
    ],
)
@within(10)
async def test_m17_m18_configuration(tmp_path: Path, config: object) -> None:
    """The configuration of an image is never requested, and its diff_ids are not used."""
    async with listening() as scripted, serving(tmp_path, scripted.host) as server:
        content = document(layers=LAYERS, **({} if config is None else {"config": config}))
        site = scripted.push(SITE, image_of(content, dict(IMAGE.blobs)))
        assert (await server.fetch(f"{site}/a")).body == b"a"
        (asked,) = scripted.asked("blobs")
        assert asked.target.endswith(str(LAYER.digest))


# --- Layers: M14, M15 -----------------------------------------------------------------------------


@within(30)
async def test_m14_types_that_lie(tmp_path: Path) -> None:
    """A layer is unpacked by the format of its bytes, whichever layer type it has."""
    types = [
        LAYER_TYPE, f"{OCI}layer.v1.tar", f"{OCI}layer.v1.tar+zstd", f"{OCI}layer.v1.tar+xyz",
        f"{DOCKER}image.rootfs.diff.tar.gzip", f"{DOCKER}image.rootfs.diff.tar",
    ]  # fmt: skip
    compressions: list[Compression] = ["gzip", "zstd", "none"]
    async with listening() as scripted, serving(tmp_path, scripted.host) as server:
        for kind in types:
            for compression in compressions:
                name = f"{kind} {compression}".encode()
                blob = Layer.of({"a": name}, compression).blob
                layer = descriptor(kind, digest=str(Digest.of(blob)), size=len(blob))
                image = image_of(document(layers=[layer]), {Digest.of(blob): blob})
                answer = await server.fetch(f"{scripted.push(_tag(name), image)}/a")
                assert (name, answer.status, answer.body) == (name, 200, name)


def _tag(name: bytes) -> str:
    return f"team/site:{Digest.of(name).hex}"


EMPTY = gzip.compress(bytes(1024), mtime=0)


@pytest.mark.parametrize("first", ["empty", "same twice"])
@within(10)
async def test_m15_odd_layers(tmp_path: Path, first: str) -> None:
    """A layer may be empty, or be listed twice in an image."""
    empty = descriptor(digest=str(Digest.of(EMPTY)), size=len(EMPTY))
    blobs = {**IMAGE.blobs, Digest.of(EMPTY): EMPTY}
    layers = [empty, descriptor()] if first == "empty" else LAYERS * 2
    async with listening() as scripted, serving(tmp_path, scripted.host) as server:
        site = scripted.push(SITE, image_of(document(layers=layers), blobs))
        answer = await server.fetch(f"{site}/a")
        if first == "empty":
            assert (answer.status, b"the image's 2 layers" in answer.body) == (404, True)
        else:
            assert answer.body == b"a"
        assert len(scripted.asked("blobs")) == 1


@within(20)
async def test_m14_layers_that_are_not_used(tmp_path: Path) -> None:
    """A higher layer that cannot be used is an error only if all layers are served."""
    odd = [descriptor("a/b"), descriptor(digest=f"md5:{'0' * 32}"), descriptor(size=0), {}]
    for layers, code in (("first", 200), ("all", 502)):
        async with (
            listening() as scripted,
            serving(tmp_path / layers, scripted.host, rules={"layers": layers}) as server,
        ):
            for n, each in enumerate(odd):
                content = document(layers=[descriptor(), each])
                site = scripted.push(f"team/site:v{n}", image_of(content, dict(IMAGE.blobs)))
                answer = await server.fetch(f"{site}/a")
                assert (layers, n, answer.status) == (layers, n, code), answer.body
                missing = await server.fetch(f"{site}/b")
                assert (b"the image's 2 layers" in missing.body) == (layers == "first")


# --- Wrong bytes: M05, M16 ------------------------------------------------------------------------


@within(20)
async def test_m05_one_wrong_byte(tmp_path: Path, docker_registry: DockerRegistry) -> None:
    """A manifest with a changed byte is refused when it was requested by digest."""
    image = Image.of({"a": b"a"})
    docker_registry.put(image, SITE)
    async with faulty(docker_registry.port) as proxy, serving(tmp_path, proxy.host) as server:
        exact = f"{proxy.host}/team/site@{image.digest}"
        harmless = image.manifest.index(b"sha256:") + 10  # in the digest of the configuration
        for at in (0, harmless, len(image.manifest) - 1):
            proxy.script("manifests", Fault(corrupt=at))
            answer = await server.fetch(f"{exact}/a")
            assert (at, answer.status) == (at, 502)
            assert b"sent wrong content for" in answer.body
        assert (await server.fetch(f"{exact}/a")).body == b"a"


@within(10)
async def test_m16_moved_while_it_is_read(tmp_path: Path) -> None:
    """A tag that moves between its index and the manifest in it does not disturb the pull."""
    old, new = (make_index({"linux/amd64": make_image({"a": name})}) for name in (b"old", b"new"))
    async with listening() as scripted, serving(tmp_path, scripted.host) as server:
        site = scripted.push(SITE, old)

        def move(_: object, usual: Answer) -> Answer:
            scripted.push(SITE, new)
            return usual

        scripted.script("manifests/v1", move)
        assert (await server.fetch(f"{site}/a")).body == b"old"
        assert [each.target.rpartition("/")[2] for each in scripted.asked("GET .*manifests")] == [
            "v1",
            str(old.documents[1].digest),
        ]
