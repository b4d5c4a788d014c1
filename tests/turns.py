"""The watch on the reactor's turns, switched on for a server."""

from __future__ import annotations

from typing import Any

from blobserve.turns import VARIABLE


def slow_turns(ms: int) -> dict[str, Any]:
    """Arguments for a `Server` that logs the turns of its reactor that take longer."""
    return {"environment": {VARIABLE: f"{ms}ms"}}
