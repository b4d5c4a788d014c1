"""A soak: clients, pushes, reloads, outages and kills around one server, all at random.

Each response must be right or fail visibly, and each failure must have a reason. A right response
has all the bytes of the requested image. For a tag it is no older than an image that this process
has already served.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from threading import Event, Lock, Thread, get_native_id
from time import monotonic

import attrs

from blobserve.config import KIB, MIB
from tests.support.parts.images import Image, digest_of
from tests.support.parts.registry import DockerRegistry
from tests.support.parts.server import ROOT, Response, Server
from tests.support.spaces import on_disk

TAGS = 6
BOUND = 12 * MIB
CLIENTS = 6
HOT = "team/hot:v1"


@lru_cache(256)
def file_of(tag: int, version: int, name: str) -> bytes:
    """Return the content of a file in one version of a tag's image."""
    chance = random.Random(f"{tag} {version} {name}")
    if name == "data.bin":
        body = chance.randbytes((2 * MIB) if tag % 3 == 0 else 300 * KIB)
    else:
        body = b"".join(b"let a%d = 1;\n" % chance.randrange(1000) for _ in range(2000))
    return b"%d %d\n" % (tag, version) + body


NAMES = ("index.html", "app.js", "data.bin")


def image_of(tag: int, version: int) -> Image:
    """Return one version of a tag's image."""
    return Image.of({name: file_of(tag, version, name) for name in NAMES})


