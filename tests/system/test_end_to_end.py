"""The whole system: a server process and real registries, with every byte compared."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from urllib.parse import quote

import pytest

from tests.support.parts.images import Image, Index, Layer, Link, files_below
from tests.support.parts.registry import DockerRegistry, Requested
from tests.support.parts.server import ROOT, Server
from tests.support.parts.umoci import umoci_layout, umoci_repacked


def made_tree(seed: int = 1) -> dict[str, bytes]:
    """Return some 400 files around the sizes of blocks and chunks, with difficult names."""
    chance = random.Random(seed)
    sizes = [0, 1, 511, 512, 513, 65_536, 262_143, 262_144, 262_145, 1_000_003]
    files = {
        f"assets/{n % 7}/file-{n}.js": chance.randbytes(chance.randrange(3_000)) for n in range(380)
    }
    files |= {f"sizes/{size}.bin": chance.randbytes(size) for size in sizes}
    awkward = [
        "a b.txt",
        "100%.txt",
        "naïve.txt",
        "q?x=1.txt",
        "#hash",
        "tab\tname",
        "a:b@c",
        ".dot",
    ]
    files |= {f"awkward/{name}": name.encode() for name in awkward}
    files |= {
        "long/" + "x" * 90 + "/" + "y" * 180 + ".txt": b"long",
        "index.html": b"<h1>tree</h1>",
    }
    return files


def compare(server: Server, base: str, files: dict[str, bytes]) -> None:
    """Fetch every file below `base` and compare it byte for byte."""
    for name, content in files.items():
        answer = server.fetch(f"/{base}/{quote(name)}")
        assert (answer.status, name) == (200, name)
        assert answer.body == content, name


def allowing(registry: DockerRegistry, **rules: object) -> dict[str, object]:
    """Return a configuration that serves all of `registry`, with a long timeout."""
    return {"timeout": "60s", "repos": {f"{registry.host}/*": rules}}


def docker_auth(directory: Path, registry: DockerRegistry) -> dict[str, object]:
    """Return a configuration with a login for the registry, as `docker login` writes it."""
    name, _, password = str(registry.user).partition(":")
    login = directory / "auth.json"
    login.write_text(
        json.dumps({"auths": {registry.host: {"username": name, "password": password}}})
    )
    return {"dockerAuth": str(login)}


def gets(requests: list[Requested], part: str) -> list[int]:
    """Return the statuses of GET requests with `part` in their target."""
    return [each.status for each in requests if each.method == "GET" and part in each.target]


def test_every_file_is_served_byte_for_byte(docker_registry, serve):
    """All files are served byte for byte: during a pull, from the cache, and without a registry."""
    files = made_tree()
    docker_registry.push(Image.of(files), "team/site:v1")
    server = serve(allowing(docker_registry, contentLocation=True))
    base = f"{docker_registry.host}/team/site:v1"
    compare(server, base, files)
    compare(server, base, files)
    digest = server.fetch(f"/{base}/").headers["Content-Location"]
    assert "@sha256:" in digest
    server.stop()
    docker_registry.stop()
    server.start()
    compare(server, base, files)


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_every_compression_of_an_index_is_served(docker_registry, serve, compression):
    """The image of the configured platform in an index is served, with any compression."""
    files = {name: made_tree()[name] for name in ("index.html", "sizes/1000003.bin")}
    index = Index(
        (
            Image.of({"index.html": b"other"}, compression, platform="linux/arm64"),
            Image.of(files, compression, platform="linux/amd64"),
        )
    )
    digest = docker_registry.push(index, "team/site:v1")
    server = serve(allowing(docker_registry))
    compare(server, f"{docker_registry.host}/team/site:v1", files)
    compare(server, f"{docker_registry.host}/team/site@{digest}", files)


def test_docker_images_and_links_are_served(docker_registry, serve):
    """An image with Docker's media types is served, and its links resolve inside it."""
    files = {"app/main.js": b"run()", "current": Link("app"), "host": Link("/etc/passwd")}
    docker_registry.put(Image.of(files, docker=True), "team/site:v1")
    server = serve(allowing(docker_registry))
    base = f"/{docker_registry.host}/team/site:v1"
    assert server.fetch(f"{base}/current/main.js").body == b"run()"
    assert server.fetch(f"{base}/host").status == 404


