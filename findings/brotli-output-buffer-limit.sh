#!/usr/bin/env bash
# brotli 1.2.1 (PyPI): `Decompressor.process(data, output_buffer_limit=N)` returns more than N bytes.
#
# The parameter reads like a maximum. It is a size after which the output buffer stops growing, and
# the buffer starts at tens of kilobytes: with a limit of 1,000, one call returned 32,752 bytes. A
# caller that must bound its output has to count the bytes itself.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'brotli==1.2.1'
"$work/venv/bin/python" - <<'PY'
import brotli

LIMIT = 1000
text = bytes(range(256)) * 4000
decompressor = brotli.Decompressor()
first = decompressor.process(brotli.compress(text), output_buffer_limit=LIMIT)
print(f"brotli {brotli.version}: limit {LIMIT}, the first call returned {len(first)} bytes")
assert len(first) > LIMIT, "the limit is a maximum now"
whole = first
for _ in range(10_000):
    if decompressor.is_finished():
        break
    whole += decompressor.process(b"", output_buffer_limit=LIMIT)
assert whole == text
PY
echo 'as described'
