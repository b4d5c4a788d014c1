#!/usr/bin/env bash
# skopeo 1.9.3 (Debian 12): `CONTAINERS_REGISTRIES_CONF` has no effect.
#
# podman 4.3.1 reads the registries.conf that this variable names. skopeo uses the same library and
# the same file format, but only the file in `~/.config/containers` or `/etc/containers`. A name
# that the file maps to another place is then looked up as it stands.
set -euo pipefail
for package in podman:4.3.1 skopeo:1.9.3 docker-registry:2.8.2; do
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
podman() { command podman --root "$work/root" --runroot "$work/run" --storage-driver vfs "$@"; }
podman build --quiet --tag built "$work/context" >/dev/null
podman push --quiet --tls-verify=false built "127.0.0.1:$port/real/site:v1"
cat >"$work/registries.conf" <<TOML
[[registry]]
prefix = "127.0.0.1:$port/alias"
location = "127.0.0.1:$port/real"
insecure = true
TOML
name=127.0.0.1:$port/alias/site:v1
try() { # COMMAND...
    "$@" >/dev/null 2>"$work/error" && echo found || grep -o unknown "$work/error" | head -1
}
both() {
    echo "podman $(try podman pull --tls-verify=false "$name")," \
        "skopeo $(try skopeo inspect --tls-verify=false --raw "docker://$name")"
}
unset CONTAINERS_REGISTRIES_CONF
none=$(both)
variable=$(export CONTAINERS_REGISTRIES_CONF=$work/registries.conf; both)
mkdir -p "$work/.config/containers"
mv "$work/registries.conf" "$work/.config/containers/"
home=$(both)
echo "no file:               $none"
echo "file in the variable:  $variable"
echo "file below HOME:       $home"
[ "$none" = 'podman unknown, skopeo unknown' ]
[ "$variable" = 'podman found, skopeo unknown' ]
[ "$home" = 'podman found, skopeo found' ]
echo 'as described'
