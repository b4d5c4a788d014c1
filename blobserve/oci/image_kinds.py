"""The kinds of images and artifacts that blobserve cannot serve, by their media types. Pure.

One table names the kind in error texts. It never decides whether an image is served. Texts are
clauses about a manifest, and never quote it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_PUSH_TAR = "push the image with tar layers"
_NO_IMAGE = "not an image; request the image itself"

_KINDS: tuple[tuple[str, str], ...] = (
    # Encrypted layers have the type of a layer with a suffix: ocicrypt, imgcrypt.
    (r".*\+encrypted", "it has encrypted layers; push the image without encryption"),
    # Signatures and attestations.
    (
        r".*\.erofs\.sig|application/vnd\.oci\.mt\.pkcs7",
        f"it is a signature of EROFS layers, {_NO_IMAGE}",
    ),
    (r"application/vnd\.dev\.cosign\.simplesigning\..*", f"it is a cosign signature, {_NO_IMAGE}"),
    (
        r"application/vnd\.dev\.(?:cosign|sigstore\.cosign)\.artifact\.sig\..*",
        f"it is a cosign signature, {_NO_IMAGE}",
    ),
    (r"application/vnd\.dev\.cosign\.artifact\.sbom\..*", f"it is an SBOM, {_NO_IMAGE}"),
    (
        r"application/vnd\.dev\.sigstore\.bundle.*",
        f"it is a Sigstore bundle, which is a cosign signature or attestation, {_NO_IMAGE}",
    ),
    (
        r"application/vnd\.dsse\.envelope\..*",
        f"it is a cosign attestation (a DSSE envelope), {_NO_IMAGE}",
    ),
    (r"application/vnd\.in-toto.*", f"it is an in-toto attestation, {_NO_IMAGE}"),
    (
        r"application/vnd\.cncf\.notary\..*|application/(?:jose\+json|cose)",
        f"it is a Notation signature, {_NO_IMAGE}",
    ),
    (
        r"(?:application|text)/(?:spdx|vnd\.cyclonedx|vnd\.syft).*",
        f"it is an SBOM, {_NO_IMAGE}",
    ),
    # Indexes for lazy pulling.
    (r"application/vnd\.amazon\.soci\..*", f"it is a SOCI index, {_NO_IMAGE}"),
    (r"application/vnd\.oci\.image\.layer\.nydus\..*", f"it has Nydus layers; {_PUSH_TAR}"),
    # File systems in place of tar archives.
    (r"application/.*\berofs\b.*", f"it has EROFS layers, not tar archives; {_PUSH_TAR}"),
    (
        r"appl[a-z]*/vnd\.sylabs\.sif\..*",
        f"it is a Singularity image (SIF) with a squashfs file system; {_PUSH_TAR}",
    ),
    (
        r"application/vnd\.sylabs\.image\.layer\..*squashfs",
        f"it has squashfs layers of Singularity (OCI-SIF), not tar archives; {_PUSH_TAR}",
    ),
    (r"application/.*\bsquashfs\b.*", f"it has squashfs layers, not tar archives; {_PUSH_TAR}"),
    (r"application/.*\bext(?:[234]|fs)\b.*", f"it has ext file systems as layers; {_PUSH_TAR}"),
    (
        r"application/.*\b(?:composefs|overlaybd)\b.*",
        f"it has layers of a file system; {_PUSH_TAR}",
    ),
    (
        r"application/.*\b(?:qcow2|vmdk|vhdx?|disk)\b.*",
        f"it has disk images of a virtual machine as layers; {_PUSH_TAR}",
    ),
    # Other artifacts.
    (
        r"application/vnd\.cncf\.helm\..*|application/tar\+gzip",
        "it is a Helm chart of an old form; push it again with a current Helm",
    ),
    (
        r"application/(?:.*[.+])?wasm(?:[.+].*)?|application/vnd\.fermyon\.spin\..*",
        "it is a WebAssembly artifact without titles; push its file with oras push",
    ),
    (r"application/vnd\.docker\.compose\..*", f"it is a Compose project, {_NO_IMAGE}"),
    (
        r"application/vnd\.buildkit\.cacheconfig\..*",
        f"it is a build cache of BuildKit, {_NO_IMAGE}",
    ),
    (r"application/vnd\.docker\.plugin\..*", f"it is a Docker plugin, {_NO_IMAGE}"),
    (
        r"application/vnd\.(?:ollama\.image|docker\.ai|cncf\.model)\..*",
        f"it is an AI model, {_NO_IMAGE}",
    ),
    (
        r"application/vnd\.cncf\.openpolicyagent\..*",
        "it is a policy of Open Policy Agent without titles; push its files with oras push",
    ),
    (
        r"application/vnd\.(?:oci|cncf\.oras)\.artifact\.manifest\..*",
        "it is an artifact manifest, a format that OCI has withdrawn; push it with a current tool",
    ),
)
_TABLE = tuple((re.compile(pattern), text) for pattern, text in _KINDS)


def named(media_types: Iterable[str]) -> str | None:
    """Return a clause that names the kind of the first media type in the table; None without one.

    Parameters of a media type are ignored, and so is its case.
    """
    for media_type in media_types:
        plain = media_type.partition(";")[0].strip().lower()
        for pattern, text in _TABLE:
            if pattern.fullmatch(plain):
                return text
    return None


def types_of(document: Mapping[str, object], listed: Iterable[object]) -> list[str]:
    """Return the media types that tell the kind of a manifest, the most telling first.

    They are its artifact type, that of its configuration, and those of `listed`, its layers.
    """
    config = document.get("config")
    found = [document.get("artifactType"), _type_of(config), *map(_type_of, listed)]
    return [each for each in found if isinstance(each, str)]


def _type_of(value: object) -> object:
    return value.get("mediaType") if isinstance(value, Mapping) else None
