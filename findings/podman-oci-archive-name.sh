#!/usr/bin/env bash
# podman 4.3.1 (Debian 12): `save` and `push` write different reference names into an OCI archive.
#
# The annotation `org.opencontainers.image.ref.name` is the whole name `registry.example/team/site:v1`
# after `podman save --format oci-archive`, and the bare tag `v1` after
# `podman push ... oci-archive:FILE:v1`. A reader that expects a tag does not find the saved image.
set -euo pipefail
dpkg-query --show podman 2>/dev/null | grep -qF 4.3.1 ||
    apt-get install -qy --no-install-recommends 'podman=4.3.1+*' >/dev/null
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME=$work
podman() { command podman --root "$work/root" --runroot "$work/run" --storage-driver vfs "$@"; }
mkdir "$work/context"
echo content >"$work/context/file"
printf 'FROM scratch\nCOPY file /\n' >"$work/context/Containerfile"
image=registry.example/team/site:v1
podman build --quiet --tag "$image" "$work/context" >/dev/null
podman save --quiet --format oci-archive --output "$work/saved.tar" "$image"
podman push --quiet "$image" "oci-archive:$work/pushed.tar:v1"
name_in() {
    tar --extract --to-stdout --file "$1" index.json | python3 -c '
import json, sys
[manifest] = json.load(sys.stdin)["manifests"]
print(manifest["annotations"]["org.opencontainers.image.ref.name"])'
}
saved=$(name_in "$work/saved.tar")
pushed=$(name_in "$work/pushed.tar")
echo "podman 4.3.1: save writes $saved, push writes $pushed"
[ "$saved" = "$image" ]
[ "$pushed" = v1 ]
echo 'as described'
