"""The real parts: their requests, redirects and logs are as the other tests rely on."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.parts.images import Image, Index, Layer, Link, write_layout
from tests.support.parts.umoci import umoci_layout

FILES = {"index.html": b"<h1>hello</h1>", "assets/app.js": b"let a = 1", "now": Link("assets")}


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_registry_keeps_the_digest_of_what_skopeo_pushes(docker_registry, compression):
    """An image of any compression is in the registry under its own digest."""
    image = Image.of(FILES, compression)
    docker_registry.push(image, "team/site:v1")
    assert docker_registry.blob_file(image.digest).read_bytes() == image.manifest


def test_docker_images_are_put(docker_registry):
    """An image with Docker's media types, which skopeo rejects in a layout, can be uploaded."""
    image = Image.of(FILES, docker=True)
    docker_registry.put(image, "team/site:v1")
    assert docker_registry.blob_file(image.digest).read_bytes() == image.manifest


def test_index_is_pushed_with_every_platform(docker_registry):
    """An index is pushed with the images of all its platforms."""
    images = tuple(
        Image.of({"index.html": name.encode()}, platform=name)
        for name in ("linux/amd64", "linux/arm64", "linux/arm/v7")
    )
    docker_registry.push(Index(images), "team/site:v1")
    for image in images:
        assert docker_registry.blob_file(image.layers[0].digest).exists()


def test_a_malformed_layer_can_be_put_by_hand(docker_registry):
    """A layer that is not a tar archive can be uploaded without skopeo."""
    image = Image((Layer.of_tar(b"no tar"),))
    docker_registry.put(image, "team/site:v1")
    assert docker_registry.blob_file(image.layers[0].digest).read_bytes() == image.layers[0].blob
    assert docker_registry.requests() == []


def test_htpasswd_registry_refuses_strangers(htpasswd_registry):
    """A push without the password fails."""
    htpasswd_registry.push(Image.of(FILES), "team/site:v1")
    htpasswd_registry.user = None
    with pytest.raises(subprocess.CalledProcessError):
        htpasswd_registry.push(Image.of(FILES), "team/site:v2")


def test_cdn_registry_sends_blobs_elsewhere(cdn_registry, cdn, tmp_path):
    """A pull by skopeo fetches its blobs from nginx."""
    image = Image.of(FILES)
    cdn_registry.push(image, "team/site:v1")
    cdn_registry.pull("team/site:v1", cdn_registry.directory / "pulled")
    assert any(image.layers[0].digest[7:] in asked.target for asked in cdn.requests())
    cdn_registry.stop()
    assert 307 in {asked.status for asked in cdn_registry.requests()}


def test_token_registry_believes_signed_tokens_alone(token_registry, token_endpoint):
    """A push uses a token with the scope of the repository, and a wrong login fails."""
    token_registry.push(Image.of(FILES), "team/site:v1")
    scopes = {scope for request in token_endpoint.requests for scope in request.scopes}
    assert scopes == {"repository:team/site:pull,push"}
    token_registry.user = "reader:wrong"
    with pytest.raises(subprocess.CalledProcessError):
        token_registry.push(Image.of(FILES), "team/site:v1")
    assert token_endpoint.requests[-1].status == 401


def test_registry_takes_what_umoci_makes(docker_registry, part_directory):
    """An image of two layers by umoci can be pushed."""
    layout = umoci_layout(part_directory(), ("/ide", {"a/b.js": b"1"}), ("/bin", {"server": b"2"}))
    docker_registry.copy(f"oci:{layout}:made", "team/site:v1")
    docker_registry.pull("team/site:v1", docker_registry.directory / "pulled")
    blobs = docker_registry.directory / "pulled/blobs/sha256"
    assert len(list(blobs.iterdir())) == 4


def test_layouts_are_the_same_bytes_each_time(tmp_path):
    """Two layouts of the same files are identical."""
    one, two = (write_layout(tmp_path / name, {"v1": Image.of(FILES)}) for name in ("one", "two"))
    listed = [sorted(p.relative_to(d) for p in d.rglob("*")) for d in (one, two)]
    assert listed[0] == listed[1]
    assert all((one / p).read_bytes() == (two / p).read_bytes() for p in listed[0] if p.suffix)
