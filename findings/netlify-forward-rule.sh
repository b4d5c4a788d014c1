#!/usr/bin/env bash
# @netlify/redirect-parser 16.1.1 (npm): a rule of `_redirects` without a target can be valid.
#
# `/files/* 200` gets the target `/files/:splat`, a rewrite of each address to itself. This needs
# `/*` at the end and a status of 2xx: `/moved/* 301` and `/single 200` are errors. A parser that
# refuses every line without a target loses a rule.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --no-audit --no-fund --prefix "$work" '@netlify/redirect-parser@16.1.1'
printf '%s\n' '/files/* 200' '/moved/* 301' '/single 200' '/* /index.html 200' >_redirects
cat >show.mjs <<'JS'
import assert from 'node:assert/strict'

import { parseAllRedirects } from '@netlify/redirect-parser'

const { redirects, errors } = await parseAllRedirects({
  redirectsFiles: ['_redirects'],
  configRedirects: [],
  minimal: true,
})
const rules = redirects.map(({ from, to, status }) => `${from} ${to} ${status}`)
console.log('redirect-parser 16.1.1:', rules, `and ${errors.length} errors`)
assert.deepEqual(rules, ['/files/* /files/:splat 200', '/* /index.html 200'])
assert.equal(errors.length, 2)
JS
node show.mjs
echo 'as described'
