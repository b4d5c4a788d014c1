#!/usr/bin/env bash
# @netlify/headers-parser 10.1.1 (npm): a block for `/docs/*` applies to `/docsa`.
#
# The slash before a final `*` is optional, as `/docs` shall match. The `*` follows at once, so the
# block applies to every address that begins with `/docs`, such as `/docs-old/page`.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --no-audit --no-fund --prefix "$work" '@netlify/headers-parser@10.1.1'
printf '/docs/*\n  X-Robots-Tag: noindex\n' >_headers
cat >show.mjs <<'JS'
import assert from 'node:assert/strict'

import { parseAllHeaders } from '@netlify/headers-parser'

const { headers } = await parseAllHeaders({
  headersFiles: ['_headers'],
  configHeaders: [],
  minimal: false,
})
assert.equal(headers.length, 1)
const paths = ['/docs/a', '/docs', '/docsa', '/docs-old/page', '/doc']
const matches = paths.filter((path) => headers[0].forRegExp.test(path))
console.log(`headers-parser 10.1.1: ${headers[0].for} applies to`, matches)
assert.deepEqual(matches, ['/docs/a', '/docs', '/docsa', '/docs-old/page'])
JS
node show.mjs
echo 'as described'
