"""Layers that nobody should have made, written byte for byte, each with what must come of it.

One room for each section of our list of cases; a case is named after its row. Each shows a rule or
a bound of ours: links that point out of the image, whiteouts, sizes that do not fit, small bombs.
Links that point at the host point at a canary, a file of the tests. Except for its path the layers
have the same bytes each time.
"""

from __future__ import annotations

from tests.hostile.case import Case
from tests.hostile.compressed import COMPRESSED
from tests.hostile.streams import STREAMS
from tests.hostile.trees import TREES
from tests.hostile.whiteouts import WHITEOUTS

CORPUS: tuple[Case, ...] = (*TREES, *WHITEOUTS, *STREAMS, *COMPRESSED)
"""All of them."""
