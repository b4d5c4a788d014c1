#!/usr/bin/env bash
# buildah 1.28.2 (Debian 12): `push --disable-compression` pushes layers of type tar+gzip.
#
# The option is described as no compression of the layers that are pushed. It holds for a `dir:`
# destination; a registry gets each layer compressed, as without the option.
set -euo pipefail
for package in buildah:1.28.2 docker-registry:2.8.2; do
    dpkg-query --show "${package%:*}" 2>/dev/null | grep -qF "${package#*:}" ||
        apt-get install -qy --no-install-recommends "${package/:/=}+*" >/dev/null
done
work=$(mktemp -d)
export HOME=$work
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat >"$work/config.yml" <<YAML
version: 0.1
storage: {filesystem: {rootdirectory: $work/data}}
http: {addr: "127.0.0.1:$port"}
YAML
docker-registry serve "$work/config.yml" >"$work/log" 2>&1 &
registry=$!
trap 'kill "$registry"; rm -rf "$work"' EXIT
for _ in $(seq 50); do
    curl --silent --fail --output /dev/null --max-time 5 "http://127.0.0.1:$port/v2/" && break
    sleep 0.1
done
mkdir "$work/context"
echo content >"$work/context/file"
printf 'FROM scratch\nCOPY file /\n' >"$work/context/Containerfile"
buildah() { command buildah --root "$work/root" --runroot "$work/run" --storage-driver vfs "$@"; }
type_of() { python3 -c 'import json, sys; print(*(layer["mediaType"] for layer in json.load(sys.stdin)["layers"]))'; }
buildah build --tag built "$work/context" >/dev/null 2>&1
buildah push --quiet --disable-compression built "dir:$work/copy"
buildah push --quiet --disable-compression --tls-verify=false built "docker://127.0.0.1:$port/team/site:v1"
directory=$(type_of <"$work/copy/manifest.json")
remote=$(
    curl --silent --fail --max-time 10 --header 'Accept: application/vnd.oci.image.manifest.v1+json' \
        "http://127.0.0.1:$port/v2/team/site/manifests/v1" | type_of
)
echo "buildah 1.28.2, --disable-compression, directory: $directory"
echo "buildah 1.28.2, --disable-compression, registry:  $remote"
[ "$directory" = application/vnd.oci.image.layer.v1.tar ]
[ "$remote" = application/vnd.oci.image.layer.v1.tar+gzip ]
echo 'as described'
