"""Layers that nobody should have made, written byte for byte, each with what must come of it.

One room for each section of our list of cases; a case is named after its row. Each shows a rule or
a bound of ours: links that point out of the image, whiteouts, sizes that do not fit, small bombs.
Links that point at the host point at a canary, a file of the tests. Except for its path the layers
have the same bytes each time.
"""

from __future__ import annotations

from tests.faults.hostile.case import Case
from tests.faults.hostile.compressed import COMPRESSED
from tests.faults.hostile.streams import STREAMS
from tests.faults.hostile.trees import TREES
from tests.faults.hostile.whiteouts import WHITEOUTS

CORPUS: tuple[Case, ...] = (*TREES, *WHITEOUTS, *STREAMS, *COMPRESSED)
"""All of them."""
