#!/usr/bin/env bash
# @netlify/headers-parser 10.1.1 (npm): the paths of `_headers` ignore case.
#
# A block for `/Docs/*` applies to `/docs/a`, too. The addresses themselves keep their case, so one
# block can set headers of two different files.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --no-audit --no-fund --prefix "$work" '@netlify/headers-parser@10.1.1'
printf '/Docs/*\n  X-Robots-Tag: noindex\n' >_headers
cat >show.mjs <<'JS'
import assert from 'node:assert/strict'

import { parseAllHeaders } from '@netlify/headers-parser'

const { headers } = await parseAllHeaders({
  headersFiles: ['_headers'],
  configHeaders: [],
  minimal: false,
})
assert.equal(headers.length, 1)
const paths = ['/Docs/a', '/docs/a', '/DOCS/A', '/other/a']
const matches = paths.filter((path) => headers[0].forRegExp.test(path))
console.log(`headers-parser 10.1.1: ${headers[0].for} applies to`, matches)
assert.deepEqual(matches, ['/Docs/a', '/docs/a', '/DOCS/A'])
JS
node show.mjs
echo 'as described'
