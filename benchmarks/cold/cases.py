"""The cases of a cold start: one generator of figures each."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from benchmarks.cold import layers
from benchmarks.cold.bench import MB, REPOSITORY, Bench
from benchmarks.cold.client import Client, ask
from benchmarks.cold.layers import Blob
from benchmarks.cold.link import RATE, ROUND_TRIP
from benchmarks.cold.table import Figure, absent
from benchmarks.cold_pull import unpacked
from benchmarks.warm.process import cpu_seconds
from blobserve.config import Limits
from blobserve.errors import PathNotFound
from blobserve.names.digest import Digest
from blobserve.store.blobs.filesystem import ImageFilesystem
from tests.support.parts.server import Server
from tests.support.turn_watch import slow_turns

Lines = Iterator["Figure | str"]
_ONE_THREAD = Path(__file__).parents[1] / "peers" / "one_thread.py"
_LOOKUPS = 20_000


def link(bench: Bench) -> Lines:
    """Measure the slow link itself."""
    blob = _large(bench)
    bench.origin.publish(REPOSITORY, "large", [blob])
    target = f"/v2/{REPOSITORY}/blobs/{blob.digest}"
    size = min(blob.size, 25 * MB)
    with Client(bench.link.port) as client:
        client.get("/v2/")
        trip = median(client.get("/v2/").whole for _ in range(9))
        part = client.get(target, Range=f"bytes=0-{size - 1}")
    yield Figure("the slow link: round trip", trip * 1e3, unit="ms", note="20 wanted")
    # Not from the first byte: a busy machine may deliver it late, and the last one in time.
    rate = len(part.body) / (part.whole - ROUND_TRIP) * 8 / 1e6
    yield Figure("the slow link: rate", rate, unit="Mbit/s", note="100 wanted")


def local(bench: Bench) -> Lines:
    """Measure a layer of 69 MB over the local link to READY, in turn with two peers."""
    blob = bench.layer("web", layers.web)
    bench.origin.publish(REPOSITORY, "web", [blob])
    rounds = []
    for _ in range(bench.sizes.rounds):
        tar, _ = unpacked(blob.path, bench.home / "unpacked")
        one = float(_run([sys.executable, _ONE_THREAD, blob.path, bench.home / "one"]))
        (bench.home / "one").unlink()
        with bench.server() as server:
            before = cpu_seconds(server.pid)
            ready = _pull(bench, server, "web", "ide/0/part-0.js")
            rounds.append((tar, one, ready, cpu_seconds(server.pid) - before))
    tars, ones, readies, cpu = zip(*rounds, strict=True)
    yield Figure("69 MB to READY: gzip -dc | tar x", median(tars), unit="s")
    yield Figure("69 MB to READY: one thread", median(ones), unit="s")
    yield Figure("69 MB to READY: blobserve", median(readies), unit="s")
    yield Figure("69 MB to READY: blobserve, CPU", median(cpu), unit="s")
    yield Figure("69 MB to READY, over gzip | tar", _ratio(readies, tars), 0.5, "x")
    yield Figure("69 MB to READY, over one thread", _ratio(readies, ones), 1.3, "x")


def early(bench: Bench) -> Lines:
    """Measure a file in the first 1 % of a large layer during its pull over the slow link."""
    name = "earlyServe: a file in the first 1 %"
    if not bench.takes({"earlyServe": True}):
        yield absent(name, "the server refuses the key")
        return
    blob = _large(bench)
    bench.origin.publish(REPOSITORY, "large", [blob])
    target = f"/{bench.link.host}/{REPOSITORY}:large/"
    at = bench.sizes.large // bench.sizes.each * 8 // 1000
    with bench.server({"earlyServe": True}, is_slow=True) as server:
        begun = time.perf_counter()
        answer = ask(server.port, target + layers.name_of(at))
        if answer.status != 200 or "no-store" not in answer.headers.get("cache-control", ""):
            raise RuntimeError(f"not answered early: {answer}")
        while "etag" not in ask(server.port, target + layers.name_of(0), "HEAD").headers:
            time.sleep(0.05)
        ready = time.perf_counter() - begun
    yield Figure("the same layer to READY", ready, unit="s")
    yield Figure(name, answer.whole, 0.015 * ready + 3 * ROUND_TRIP, "s")


def published(bench: Bench, blob: Blob, kind: str) -> Lines:
    """Measure a lazily pulled layer: any file, then 1 % of its files, during the pull."""
    bench.origin.publish(REPOSITORY, kind, [blob])
    files = bench.sizes.large // bench.sizes.each
    chance = random.Random(2)
    firsts = []
    for _ in range(bench.sizes.rounds):
        with bench.server(is_slow=True) as server:
            if bench.metric("blobserve_published_indexes_total") is None:
                yield absent(f"{kind}: first byte of any file", "no index is read")
                return
            path = layers.name_of(chance.randrange(files))
            firsts.append(ask(server.port, f"/{bench.link.host}/{REPOSITORY}:{kind}/{path}").first)
    bytes_ = blob.index + bench.sizes.each
    most = min(1.0, 6 * ROUND_TRIP + 1.5 * bytes_ / RATE)
    note = f"index {blob.index / MB:.2f} MB"
    yield Figure(f"{kind}: first byte of any file, median", median(firsts), most, "s", note)
    yield Figure(f"{kind}: first byte of any file, worst", max(firsts), most, "s")
    with bench.server(is_slow=True) as server, Client(server.port) as client:
        target = f"/{bench.link.host}/{REPOSITORY}:{kind}/"
        for number in chance.sample(range(files), files // 100):
            answer = client.get(target + layers.name_of(number))
            if answer.status != 200:
                raise RuntimeError(f"{answer.status} {answer.body!r}")
        pulled = bench.metric("blobserve_chunk_bytes_total") or 0
        whole = (bench.metric("blobserve_pulled_bytes_total") or 0) >= blob.size
    note = "READY before the end" if whole else "pull apart"
    yield Figure(f"{kind}: read for 1 % of its files", 100 * pulled / blob.size, 5, "%", note)


def upgrade(bench: Bench) -> Lines:
    """Measure a site with changes in 3 % of its files, revalidated file by file as by a browser."""
    chance = random.Random(3)
    count = 1000 if not bench.sizes.is_quick else 300
    files = {f"srv/{n % 13}/{n}.png": chance.randbytes(chance.randint(20_000, 120_000))
             for n in range(count)}  # fmt: skip
    changed = set(chance.sample(sorted(files), count * 3 // 100))
    after = {n: chance.randbytes(len(body)) if n in changed else body for n, body in files.items()}
    for version, content in (("before", files), ("after", after)):
        blob = bench.layer(version, lambda path, c=content: _archive(path, c))  # type: ignore[misc]
        bench.origin.publish(REPOSITORY, version, [blob])
    bench.origin.publish(REPOSITORY, "live", [bench.layer("before", _made_before)])
    with bench.server({"tagMaxAge": "1s"}) as server, Client(server.port) as client:
        target = f"/{bench.origin.host}/{REPOSITORY}:live/"
        kept = {name: client.get(target + name) for name in files}
        bench.origin.publish(REPOSITORY, "live", [bench.layer("after", _made_before)])
        probe = min(changed)
        while client.get(target + probe, "HEAD").headers["etag"] == kept[probe].headers["etag"]:
            time.sleep(0.2)
        again = {n: client.get(target + n, If_None_Match=kept[n].headers["etag"]) for n in files}
    for name, answer in again.items():
        if answer.status != (200 if name in changed else 304):
            raise RuntimeError(f"{name}: {answer.status}")
    total = sum(answer.wire for answer in kept.values())
    sent = 100 * sum(answer.wire for answer in again.values()) / total
    yield Figure("3 % of the files change: re-sent, heads included", sent, 4, "%")


def ten(bench: Bench) -> Lines:
    """Measure ten large layers at once over the local link: memory, and reactor iterations."""
    whole = _large(bench).path
    for number in range(bench.sizes.pulls):
        blob = bench.layer(f"ten-{number}", lambda p, n=number: layers.variant(whole, p, n))  # type: ignore[misc]
        bench.origin.publish(REPOSITORY, f"ten-{number}", [blob])
        blob.path.unlink()
    with bench.server(**slow_turns(20)) as server:
        tags = [f"ten-{number}" for number in range(bench.sizes.pulls)]
        begun = time.perf_counter()
        with ThreadPoolExecutor(len(tags)) as pool:
            list(pool.map(lambda tag: _pull(bench, server, tag, layers.name_of(0)), tags))
        seconds = time.perf_counter() - begun
        memory = server.peak_memory() / MB
        turns = [float(ms) for ms in re.findall(r"took (\S+) ms", server.output.read_text())]
    size = f"{bench.sizes.large // MB} MB each, {seconds:.0f} s"
    yield Figure("ten pulls at once: peak memory", memory, 200, "MB", size)
    longest = f"the longest {max(turns):.0f} ms" if turns else ""
    yield Figure("ten pulls at once: turns above 20 ms of CPU", len(turns), 0, "", longest)


def entries(bench: Bench) -> Lines:
    """Measure a layer of many entries: CPU time for each, memory, and look-ups in its tree."""
    count = bench.sizes.entries
    blob = bench.layer("many", lambda path: layers.gzipped(path, layers.many(count), 1))
    bench.origin.publish(REPOSITORY, "many", [blob])
    title = f"{count:,} entries"
    with bench.server() as server:
        before = cpu_seconds(server.pid)
        seconds = _pull(bench, server, "many", layers.many_name(0).decode())
        cpu = (cpu_seconds(server.pid) - before) / count * 1e6
        yield Figure(f"{title}: CPU for each", cpu, 25, "us", f"{seconds:.1f} s to READY")
        yield Figure(f"{title}: peak memory", server.peak_memory() / MB, 150, "MB")
        algorithm, _, name = blob.digest.partition(":")
        directory = bench.home / "looked"
        shutil.copytree(server.space / "blobs" / algorithm / name, directory)
    tree = ImageFilesystem.open(directory, Digest.parse(blob.digest), Limits)
    try:
        chance = random.Random(4)
        some = [chance.randrange(count) for _ in range(_LOOKUPS)]
        hits = [layers.many_name(number) for number in some]
        misses = [name.rpartition(b"/")[0] + b"/no/such/file-%d" % n for n, name in enumerate(hits)]
        (directory / "index").read_bytes()
        yield Figure(f"{title}: a random look-up", _look(tree, hits), 10, "us")
        yield Figure(f"{title}: a miss at depth 10", _look(tree, misses), 50, "us")
    finally:
        tree.close()
        shutil.rmtree(directory)


def _look(tree: ImageFilesystem, paths: list[bytes]) -> float:
    """Return the microseconds of CPU time for each path, the best of three passes."""
    passes = []
    for _ in range(3):
        begun = time.thread_time()
        for path in paths:
            try:  # noqa: SIM105 - `suppress` costs more than some look-ups
                tree.lookup(path)
            except PathNotFound:
                pass
        passes.append((time.thread_time() - begun) / len(paths) * 1e6)
    return min(passes)


def _pull(bench: Bench, server: Server, tag: str, path: str) -> float:
    """Return the seconds from a request for a cold image to its response, which must be 200."""
    answer = ask(server.port, f"/{bench.origin.host}/{REPOSITORY}:{tag}/{path}", "HEAD")
    if answer.status != 200:
        raise RuntimeError(f"{answer.status} {answer.headers}")
    return answer.whole


def _large(bench: Bench) -> Blob:
    sizes = bench.sizes
    return bench.layer(
        "large", lambda path: layers.gzipped(path, layers.large(sizes.large, sizes.each))
    )


def _archive(path: Path, content: dict[str, bytes]) -> Path:
    files = [layers.entry(name.encode(), body) for name, body in content.items()]
    return layers.gzipped(path, [*files, bytes(1024)])


def _made_before(path: Path) -> Path:
    raise AssertionError(f"{path} has not been made")


def _ratio(ours: tuple[float, ...], theirs: tuple[float, ...]) -> float:
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def _run(arguments: list[str | Path]) -> str:
    return subprocess.run(
        list(map(str, arguments)), stdout=subprocess.PIPE, check=True, text=True
    ).stdout


CASES: dict[str, Callable[[Bench], Lines]] = {
    "link": link,
    "local": local,
    "early": early,
    "upgrade": upgrade,
    "entries": entries,
    "ten": ten,
}
"""The cases by name; those of lazily pulled layers are in `benchmarks.cold.writers`."""
