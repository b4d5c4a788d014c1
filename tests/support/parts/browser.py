"""A headless Chromium, driven over pipes by its DevTools protocol."""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.support.parts.programs import end, ordinary_user, program
from tests.support.slack import SLACK

_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
]

Event = dict[str, Any]

SHOWS_WITHIN = 15.0 * SLACK
"""The time in seconds in which a page must come to the state that a test waits for."""

_WAITING = """(async () => {
  const condition = () => { try { return %s; } catch { return false; } };
  for (const end = Date.now() + %d; !condition(); )
    if (Date.now() > end) return false;
    else await new Promise((resolve) => setTimeout(resolve, 20));
  return true;
})()"""


@attrs.define
class Page:
    """The answers and errors of one page."""

    answers: dict[str, int] = attrs.field(factory=dict)
    """Statuses by URL."""
    fields: dict[str, dict[str, str]] = attrs.field(factory=dict)
    """Header fields by URL, with names in lower case."""
    problems: list[str] = attrs.field(factory=list)
    """Failed requests, exceptions, and errors in the page's log."""
    loaded: bool = False

    def note(self, event: Event) -> None:
        """Record one event of the protocol."""
        name, what = event["method"], event["params"]
        if name == "Network.responseReceived":
            answer = what["response"]
            self.answers[answer["url"]] = answer["status"]
            self.fields[answer["url"]] = {
                name.lower(): value for name, value in answer["headers"].items()
            }
            if answer["status"] >= 400:
                self.problems.append(f"{answer['status']} {answer['url']}")
        elif name == "Network.loadingFailed":
            self.problems.append(f"not loaded: {what['type']}: {what['errorText']}")
        elif name == "Runtime.exceptionThrown":
            self.problems.append(f"exception: {what['exceptionDetails']}")
        elif name == "Page.loadEventFired":
            self.loaded = True
        elif name == "Log.entryAdded" and what["entry"]["level"] == "error":
            self.problems.append(f"log: {what['entry']['text']}")


class Browser:
    """A running Chromium with one page; calls block, for a minute at most."""

    def __init__(self, directory: Path, flags: Sequence[str] = ()) -> None:
        """Prepare a browser with its files in `directory`; `flags` are added to the usual ones."""
        self.page = Page()
        self._directory = directory
        self._flags = [*_FLAGS, *flags]
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = 0
        self._unread = b""

    def start(self) -> None:
        """Start it with an empty profile and an empty page."""
        read, self._send = os.pipe()
        self._receive, write = os.pipe()
        # The protocol uses descriptors 3 and 4, which may be open in this process.
        shell = f'exec "$@" 3<&{read} 4>&{write} {read}<&- {write}>&-'
        browser = [program("chromium"), *self._flags, f"--user-data-dir={self._directory}/profile"]
        with (self._directory / "output").open("wb") as output:
            self._process = subprocess.Popen(
                ["bash", "-c", shell, "bash", *browser],
                env={**os.environ, "HOME": str(self._directory), "TMPDIR": str(self._directory)},
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[read, write],
                **ordinary_user(),
            )
        os.close(read)
        os.close(write)
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self._ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Network", "Runtime", "Log", "Page"):
            self._ask(f"{domain}.enable")

    def stop(self) -> None:
        """Stop it and its child processes."""
        if self._process is not None:
            if self._process.poll() is None:
                self._ask("Browser.close")
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(10)
            end(self._process)
            os.close(self._send)
            os.close(self._receive)

    def open(self, url: str) -> None:
        """Open `url` and wait until the page and its resources have loaded."""
        self._load("Page.navigate", url=url)

    def reload(self) -> None:
        """Load the current URL again, and wait as `open` does."""
        self._load("Page.reload")

    def shows(self, condition: str) -> bool:
        """Return whether a JavaScript expression in the page becomes true within a bounded time."""
        return bool(self.run(_WAITING % (condition, 1000 * SHOWS_WITHIN)))

    def run(self, script: str) -> Any:
        """Evaluate a JavaScript expression in the page, and wait for its promise."""
        answer = self._ask(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            pytest.fail(f"{script}: {answer['exceptionDetails']}", pytrace=False)
        return answer["result"].get("value")

    def _load(self, method: str, **parameters: object) -> None:
        self.page = Page()
        self._ask(method, **parameters)
        while not self.page.loaded:
            self._next()

    def _ask(self, method: str, **parameters: object) -> Event:
        self._asked += 1
        call = {"id": self._asked, "method": method, "params": parameters}
        if not method.startswith(("Target.", "Browser.")):
            call["sessionId"] = self._session
        os.write(self._send, json.dumps(call).encode() + b"\0")
        while (answer := self._next()).get("id") != self._asked:
            pass
        return answer["result"]

    def _next(self) -> Event:
        """Return the next message of the browser; record an event in the page."""
        while b"\0" not in self._unread:
            if not select.select([self._receive], [], [], 60)[0]:
                pytest.fail("Chromium fell silent", pytrace=False)
            received = os.read(self._receive, 1 << 20)
            if not received:
                pytest.fail((self._directory / "output").read_text(), pytrace=False)
            self._unread += received
        message, _, self._unread = self._unread.partition(b"\0")
        event: Event = json.loads(message)
        if "method" in event:
            self.page.note(event)
        return event
