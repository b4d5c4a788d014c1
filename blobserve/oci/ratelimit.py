"""Rate limits: how long to leave a registry in peace that has few requests left for us.

Pure. Reads Docker Hub's ``ratelimit-remaining: 76;w=21600`` and the IETF draft that it is from
(draft-polli-ratelimit-headers).
"""

from __future__ import annotations

import re
from collections.abc import Callable

_AMOUNT = re.compile(r"([0-9]{1,9})(?:\s*;\s*w=([0-9]{1,9}))?")
_LOW_SHARE, _LOW_REMAINDER = 0.2, 20
_USUAL_WINDOW, _LONGEST_PAUSE = 600, 3600


def pause(field: Callable[[str], str | None]) -> float:
    """Seconds to wait before the next request, so that few make do; 0 while there are enough.

    :param field: the value of a header field by its name.
    """
    remaining, window = _amount(field("ratelimit-remaining"))
    limit, _ = _amount(field("ratelimit-limit"))
    reset, _ = _amount(field("ratelimit-reset"))
    low = _LOW_REMAINDER if limit is None else limit * _LOW_SHARE
    if remaining is None or remaining >= low:
        return 0.0
    return min((reset or window or _USUAL_WINDOW) / (remaining + 1), _LONGEST_PAUSE)


def _amount(value: str | None) -> tuple[int | None, int | None]:
    """An amount, and the seconds it is for."""
    found = _AMOUNT.fullmatch(value or "")
    if found is None:
        return None, None
    return int(found[1]), int(found[2]) if found[2] else None
