"""Images packed and unpacked by umoci, as a second implementation of layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from blobserve.store.disk.files import remove
from tests.support.parts.images import Image, write_layout
from tests.support.parts.programs import give_away, run


def umoci_layout(directory: Path, *layers: tuple[str, Mapping[str, bytes]]) -> Path:
    """Make an OCI layout with the image ``made``: one layer for each ``(path, files)``.

    `directory` belongs to the ordinary user, see `own_directory`; `path` is the place of the files
    in the image.
    """
    layout = directory / "layout"
    run(["umoci", "init", "--layout", layout], directory)
    run(["umoci", "new", "--image", f"{layout}:made"], directory)
    for number, (path, files) in enumerate(layers):
        tree = directory / f"tree{number}"
        for name, content in files.items():
            target = tree / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        for made in (tree, *tree.rglob("*")):
            give_away(made)
        run(["umoci", "insert", "--rootless", "--image", f"{layout}:made", tree, path], directory)
    return layout


def umoci_repacked(
    layout: Path, directory: Path, files: Mapping[str, bytes], removed: Iterable[str]
) -> None:
    """Add a layer to the image ``made`` that adds `files` and removes names of lower layers."""
    image, bundle = f"{layout}:made", directory / "repacked"
    run(["umoci", "unpack", "--rootless", "--image", image, bundle], directory)
    for name in removed:
        remove(bundle / "rootfs" / name)
    for name, content in files.items():
        target = bundle / "rootfs" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        give_away(target)
    run(["umoci", "repack", "--image", image, bundle], directory)


def umoci_unpacked(directory: Path, image: Image) -> Path:
    """Unpack an image by umoci in the ordinary user's `directory`; return its root file system.

    :raises subprocess.CalledProcessError: if umoci refuses the image.
    """
    layout = write_layout(directory / "image", {"made": image})
    for made in (layout, *layout.rglob("*")):
        give_away(made)
    bundle = directory / "bundle"
    run(["umoci", "unpack", "--rootless", "--image", f"{layout}:made", bundle], directory)
    return bundle / "rootfs"
