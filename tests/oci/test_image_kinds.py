"""Error texts that name the kind of an image which cannot be served."""

from __future__ import annotations

import json

import pytest

from blobserve.config import Limits
from blobserve.errors import BadImage, PlatformNotFound
from blobserve.names.digest import Digest
from blobserve.names.platform import Platform
from blobserve.oci.manifest import ImageIndex, Manifest, parse
from blobserve.tar.header import describe

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
V = "application/vnd."


def descriptor(media_type: str, **members: object) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(Digest.of(b"x")), "size": 1, **members}


def document(config: str, *layers: str, **members: object) -> bytes:
    described = [descriptor(layer) for layer in layers]
    members = {"config": descriptor(config), "layers": described, **members}
    return json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, **members}).encode()


def problem(content: bytes) -> str:
    with pytest.raises(BadImage) as caught:
        parse(content, "", Limits())
    return caught.value.problem


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (f"{LAYER}+encrypted", "it has encrypted layers"),
        (f"{LAYER}+gzip+encrypted", "it has encrypted layers"),
        (f"{LAYER}+zstd+encrypted", "it has encrypted layers"),
        (
            f"{LAYER.replace('layer.', 'layer.nondistributable.')}+gzip+encrypted",
            "it has encrypted layers",
        ),
        (f"{V}docker.image.rootfs.diff.tar.gzip+encrypted", "it has encrypted layers"),
        (f"{V}erofs", "it has EROFS layers"),
        (f"{V}erofs+zstd", "it has EROFS layers"),
        (f"{V}erofs.layer.v1", "it has EROFS layers"),
        (f"{V}erofs.layer.v1+zstd", "it has EROFS layers"),
        (f"{V}oci.image.layer.v1.erofs", "it has EROFS layers"),
        (f"{V}stacker.image.layer.erofs+zstd+verity", "it has EROFS layers"),
        (f"{V}oci.image.layer.v1.erofs.sig", "it is a signature of EROFS layers"),
        (f"{V}sylabs.sif.layer.v1.sif", "it is a Singularity image (SIF)"),
        (f"{V}sylabs.sif.layer.v1.squashfs", "it is a Singularity image (SIF)"),
        (f"{V}sylabs.image.layer.v1.squashfs", "it has squashfs layers of Singularity"),
        (f"{V}sylabs.image.layer.v1.ext3", "it has ext file systems"),
        (f"{V}stacker.image.layer.squashfs", "it has squashfs layers"),
        (f"{V}stacker.image.layer.squashfs+zstd+verity", "it has squashfs layers"),
        (f"{V}oci.image.layer.squashfs", "it has squashfs layers"),
        (f"{V}oci.image.layer.nydus.blob.v1", "it has Nydus layers"),
        (f"{V}dev.cosign.simplesigning.v1+json", "it is a cosign signature"),
        (f"{V}dsse.envelope.v1+json", "it is a cosign attestation"),
        (f"{V}dev.sigstore.bundle.v0.3+json", "it is a Sigstore bundle"),
        (f"{V}dev.sigstore.bundle+json;version=0.2", "it is a Sigstore bundle"),
        (f"{V}in-toto+json", "it is an in-toto attestation"),
        (f"{V}in-toto.provenance+dsse", "it is an in-toto attestation"),
        ("application/jose+json", "it is a Notation signature"),
        ("application/spdx+json", "it is an SBOM"),
        ("text/spdx+json", "it is an SBOM"),
        (f"{V}cyclonedx+json", "it is an SBOM"),
        ("application/wasm", "it is a WebAssembly artifact"),
        (f"{V}wasm.content.layer.v1+wasm", "it is a WebAssembly artifact"),
        (f"{V}bytecodealliance.wasm.component.layer.v0+wasm", "it is a WebAssembly artifact"),
        (f"{V}module.wasm.content.layer.v1+wasm", "it is a WebAssembly artifact"),
        (f"{V}docker.compose.file+yaml", "it is a Compose project"),
        (f"{V}ollama.image.model", "it is an AI model"),
        (f"{V}docker.ai.gguf.v3", "it is an AI model"),
        (f"{V}cncf.model.weight.v1.raw", "it is an AI model"),
        (f"{V}cirruslabs.tart.disk.v2", "it has disk images"),
        ("application/tar+gzip", "it is a Helm chart"),
    ],
)
def test_the_kind_of_a_layer(layer: str, said: str) -> None:
    """The error text names the kind of the layers, for images and for artifacts."""
    assert problem(document(CONFIG, layer)).startswith(said)
    assert problem(document(EMPTY, layer)).startswith(said)
    assert problem(document(CONFIG, layer, f"{LAYER}+gzip")).startswith(said)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (f"{V}amazon.soci.index.v1+json", "it is a SOCI index"),
        (f"{V}amazon.soci.index.v2+json", "it is a SOCI index"),
        (f"{V}cncf.notary.signature", "it is a Notation signature"),
        (f"{V}dev.cosign.artifact.sig.v1+json", "it is a cosign signature"),
        (f"{V}cncf.helm.config.v1+json", "it is a Helm chart"),
        (f"{V}wasm.config.v0+json", "it is a WebAssembly artifact"),
        (f"{V}sylabs.sif.config.v1+json", "it is a Singularity image"),
        (f"{V}docker.compose.project", "it is a Compose project"),
        (f"{V}buildkit.cacheconfig.v0", "it is a build cache"),
    ],
)
def test_the_kind_of_an_artifact(kind: str, said: str) -> None:
    """The type of the configuration or of the artifact names its kind."""
    anything = "application/octet-stream"
    assert problem(document(kind, anything)).startswith(said)
    assert problem(document(EMPTY, anything, artifactType=kind)).startswith(said)


