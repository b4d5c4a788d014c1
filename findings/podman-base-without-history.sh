#!/usr/bin/env bash
# podman 4.3.1 (Debian 12): a build on an image without `history` fails at its second instruction.
#
# The `history` of an image's configuration is optional. On such a base image with two layers, a
# build with one COPY works and one with two COPYs ends with "history lists 2 non-empty layers, but
# we have 4 layers on disk". The same build works without the cache of layers (`--layers=false`), and
# with a base image that has a history.
set -euo pipefail
dpkg-query --show podman 2>/dev/null | grep -q '4\.3\.1' ||
    apt-get install -qy --no-install-recommends 'podman=4.3.1+*' >/dev/null
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME=$work
mkdir "$work/context"
cd "$work/context"
echo 1 >one
echo 2 >two
python3 - "$work" <<'PY'
import hashlib
import io
import json
import pathlib
import sys
import tarfile

TYPE = "application/vnd.oci.image."


def layout(folder, history):
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def descriptor(kind, content):
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": TYPE + kind, "digest": f"sha256:{digest}", "size": len(content)}

    layers = []
    for name in ["a", "b"]:
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as archive:
            archive.addfile(tarfile.TarInfo(name))
        layers.append(descriptor("layer.v1.tar", layer.getvalue()))
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
    }
    if history:
        config["history"] = [{"created_by": layer["digest"]} for layer in layers]
    manifest = {
        "schemaVersion": 2,
        "mediaType": TYPE + "manifest.v1+json",
        "config": descriptor("config.v1+json", json.dumps(config).encode()),
        "layers": layers,
    }
    entry = descriptor("manifest.v1+json", json.dumps(manifest).encode())
    entry["annotations"] = {"org.opencontainers.image.ref.name": f"localhost/{folder.name}:v1"}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


layout(pathlib.Path(sys.argv[1], "with"), history=True)
layout(pathlib.Path(sys.argv[1], "without"), history=False)
PY
run() { podman --root "$work/root" --runroot "$work/run" --storage-driver vfs "$@" >"$work/log" 2>&1; }
for base in with without; do
    tar --create --file "$work/$base.tar" --directory "$work/$base" .
    run load --input "$work/$base.tar"
done
build() { # HISTORY FILES [OPTION]
    { echo "FROM localhost/$1:v1"; for file in $2; do echo "COPY $file /$file"; done; } >Containerfile
    local result=works
    run build --tag built ${3-} . || result="fails: $(grep -o 'history lists.*' "$work/log" || tail -1 "$work/log")"
    echo "podman 4.3.1, base $1 history, COPY of $2${3:+, $3}: $result"
    case $result in
    "$expected"*) ;;
    *) exit 1 ;;
    esac
}
expected=works
build with 'one two'
build without 'one'
build without 'one two' --layers=false
expected='fails: history lists 2 non-empty layers, but we have 4 layers'
build without 'one two'
echo 'as described'
