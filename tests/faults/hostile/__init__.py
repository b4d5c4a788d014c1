"""Hostile layers, written byte by byte, each with the expected result.

Each module holds one section of the list of cases; a case is named after its row. Each case shows a
rule or a limit of blobserve: links that point out of the image, whiteouts, sizes that do not fit,
small bombs. Links that point at the host point at a canary, a file of the tests. Except for the
path of the canary, the layers have the same bytes in each run.
"""

from __future__ import annotations

from tests.faults.hostile.case import Case
from tests.faults.hostile.compressed import COMPRESSED
from tests.faults.hostile.streams import STREAMS
from tests.faults.hostile.trees import TREES
from tests.faults.hostile.whiteouts import WHITEOUTS

CORPUS: tuple[Case, ...] = (*TREES, *WHITEOUTS, *STREAMS, *COMPRESSED)
"""All hostile layers."""