def test_a_withdrawn_manifest() -> None:
    """The artifact manifest that OCI withdrew has its own text."""
    content = document(EMPTY, LAYER, mediaType=f"{V}oci.artifact.manifest.v1+json")
    assert "withdrawn" in problem(content)


def test_a_higher_layer_of_a_named_kind() -> None:
    """A higher layer that cannot be used is named for `layers: all`; the lower ones are usable."""
    parsed = parse(document(CONFIG, LAYER, f"{LAYER}+encrypted"), "", Limits())
    assert isinstance(parsed, Manifest)
    assert (len(parsed.layers), parsed.left_out) == (1, 1)
    assert parsed.problem.startswith("it has encrypted layers")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (descriptor(f"{V}buildkit.cacheconfig.v0"), "it is a build cache of BuildKit"),
        (
            descriptor(MANIFEST, platform={"os": "unknown", "architecture": "unknown"}),
            "it has nothing but attestations",
        ),
        (descriptor(f"{V}cncf.oras.artifact.manifest.v1+json"), "it is an artifact manifest"),
    ],
)
def test_an_index_without_any_image(entry: dict[str, object], said: str) -> None:
    """The error text for an index without any image says what kind of index it is."""
    content = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    parsed = parse(content, "", Limits())
    assert isinstance(parsed, ImageIndex)
    for platform in (None, Platform("linux", "amd64")):
        with pytest.raises(PlatformNotFound, match=said):
            parsed.choose(platform)


def test_titled_files_are_served_whatever_their_type() -> None:
    """A file with a title is served, also if its type is in the table."""
    titled = descriptor(
        "application/wasm", annotations={"org.opencontainers.image.title": "a.wasm"}
    )
    content = document(f"{V}wasm.config.v0+json", layers=[titled])
    parsed = parse(content, "", Limits())
    assert isinstance(parsed, Manifest)
    assert [layer.file for layer in parsed.layers] == ["a.wasm"]


def test_an_unknown_kind() -> None:
    """An unknown kind has a general text that does not quote the manifest."""
    assert problem(document(EMPTY, "a/secret")) == (
        "it is an artifact without titles, or it has layers that are not tar archives"
    )


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"hsqs", "a squashfs file system"),
        (b"#!/usr/bin/env run-singularity\n", "a Singularity image"),
        (b"\0asm\1\0\0\0", "a WebAssembly module"),
        (b"age-encryption.org/v1\n", "encrypted data"),
    ],
)
def test_mislabelled_layers(start: bytes, said: str) -> None:
    """A layer of the tar type with other content is named by its first bytes."""
    assert describe(start + bytes(500)) == f"it is {said}, not a tar archive"
