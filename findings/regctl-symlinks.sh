#!/usr/bin/env bash
# regctl 0.11.7: `image mod --layer-add dir=DIR` writes each symbolic link with itself as its target.
#
# A link `b -> a` in the directory is `b -> b` in the layer. A program that extracts or serves the
# image gets a loop in place of the file.
set -euo pipefail
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
export GOPATH=$work/go GOBIN=$work/bin GOFLAGS=-modcacherw
go install github.com/regclient/regclient/cmd/regctl@v0.11.7
mkdir "$work/site"
echo content >"$work/site/a"
ln -s a "$work/site/b"
cd "$work"
"$work/bin/regctl" image create ocidir://layout:empty >/dev/null
"$work/bin/regctl" image mod ocidir://layout:empty --create ocidir://layout:v1 --layer-add "dir=$work/site" >/dev/null
target=$(
    for blob in layout/blobs/sha256/*; do tar tvf "$blob" 2>/dev/null || true; done |
        sed -n 's/.* \(\.\/\)\{0,1\}b -> //p'
)
echo "regctl 0.11.7: b leads to '$target'; in the directory it leads to '$(readlink site/b)'"
[ "$target" = b ]
echo 'as described'