def test_an_image_made_by_umoci_is_served_from_its_first_layer(
    docker_registry, part_directory, serve
):
    """The first layer of an image by umoci is served below its workdir, later layers are not."""
    files, layout_directory = made_tree(2), part_directory()
    files["zzz"] = b"umoci leaves out what fills the last block of the last file"
    layout = umoci_layout(layout_directory, ("/ide", files), ("/ide", {"index.html": b"later"}))
    docker_registry.copy(f"oci:{layout}:made", "team/site:v1")
    server = serve(allowing(docker_registry, workdir="/ide"))
    compare(server, f"{docker_registry.host}/team/site:v1", files)


def test_an_image_made_by_umoci_is_served_whole(docker_registry, part_directory, serve):
    """All layers of an image by umoci are served as one tree, also without its registry."""
    files, layout_directory = made_tree(2), part_directory()
    files["zzz"] = b"umoci leaves out what fills the last block of the last file"
    later = {"index.html": b"later", "new/page.html": b"new", "zzz": b"the same"}
    layout = umoci_layout(layout_directory, ("/ide", files), ("/ide", later))
    docker_registry.copy(f"oci:{layout}:made", "team/site:v1")
    server = serve(allowing(docker_registry, workdir="/ide", layers="all"))
    base, merged = f"{docker_registry.host}/team/site:v1", {**files, **later}
    compare(server, base, merged)
    server.stop()
    docker_registry.stop()
    server.start()
    compare(server, base, merged)


def test_what_umoci_removes_is_not_served(docker_registry, part_directory, serve):
    """A file that a later layer of umoci removes or replaces is served as umoci unpacks it."""
    directory = part_directory()
    layout = umoci_layout(directory, ("/", {"a": b"1", "d/x": b"x", "d/y": b"y", "e/z": b"z"}))
    repacked = {"new": b"n", "d/y": b"changed"}
    umoci_repacked(layout, directory, repacked, removed=("a", "e", "d/x"))
    docker_registry.copy(f"oci:{layout}:made", "team/site:v1")
    server = serve(allowing(docker_registry, layers="all"))
    base = f"{docker_registry.host}/team/site:v1"
    compare(server, base, repacked)
    for gone in ("a", "e/z", "d/x", "e/"):
        assert server.fetch(f"/{base}/{gone}").status == 404, gone


@pytest.mark.usefixtures("many_files")
def test_a_thousand_requests_for_a_cold_image_are_one_pull(docker_registry, serve):
    """1,000 concurrent requests for a cold image cause one manifest look-up and one download."""
    files = made_tree()
    image = Image.of(files)
    docker_registry.push(image, "team/site:v1")
    server = serve(allowing(docker_registry))
    target = f"/{docker_registry.host}/team/site:v1/sizes/262145.bin"
    together = Barrier(1000)

    def one(_: int) -> tuple[int, bytes]:
        together.wait(60)
        answer = server.fetch(target)
        return answer.status, answer.body

    with ThreadPoolExecutor(1000) as clients:
        answers = set(clients.map(one, range(1000)))
    assert answers == {(200, files["sizes/262145.bin"])}
    docker_registry.stop()
    asked = docker_registry.requests()
    assert gets(asked, "/manifests/") == [200]
    assert gets(asked, image.layers[0].digest) == [200]


def test_a_registry_with_a_password(htpasswd_registry, serve, tmp_path):
    """An image behind a password is served with the right one, and is a 502 without."""
    files = {"index.html": b"behind a password"}
    htpasswd_registry.push(Image.of(files), "team/site:v1")
    base = f"{htpasswd_registry.host}/team/site:v1"
    config, login = allowing(htpasswd_registry), docker_auth(tmp_path, htpasswd_registry)
    compare(serve(config, login), base, files)
    (tmp_path / "stranger").mkdir()
    (tmp_path / "empty.json").write_text("{}")
    stranger = serve(config, {"dockerAuth": str(tmp_path / "empty.json")}, tmp_path / "stranger")
    refused = stranger.fetch(f"/{base}/")
    assert refused.status == 502
    assert refused.body.decode().startswith("registry refused access to")


