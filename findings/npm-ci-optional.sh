#!/usr/bin/env bash
# npm 11.19.1: `npm ci` refuses the lock file that `npm install` wrote if an optional package is gone.
#
# A package lists an optional dependency that the server does not have (any more). `npm install`
# passes over it, as documented, and exits 0; the lock file has no entry for it. `npm ci` with this
# very lock file says `Missing: extra@ from lock file`, although nothing has changed in between.
set -euo pipefail
work=$(mktemp -d)
mkdir "$work/dep" "$work/www" "$work/site"
cd "$work"
npm install --silent --no-audit --no-fund --prefix "$work" npm@11.19.1
npm() { node "$work/node_modules/npm/bin/npm-cli.js" --no-audit --no-fund --cache "$work/cache" "$@"; }
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
python3 -m http.server --bind 127.0.0.1 --directory "$work/www" "$port" >"$work/log" 2>&1 &
server=$!
trap 'kill "$server"; rm -rf "$work"' EXIT
packages=http://127.0.0.1:$port
cat >dep/package.json <<JSON
{"name": "dep", "version": "1.0.0", "optionalDependencies": {"extra": "$packages/extra-1.0.0.tgz"}}
JSON
cat >site/package.json <<JSON
{"name": "site", "version": "1.0.0", "dependencies": {"dep": "$packages/dep-1.0.0.tgz"}}
JSON
npm pack --silent --pack-destination www ./dep >/dev/null
for _ in $(seq 50); do
    curl --silent --fail --output /dev/null --max-time 5 --noproxy '*' "$packages/dep-1.0.0.tgz" && break
    sleep 0.1
done
cd site
npm install >../install.log 2>&1 && install=0 || install=$?
npm ci >../ci.log 2>&1 && ci=0 || ci=$?
echo "npm $(npm --version): install exits $install, ci exits $ci: $(grep -o 'Missing:.*' ../ci.log)"
[ "$install $ci" = '0 1' ]
grep -q 'Missing: extra@ from lock file' ../ci.log
echo 'as described'
