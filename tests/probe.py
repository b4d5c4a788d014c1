"""Asks for one file again and again until it is told to stop, and says how long it took.

A program of its own, so that nothing which goes on in a test stands in its way. It is told by a
JSON list, pairs of times between which the server was made to stand still: what was asked for then
says nothing of the server. Prints one JSON object: answers that were right, that were wrong, that
failed visibly, and quantiles of the seconds of all but these.
"""

from __future__ import annotations

import hashlib
import json
import select
import sys
from http.client import HTTPConnection, HTTPException
from time import perf_counter

PAUSE = 0.002


def main(port: int, target: str, digest: str) -> None:
    """Ask until told to stop."""
    taken: list[tuple[float, float]] = []
    wrong = failed = 0
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    while not select.select([sys.stdin], [], [], PAUSE)[0]:
        began = perf_counter()
        try:
            connection.request("GET", target)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, HTTPException):
            connection.close()
            failed += 1
            continue
        if answer.status in (502, 503):
            failed += 1
            continue
        taken.append((began, perf_counter()))
        wrong += "sha256:" + hashlib.sha256(body).hexdigest() != digest
    connection.close()
    stood_still = json.loads(sys.stdin.read())
    times = sorted(
        ended - began
        for began, ended in taken
        if not any(since < ended and began < until for since, until in stood_still)
    )
    counts = {"right": len(taken) - wrong, "wrong": wrong, "failed": failed}
    quantiles = {"p50": at(times, 0.5), "p99": at(times, 0.99), "worst": at(times, 1)}
    print(json.dumps({**counts, **quantiles}))


def at(times: list[float], share: float) -> float:
    """The time that so large a share of the sorted `times` does not go beyond."""
    return times[int(share * (len(times) - 1))] if times else 0.0


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
