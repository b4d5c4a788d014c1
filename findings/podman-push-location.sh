#!/usr/bin/env bash
# podman 4.3.1 (Debian 12): a `location` of registries.conf holds for pulls, not for pushes.
#
# An entry maps the prefix `HOST/alias` to the location `HOST/real`. `podman pull HOST/alias/site`
# reads HOST/real/site; `podman push HOST/alias/site` writes to HOST/alias/site. The entry's
# `insecure = true` holds for both. A push and a pull of the same name meet two repositories.
set -euo pipefail
for package in podman:4.3.1 docker-registry:2.8.2; do
    dpkg-query --show "${package%:*}" 2>/dev/null | grep -qF "${package#*:}" ||
        apt-get install -qy --no-install-recommends "${package/:/=}+*" >/dev/null
done
work=$(mktemp -d)
export HOME=$work
unset CONTAINERS_REGISTRIES_CONF
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
mkdir -p "$work/.config/containers"
cat >"$work/.config/containers/registries.conf" <<TOML
[[registry]]
prefix = "127.0.0.1:$port/alias"
location = "127.0.0.1:$port/real"
insecure = true
TOML
podman build --quiet --tag built "$work/context" >/dev/null
podman push --quiet built "127.0.0.1:$port/alias/site:v1"
pushed=$(curl --silent --max-time 10 "http://127.0.0.1:$port/v2/_catalog")
pull() { podman pull --quiet "127.0.0.1:$port/alias/site:v1" >/dev/null 2>&1 && echo works || echo fails; }
before=$(pull)
podman push --quiet --tls-verify=false built "127.0.0.1:$port/real/site:v1"
after=$(pull)
echo "podman 4.3.1: after a push of alias/site the registry has $pushed; a pull of alias/site $before"
echo "podman 4.3.1: after a push of real/site a pull of alias/site $after"
[ "$pushed" = '{"repositories":["alias/site"]}' ]
[ "$before $after" = 'fails works' ]
echo 'as described'
