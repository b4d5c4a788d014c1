"""Builders of images: how each packs a site, and what the configuration then has to say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import attrs

from tests.interop.commands import command, package_version
from tests.interop.site import write_site
from tests.support.parts.images import Image
from tests.support.parts.programs import own_directory
from tests.support.parts.registry import DockerRegistry
from tests.support.parts.server import Server

REPOSITORY = "team/site"


@attrs.frozen
class Workshop:
    """A directory with the site in it, and a registry to push to."""

    directory: Path
    host: str

    @property
    def site(self) -> Path:
        """The directory with the site."""
        return self.directory / "site"

    @property
    def name(self) -> str:
        """The reference to push to."""
        return f"{self.host}/{REPOSITORY}:v1"

    def run(self, *arguments: str | Path, **options: Any) -> str:
        """Run a command in the directory; see `command`."""
        return command(*arguments, **{"directory": self.directory, **options})


Build = Callable[[Workshop], Mapping[str, object]]
"""Pack and push the site; return the rules that its repository needs."""


@attrs.frozen
class Builder:
    """One way to make an image of a site."""

    tool: str
    way: str
    version: Callable[[], str]
    build: Build
    layer: str = ""
    """The end of the media type of its layer in the registry, if the image is pushed to one."""
    omits: Mapping[str, str] = {}
    """The reason by the name of each row that this builder leaves out of its image."""

    @property
    def name(self) -> str:
        """The tool and the way in which it is used."""
        return f"{self.tool}, {self.way}"


@contextmanager
def served(builder: Builder) -> Iterator[tuple[Server, str]]:
    """Build the site and serve it; yield the server and the path of the image.

    :raises CommandFailed: if a command of the builder failed.
    :raises AssertionError: if the layer has another media type than the builder promises.
    """
    with ExitStack() as stack:
        registry = DockerRegistry(stack.enter_context(own_directory()))
        stack.callback(registry.stop)
        registry.start()
        shop = Workshop(stack.enter_context(own_directory()), registry.host)
        write_site(shop.site)
        rules = builder.build(shop)
        if builder.layer:
            kinds = _layer_types(shop)
            assert any(kind.endswith(builder.layer) for kind in kinds), f"the layers are {kinds}"
        config = {
            "timeout": "60s",
            "repos": {f"{registry.host}/{REPOSITORY}": rules},
            "registries": {registry.host: {"insecure": True}},
        }
        server = Server(stack.enter_context(own_directory()), config)
        stack.callback(server.stop)
        server.start()
        yield server, f"/{shop.name}"


def _layer_types(shop: Workshop) -> list[str]:
    """Return the media types of the layers of the image in the registry."""
    kinds = ", ".join(Image((), docker=each).media_type for each in (False, True))
    target = f"http://{shop.host}/v2/{REPOSITORY}/manifests/v1"
    with urlopen(Request(target, headers={"Accept": kinds}), timeout=30) as answer:
        return [layer["mediaType"] for layer in json.load(answer)["layers"]]


def _storing(shop: Workshop, tool: str) -> list[str]:
    """Return the start of a command of buildah or podman, with its images in the workshop."""
    paths = [f"--{name}={shop.directory}/{name}" for name in ("root", "runroot")]
    return [tool, *paths, "--storage-driver=vfs"]


def _build(shop: Workshop, tool: str, form: str) -> None:
    """Build an image with the name of the workshop by buildah or podman."""
    (shop.directory / "Dockerfile").write_text("FROM scratch\nCOPY site/ /\n")
    options = ["--isolation=chroot", f"--format={form}", f"--tag={shop.name}", "."]
    shop.run(*_storing(shop, tool), "build", *options)


def _built(tool: str, form: str, *options: str) -> Build:
    """Build by buildah or podman and push."""

    def build(shop: Workshop) -> Mapping[str, object]:
        _build(shop, tool, form)
        push = [*_storing(shop, tool), "push", "--tls-verify=false", *options]
        shop.run(*push, shop.name, f"docker://{shop.name}")
        return {}

    return build


def _saved(form: str) -> Build:
    """Save by podman an archive that blobserve reads without a registry."""

    def build(shop: Workshop) -> Mapping[str, object]:
        archive = shop.directory / "site.tar"
        _build(shop, "podman", "oci")
        save = [*_storing(shop, "podman"), "save", "--quiet", f"--format={form}"]
        shop.run(*save, f"--output={archive}", shop.name)
        return {"source": f"{form}:{archive}"}

    return build


def _insert(shop: Workshop) -> str:
    """Make a layout with the image ``v1`` by ``umoci insert``; return its path and the tag."""
    image = f"{shop.directory}/layout:v1"
    shop.run("umoci", "init", "--layout", shop.directory / "layout")
    shop.run("umoci", "new", "--image", image)
    shop.run("umoci", "insert", "--rootless", "--image", image, "site", "/")
    return image


def _repack(shop: Workshop) -> str:
    """Make the same layout by ``umoci repack``."""
    image, bundle = f"{shop.directory}/layout:v1", shop.directory / "bundle"
    shop.run("umoci", "init", "--layout", shop.directory / "layout")
    shop.run("umoci", "new", "--image", image)
    shop.run("umoci", "unpack", "--rootless", "--image", image, bundle)
    shop.run("cp", "--archive", f"{shop.site}/.", bundle / "rootfs")
    shop.run("umoci", "repack", "--image", image, bundle)
    return image


def _layout(shop: Workshop) -> Mapping[str, object]:
    """Make a layout that blobserve reads without a registry."""
    return {"source": f"oci:{_insert(shop).removesuffix(':v1')}"}


def _copied(make: Callable[[Workshop], str], *options: str) -> Build:
    """Copy a layout into the registry by skopeo."""

    def build(shop: Workshop) -> Mapping[str, object]:
        copy = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]
        shop.run(*copy, *options, f"oci:{make(shop)}", f"docker://{shop.name}")
        return {}

    return build


def _archived(form: str) -> Build:
    """Copy a layout by skopeo into an archive that blobserve reads without a registry."""

    def build(shop: Workshop) -> Mapping[str, object]:
        archive = shop.directory / "site.tar"
        copy = ["skopeo", "--insecure-policy", "copy", "--quiet", f"oci:{_insert(shop)}"]
        shop.run(*copy, f"{form}:{archive}:{shop.name}")
        return {"source": f"{form}:{archive}"}

    return build


OCI, DOCKER = "oci.image.layer.v1.tar", "docker.image.rootfs.diff.tar"


def _debian(tool: str, way: str, build: Build, layer: str = "") -> Builder:
    return Builder(tool, way, partial(package_version, tool), build, layer)


DEBIAN = (
    _debian("buildah", "gzip", _built("buildah", "oci"), f"{OCI}+gzip"),
    _debian("podman", "Docker format", _built("podman", "docker"), f"{DOCKER}.gzip"),
    _debian("podman", "zstd", _built("podman", "oci", "--compression-format=zstd"), f"{OCI}+zstd"),
    _debian(
        "podman",
        "zstd:chunked",
        _built("podman", "oci", "--compression-format=zstd:chunked"),
        f"{OCI}+zstd",
    ),
    _debian("podman", "`oci-archive`", _saved("oci-archive")),
    _debian("podman", "`docker-archive`", _saved("docker-archive")),
    _debian("skopeo", "gzip", _copied(_insert), f"{OCI}+gzip"),
    _debian("skopeo", "zstd", _copied(_insert, "--dest-compress-format=zstd"), f"{OCI}+zstd"),
    _debian("skopeo", "Docker format", _copied(_insert, "--format=v2s2"), f"{DOCKER}.gzip"),
    _debian("skopeo", "`oci-archive`", _archived("oci-archive")),
    _debian("skopeo", "`docker-archive`", _archived("docker-archive")),
    _debian("umoci", "`insert`", _layout),
    _debian("umoci", "`repack`", _copied(_repack), f"{OCI}+gzip"),
)
"""Builders that Debian packages."""