def test_a_redirect_to_a_cdn_carries_no_credentials(cdn_registry, cdn, serve, tmp_path):
    """A layer is fetched from the CDN of a registry, which never gets the password."""
    image = Image.of({"index.html": b"from the CDN"})
    cdn_registry.push(image, "team/site:v1")
    pushed = len(cdn.requests())
    config = allowing(cdn_registry)
    config["registries"] = {cdn_registry.host: {"allowHosts": [cdn.host]}}
    server = serve(config, docker_auth(tmp_path, cdn_registry))
    compare(server, f"{cdn_registry.host}/team/site:v1", {"index.html": b"from the CDN"})
    cdn.stop()
    asked = cdn.requests()[pushed:]
    assert len(gets(asked, image.layers[0].digest.removeprefix("sha256:"))) == 1
    assert {each.authorization for each in asked} == {""}


def test_a_redirect_to_an_unnamed_private_address_is_refused(cdn_registry, cdn, serve, tmp_path):
    """A redirect to loopback needs an entry in `allowHosts`, which the error names."""
    cdn_registry.push(Image.of({"index.html": b"x"}), "team/site:v1")
    pushed = len(cdn.requests())
    server = serve(allowing(cdn_registry), docker_auth(tmp_path, cdn_registry))
    refused = server.fetch(f"/{cdn_registry.host}/team/site:v1/")
    assert refused.status == 502
    assert b"allowHosts" in refused.body
    cdn.stop()
    assert cdn.requests()[pushed:] == []


def test_a_token_is_used_for_its_own_repository_alone(
    token_registry, token_endpoint, serve, tmp_path
):
    """Two repositories are pulled with one token each, of their own scope."""
    for name in ("one", "two"):
        token_registry.push(Image.of({"index.html": name.encode()}), f"team/{name}:v1")
    token_endpoint.requests.clear()
    config = allowing(token_registry)
    config["registries"] = {token_registry.host: {"allowHosts": [token_endpoint.host]}}
    server = serve(config, docker_auth(tmp_path, token_registry))
    for name in ("one", "two"):
        compare(server, f"{token_registry.host}/team/{name}:v1", {"index.html": name.encode()})
    token_registry.stop()
    scopes = [request.scopes for request in token_endpoint.requests]
    assert scopes == [("repository:team/one:pull",), ("repository:team/two:pull",)]
    refused = [each.target for each in token_registry.requests() if each.status == 401]
    assert len([target for target in refused if "/team/one/" in target]) <= 1
    assert len([target for target in refused if "/team/two/" in target]) <= 1


def test_the_example_is_what_it_was_made_from(serve):
    """The shipped example image holds the files in `etc/site`, and is served from its layout."""
    server = serve({"repos": {"blobserve.example/site": {"source": f"oci:{ROOT}/etc/example"}}})
    compare(server, "blobserve.example/site:v1", files_below(ROOT / "etc/site"))


def test_a_layer_that_is_no_tar_leaves_the_rest_served(docker_registry, serve):
    """An image with an invalid layer gets a 502 with our message; other images are served."""
    docker_registry.push(Image.of({"index.html": b"fine"}), "team/site:v1")
    docker_registry.put(Image((Layer.of_tar(b"no tar" * 1000),)), "team/broken:v1")
    server = serve(allowing(docker_registry))
    assert server.fetch(f"/{docker_registry.host}/team/broken:v1/").status == 502
    compare(server, f"{docker_registry.host}/team/site:v1", {"index.html": b"fine"})


def test_a_layer_that_changed_in_the_registry_is_not_served(docker_registry, serve):
    """A layer that does not match its digest gets a 502 and is not kept."""
    image = Image.of(made_tree())
    docker_registry.push(image, "team/site:v1")
    stored = docker_registry.blob_file(image.layers[0].digest)
    content = bytearray(stored.read_bytes())
    content[-9] ^= 1
    stored.write_bytes(content)
    server = serve(allowing(docker_registry))
    assert server.fetch(f"/{docker_registry.host}/team/site:v1/").status == 502
    assert not list(server.space.rglob("content"))
