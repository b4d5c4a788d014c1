"""Images in tar files: both formats of `docker save`, and any directory."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.layers import Directory, Entry, File, Symlink, tar
from tests.support.parts.images import Image, Index, write_layout
from tests.support.parts.programs import program

Layers = Sequence[bytes]

REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"


def named(name: str | None = None, containerd: str | None = None, **members: Any) -> dict[str, Any]:
    """Return the members of an index entry that name its image, with any others."""
    names = {REF_NAME: name, CONTAINERD_NAME: containerd}
    return {"annotations": {key: text for key, text in names.items() if text}, **members}


def write_named_layout(
    directory: Path, images: Sequence[tuple[Image | Index, Mapping[str, Any]]]
) -> Path:
    """Write an image layout with entries that share names or have none; see `named`."""
    write_layout(directory, {str(number): image for number, (image, _) in enumerate(images)})
    index = json.loads((directory / "index.json").read_bytes())
    index["manifests"] = [
        {**entry, "annotations": {}, **members}
        for entry, (_, members) in zip(index["manifests"], images, strict=True)
    ]
    (directory / "index.json").write_text(json.dumps(index))
    return directory


def packed(directory: Path) -> bytes:
    """Return a tar of all files below a directory, such as an image layout."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return tar(File(str(path.relative_to(directory)).encode(), path.read_bytes()) for path in files)


def saved_of_old(
    images: Mapping[str, Layers], config: bytes = b"{}", *more: Entry, hold: bool = True
) -> bytes:
    """Return the old format of `docker save`, in which a repeated layer is a link.

    :param hold: whether the layers themselves are included.
    """
    entries: list[Entry] = []
    listed = []
    places: dict[bytes, str] = {}
    for number, (name, layers) in enumerate(images.items()):
        named = f"{hashlib.sha256(config).hexdigest()}.json"
        paths = []
        for position, layer in enumerate(layers):
            id_ = hashlib.sha256(b"%d %d" % (number, position)).hexdigest()
            entries += [Directory(f"{id_}/".encode()), File(f"{id_}/VERSION".encode(), b"1.0")]
            path = f"{id_}/layer.tar"
            if layer in places:
                entries.append(Symlink(path.encode(), f"../{places[layer]}".encode()))
            elif hold:
                entries.append(File(path.encode(), layer))
            places.setdefault(layer, path)
            paths.append(path)
        entries.append(File(named.encode(), config))
        listed.append({"Config": named, "RepoTags": [name] if name else None, "Layers": paths})
    repositories = File(b"repositories", b"{}")
    return tar([*more, *entries, File(b"manifest.json", json.dumps(listed).encode()), repositories])


def saved_of_today(layout: Path, name: str, config: str, layers: Sequence[str]) -> bytes:
    """Return the format of `docker save` since version 25: a layout with ``manifest.json``.

    :param config: its digest; `layers` are digests too.
    """
    paths = [f"blobs/sha256/{digest.partition(':')[2]}" for digest in (config, *layers)]
    listed = [{"Config": paths[0], "RepoTags": [name], "Layers": paths[1:]}]
    (layout / "manifest.json").write_text(json.dumps(listed))
    return packed(layout)


def copied_by_skopeo(layout: Path, tag: str, form: str, archive: Path, name: str) -> Path:
    """Copy an image of a layout into an archive by skopeo, with `name` if it is not empty."""
    archive.unlink(missing_ok=True)  # skopeo does not replace an archive
    subprocess.run(
        [
            program("skopeo"),
            "--insecure-policy",
            "copy",
            "--quiet",
            f"oci:{layout}:{tag}",
            f"{form}:{archive}:{name}".removesuffix(":"),
        ],
        check=True,
        timeout=60,
        capture_output=True,
    )
    return archive