class Phase:
    """Intervals in which a failure is allowed."""

    def __init__(self) -> None:
        self._changes = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Allow failures inside the context."""
        self._changes += 1
        try:
            yield
        finally:
            self._changes += 1

    def watch(self) -> Callable[[], bool]:
        """Return a function that tells whether failures were allowed at any time since now."""
        before = self._changes
        return lambda: before % 2 == 1 or self._changes != before


@attrs.frozen
class Asked:
    """A request of a client, with the facts for judging the answer."""

    tag: int
    name: str
    version: int | None
    """The version that was requested by digest."""
    headers: dict[str, str]
    since: int
    """The oldest version that is acceptable."""
    first: int = 0
    last: int | None = None
    """The last byte of the requested range."""


class Soak:
    """The soak: `wrong` lists violations, and `outcomes` counts the results by name."""

    def __init__(self, server: Server, registry: DockerRegistry, seed: int) -> None:
        self.wrong: list[str] = []
        self.outcomes: Counter[str] = Counter()
        self.peak = 0
        """The largest number of bytes seen on disk."""
        self.pause = 0.0
        """The mean pause of a client after an answer, in seconds."""
        self.stood_still: list[tuple[float, float]] = []
        """The intervals in which the server was suspended for a look at the disk."""
        self._server = server
        self._registry = registry
        self._chance = random.Random(seed)
        self._digests: list[list[str]] = [[] for _ in range(TAGS)]
        self._seen = [0] * TAGS
        """The latest version of each tag that this process has served."""
        self._down, self._outage = Phase(), Phase()
        self._process = Lock()
        """Held while the process is suspended or restarted."""
        self._seeing = Lock()
        self._over = Event()
        self._elsewhere = ThreadPoolExecutor(1, initializer=_yield)
        registry.stop()
        self._elsewhere.submit(registry.start).result()
        for tag in range(TAGS):
            self._move(tag)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Let clients send requests, and watch the disk, inside the context."""
        work = [lambda n=n: self._ask(random.Random(n)) for n in range(CLIENTS)]
        threads = [Thread(target=self._guarded, args=[each]) for each in (*work, self._look)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join(90)
        assert not any(thread.is_alive() for thread in threads)

    def run(self, seconds: float) -> None:
        """Cause random events for this time."""
        end, chance = monotonic() + seconds, self._chance
        due = {self._kill: 3.0, self._stop_registry: 5.0}
        while monotonic() < end and not self.wrong:
            event = chance.choices(
                [self._move_any, self._reload, self._kill, self._stop_registry], [8, 3, 2, 1]
            )[0]
            now = monotonic() - end + seconds
            if due.get(event, 0.0) <= now:
                self.outcomes[event.__name__.strip("_")] += 1
                event()
                due[event] = due.get(event, 0.0) and now + chance.uniform(2, 6)
            self._over.wait(chance.uniform(0, 0.4))

    @property
    def answers(self) -> int:
        """Return the number of responses that were judged."""
        return sum(count for name, count in self.outcomes.items() if name[0].isdigit())

    def stragglers(self) -> list[int]:
        """Return the tags that are not served with their newest image."""
        found = []
        for tag, digests in enumerate(self._digests):
            answer = self._server.fetch(f"/{self._registry.host}/team/t{tag}:v1/app.js")
            if answer.body != file_of(tag, len(digests), "app.js"):
                found.append(tag)
        return found

    # --- Events -----------------------------------------------------------------------------------

    def _move_any(self) -> None:
        self._move(self._chance.randrange(TAGS))

    def _move(self, tag: int) -> None:
        # The digest is recorded before the push: the image may be served before the push returns.
        image = self._elsewhere.submit(image_of, tag, len(self._digests[tag]) + 1).result()
        self._digests[tag].append(image.digest)
        self._elsewhere.submit(self._registry.put, image, f"team/t{tag}:v1").result()

    def _reload(self) -> None:
        self._server.configure(*configuration(self._registry, self._chance.randrange(1000)))
        with self._process:
            self._server.reload()

    def _kill(self) -> None:
        with self._down(), self._process:
            self._server.kill()
            self._server.start()
            # A killed process may lose tags that it had not yet written down.
            with self._seeing:
                self._seen = [0] * TAGS

    def _stop_registry(self) -> None:
        with self._outage():
            self._registry.stop()
            self._over.wait(self._chance.uniform(0.2, 1.5))
            self._elsewhere.submit(self._registry.start).result()
            # New requests may still join a pull that has failed.
            self._over.wait(1.0)

    # --- The disk ---------------------------------------------------------------------------------

    def _look(self) -> None:
        while not self._over.wait(1.0):
            with self._process:
                since = monotonic()
                with stopped(self._server.pid):
                    self.peak = max(self.peak, on_disk(self._server.space))
                self.stood_still.append((since, monotonic()))
            if self.peak > BOUND:
                self.wrong.append(f"{self.peak} bytes on disk")

    # --- The clients ------------------------------------------------------------------------------

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.wrong.append(repr(error))
            raise

    def _ask(self, chance: random.Random) -> None:
        _yield()
        known: dict[tuple[int, str], tuple[str, int]] = {}
        while not self._over.is_set() and not self.wrong:
            if self.pause:
                self._over.wait(chance.expovariate(1 / self.pause))
            was_down, was_out = self._down.watch(), self._outage.watch()
            asked = self._choose(chance, known)
            try:
                answer = self._server.fetch(self._target(asked), headers=asked.headers)
            except (OSError, HTTPException) as error:
                kind = "cut off" if was_down() else "cut off for no reason"
                self._note(kind, kind == "cut off", f"{asked}: {error!r}")
                self._over.wait(0.05)
                continue
            if answer.status in (502, 503):
                excused = answer.status == 503 or was_out()
                self._note(f"{answer.status}", excused, f"{asked}: {answer.status} {answer.body!r}")
                continue
            with self._seeing:
                # A process that has just started need not know the tags of the one before.
                asked = attrs.evolve(asked, since=0) if was_down() else asked
                version = self._judge(asked, answer, known)
                if version and not was_down():
                    self._seen[asked.tag] = max(self._seen[asked.tag], version)

    def _choose(
        self, chance: random.Random, known: dict[tuple[int, str], tuple[str, int]]
    ) -> Asked:
        tag, name = chance.randrange(TAGS), chance.choice(NAMES)
        since, headers = self._seen[tag], {}
        if chance.random() < 0.3:
            version = chance.randrange(max(0, len(self._digests[tag]) - 4), len(self._digests[tag]))
            # The newest image may not be in the registry yet.
            version = max(1, version)
            first = chance.randrange(20_000)
            last = first + chance.randrange(20_000)
            size = len(file_of(tag, version, name))
            if last < size and chance.random() < 0.5:
                return Asked(
                    tag, name, version, {"Range": f"bytes={first}-{last}"}, since, first, last
                )
            return Asked(tag, name, version, headers, since)
        if chance.random() < 0.3:
            headers["Accept-Encoding"] = "gzip"
        if (tag, name) in known and chance.random() < 0.3:
            headers["If-None-Match"] = known[tag, name][0]
        return Asked(tag, name, None, headers, since)

    def _target(self, asked: Asked) -> str:
        at = ":v1"
        if asked.version is not None:
            at = "@" + self._digests[asked.tag][asked.version - 1]
        return f"/{self._registry.host}/team/t{asked.tag}{at}/{asked.name}"

    def _judge(
        self, asked: Asked, answer: Response, known: dict[tuple[int, str], tuple[str, int]]
    ) -> int | None:
        """Check an answer; return the version of the tag that it shows."""
        key = asked.tag, asked.name
        if answer.status == 304 and "If-None-Match" in asked.headers:
            version = known[key][1]
            self._note("304", asked.since <= version, f"{asked}: 304 of {version}")
            return version
        body = answer.body
        if answer.headers["Content-Encoding"] == "gzip" and "Accept-Encoding" in asked.headers:
            body = gzip.decompress(body)
        if asked.version is not None:
            wanted = file_of(asked.tag, asked.version, asked.name)
            status, part = 200, wanted
            if asked.last is not None:
                status, part = 206, wanted[asked.first : asked.last + 1]
            is_right = (answer.status, body == part) == (status, True)
            self._note(f"{answer.status} by digest", is_right, f"{asked}: {answer}")
            return None
        numbers = body.partition(b"\n")[0].split()
        version = int(numbers[1]) if answer.status == 200 and len(numbers) == 2 else 0
        is_right = asked.since <= version <= len(self._digests[asked.tag])
        is_right = is_right and body == file_of(asked.tag, version, asked.name)
        self._note("200", is_right, f"{asked}: {answer} of version {version}")
        known[key] = answer.headers["ETag"], version
        return version

    def _note(self, outcome: str, is_right: bool, what: str) -> None:
        self.outcomes[outcome] += 1
        if not is_right:
            self.wrong.append(what)


def _yield() -> None:
    """Give this thread, and processes it starts, the lowest priority.

    This simulates clients and a registry on other machines, which would not slow the server down.
    """
    os.setpriority(os.PRIO_PROCESS, get_native_id(), 19)


def configuration(
    registry: DockerRegistry, number: int
) -> tuple[dict[str, object], dict[str, object]]:
    """Return one of many configurations that serve the same content."""
    rules = {"tagMaxAge": "1s", "headers": {"X-Number": str(number)}}
    own: dict[str, object] = {
        "repos": {f"{registry.host}/team/*": rules},
        "registries": {registry.host: {"insecure": True}},
        "blobSpace": {"maxSizeBytes": BOUND, "gcInterval": "1s"},
        "limits": {"clientIdleTimeout": "30s" if number % 2 else "40s"},
    }
    return own, {"accessLog": {"format": "off"}}


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Suspend a process inside the context, at any point of its work."""
    os.kill(pid, signal.SIGSTOP)
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError):
                while (task / "stat").read_text().rpartition(")")[2].split()[0] not in "TXZ":
                    os.sched_yield()
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


# --- The speed of hot files -----------------------------------------------------------------------


class Probe:
    """A client process that requests one file from each URL in turn and measures the time."""

    def __init__(self, content: bytes, *urls: str) -> None:
        """Start the client; `content` is the expected body at each of the `urls`."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.probe", digest_of(content), *urls],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def stop(self, stood_still: Sequence[tuple[float, float]] = ()) -> list[dict[str, float]]:
        """Stop the client; return for each URL the counts and the quantiles of the time.

        The keys are those of `Asked.result`. Requests during the intervals `stood_still`, in which
        the server was suspended, are left out of the quantiles.
        """
        said, _ = self._process.communicate(json.dumps(stood_still).encode(), 60)
        found: list[dict[str, float]] = json.loads(said)
        return found
