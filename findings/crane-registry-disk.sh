#!/usr/bin/env bash
# crane 0.22.1: `registry serve --disk DIR` answers 500 to every upload if DIR does not exist.
#
# The command starts, listens and answers /v2/ as usual. Only the first push shows the problem.
set -euo pipefail
work=$(mktemp -d)
export GOPATH=$work/go GOBIN=$work/bin GOFLAGS=-modcacherw
go install github.com/google/go-containerregistry/cmd/crane@v0.22.1
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$work/bin/crane" registry serve --address "127.0.0.1:$port" --disk "$work/missing" >"$work/log" 2>&1 &
registry=$!
trap 'kill "$registry"; chmod -R u+w "$work"; rm -rf "$work"' EXIT
for _ in $(seq 50); do
    curl --silent --fail --output /dev/null --max-time 5 "http://127.0.0.1:$port/v2/" && break
    sleep 0.1
done
digest=sha256:$(printf content | sha256sum | cut -d' ' -f1)
upload() {
    curl --silent --output /dev/null --write-out '%{http_code}' --max-time 10 --request POST \
        --data-binary content "http://127.0.0.1:$port/v2/team/site/blobs/uploads/?digest=$digest"
}
without=$(upload)
mkdir "$work/missing"
with=$(upload)
echo "crane 0.22.1: an upload gets $without without the directory, $with with it"
[ "$without $with" = '500 201' ]
echo 'as described'
