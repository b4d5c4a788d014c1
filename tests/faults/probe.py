"""A program that requests a file from several servers in turn and prints how long each took.

Load on the machine affects all servers alike, since they take turns. It is a separate process, so
that work in the test does not slow it down. A JSON list on standard input stops it: the pairs of
times between which the test had suspended the server. Requests in these times do not count. It
prints a JSON list with one object for each server: the numbers of right, wrong and failed answers,
and quantiles of the time of the right ones in seconds.
"""

from __future__ import annotations

import hashlib
import json
import select
import sys
from http.client import HTTPConnection, HTTPException
from time import perf_counter
from urllib.parse import urlsplit

PAUSE = 0.002


class Asked:
    """One URL, the connection to its server, and the results."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = parts.path
        self._connection = HTTPConnection(parts.netloc, timeout=60)
        self._taken: list[tuple[float, float]] = []
        self._wrong = self._failed = 0

    def ask(self, digest: str) -> None:
        """Request the URL once and compare the body with this SHA-256."""
        began = perf_counter()
        try:
            self._connection.request("GET", self._target)
            answer = self._connection.getresponse()
            body = answer.read()
        except (OSError, HTTPException):
            self._connection.close()
            self._failed += 1
            return
        if answer.status in (502, 503):
            self._failed += 1
            return
        self._taken.append((began, perf_counter()))
        self._wrong += "sha256:" + hashlib.sha256(body).hexdigest() != digest

    def result(self, stood_still: list[tuple[float, float]]) -> dict[str, float]:
        """Return the numbers and quantiles to print."""
        self._connection.close()
        times = sorted(
            ended - began
            for began, ended in self._taken
            if not any(since < ended and began < until for since, until in stood_still)
        )
        right = len(self._taken) - self._wrong
        counts = {"right": right, "wrong": self._wrong, "failed": self._failed}
        return {**counts, "p50": at(times, 0.5), "p99": at(times, 0.99), "worst": at(times, 1)}


def main(digest: str, *urls: str) -> None:
    """Send requests until standard input says to stop."""
    asked = [Asked(url) for url in urls]
    while not select.select([sys.stdin], [], [], PAUSE)[0]:
        for each in asked:
            each.ask(digest)
    stood_still = json.loads(sys.stdin.read())
    print(json.dumps([each.result(stood_still) for each in asked]))


def at(times: list[float], share: float) -> float:
    """Return the quantile `share` of the sorted `times`."""
    return times[int(share * (len(times) - 1))] if times else 0.0


if __name__ == "__main__":
    main(*sys.argv[1:])
