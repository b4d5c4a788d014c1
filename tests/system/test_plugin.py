"""`twist blobserve` for operators: its process, messages, signals and end."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Unfinished
from contextlib import ExitStack, closing, suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

from blobserve.config import Config, RepositoryRules
from blobserve.configfile import load
from blobserve.daemon.plugin import announcement
from tests.support.parts.images import Image
from tests.support.parts.programs import answers, end, free_port, program, wait_until
from tests.support.parts.registry import DockerRegistry
from tests.support.parts.server import ROOT, Server
from tests.support.slack import SLACK
from tests.support.turn_watch import LOGGED, slow_turns

EXAMPLE = ROOT / "etc" / "example"
REPOSITORY = "blobserve.example/site"
PAGE = f"/{REPOSITORY}:v1/"
SERVED: dict[str, Any] = {"timeout": "20s", "repos": {REPOSITORY: {"source": f"oci:{EXAMPLE}"}}}
TWIST = [sys.executable, "-m", "twisted"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def twist(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `twist` to its end."""
    return subprocess.run(
        [*TWIST, *arguments],
        env=ENVIRONMENT,
        cwd="/",
        capture_output=True,
        timeout=60,
        text=True,
        check=False,
    )


@pytest.fixture
def configured(tmp_path: Path) -> Callable[[str], Path]:
    """Write a configuration file."""

    def write(text: str) -> Path:
        path = tmp_path / "b.yaml"
        path.write_text(text)
        return path

    return write


def eventually(is_true: Callable[[], bool]) -> bool:
    """Return whether a condition becomes true within a bounded time."""
    for _ in range(int(200 * SLACK)):
        if is_true():
            return True
        time.sleep(0.05)  # the test waits for another process, and has no clock to advance
    return False


# --- The command line -----------------------------------------------------------------------------


def test_help() -> None:
    """`twist blobserve --help` lists the options."""
    done = twist("blobserve", "--help")
    assert done.returncode == 0
    assert "--config=" in done.stdout
    assert "--check" in done.stdout


def test_a_configuration_must_be_named() -> None:
    """A start without --config fails with a message."""
    done = twist("blobserve")
    assert done.returncode != 0
    assert "--config FILE" in done.stderr


def test_check_of_a_valid_configuration() -> None:
    """--check of the shipped configuration reports it as valid and exits with 0."""
    done = twist("blobserve", "--config", ROOT / "etc" / "blobserve.yaml", "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{ROOT}/etc/blobserve.yaml: valid\n"


def test_check_shows_warnings(tmp_path: Path) -> None:
    """--check prints warnings on standard error, and exits 0."""
    path = tmp_path / "config.json"
    path.write_text('{"blobserve": {"port": 1, "prot": [1]}, "pprofAddr": ":6060"}')
    done = twist("blobserve", "--config", path, "--check")
    assert (done.returncode, done.stdout) == (0, f"{path}: valid\n")
    assert done.stderr.splitlines() == [
        f"warning: {path}:1: prot: unknown key; the nearest known one is port; it is ignored",
        f"warning: {path}:1: pprofAddr: pprof is not supported; this key has no effect",
        f"warning: {path}: repos: no repository is listed and allowAnyRepo is false, so every"
        " request gets 403",
    ]


@pytest.mark.parametrize("check", [["--check"], []])
def test_a_bad_configuration(configured: Callable[[str], Path], check: list[str]) -> None:
    """A bad configuration ends the start with 1, a line for each problem and no traceback."""
    path = configured("blobserve:\n  prot: 1\n  timeout: 1\n")
    done = twist("blobserve", "--config", path, *check)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        f"{path}:2: prot: unknown key; the nearest known one is port",
        f"{path}:3: timeout: expected duration with its unit, such as 30s, 5m or 500ms,"
        " got number 1",
    ]


# --- Errors at the start --------------------------------------------------------------------------


def refused(path: Path) -> str:
    """Return the errors of a start that fails with 1 and without a traceback."""
    done = twist("blobserve", "--config", path)
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    [said] = [line for line in done.stderr.splitlines() if line.startswith("blobserve: ")]
    return said


@pytest.mark.parametrize("key", ["listen", "prometheusAddr", "readinessProbeAddr"])
def test_a_port_in_use(configured: Callable[[str], Path], tmp_path: Path, key: str) -> None:
    """A port in use ends the start, and the error names the port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        listen, line = "tcp:0:interface=127.0.0.1", f"{key}: 127.0.0.1:{port}"
        if key == "listen":
            listen, line = f"tcp:{port}:interface=127.0.0.1", ""
        space = f"blobSpace: {{location: {tmp_path}/c}}"
        said = refused(configured(f"blobserve: {{listen: '{listen}', {space}}}\n{line}\n"))
    assert said.startswith(f"blobserve: {key}: cannot open ")
    assert str(port) in said
    assert said.endswith(": Address already in use")


def test_a_blob_space_that_is_not_writable(
    configured: Callable[[str], Path], tmp_path: Path
) -> None:
    """A location that is not writable ends the start, and the error names it."""
    (tmp_path / "file").touch()
    path = configured(
        f"blobserve: {{listen: 'tcp:0:interface=127.0.0.1',"
        f" blobSpace: {{location: {tmp_path}/file/cache}}}}"
    )
    assert f"{tmp_path}/file/cache" in refused(path)


def test_a_blob_space_that_is_owned(serve: Callable[..., Server]) -> None:
    """A blob space of another process ends the start, and that process goes on."""
    owner = serve(SERVED)
    path = owner.directory / "second.yaml"
    path.write_text(
        f"blobserve: {{listen: 'tcp:0:interface=127.0.0.1',"
        f" blobSpace: {{location: {owner.space}}}}}"
    )
    assert str(owner.space) in refused(path)
    assert owner.fetch(PAGE).status == 200


def test_an_access_log_that_cannot_be_written(
    configured: Callable[[str], Path], tmp_path: Path
) -> None:
    """An access log that cannot be opened ends the start, and the error names the file."""
    path = configured(
        f"blobserve: {{listen: 'tcp:0:interface=127.0.0.1',"
        f" blobSpace: {{location: {tmp_path}/c}}}}\naccessLog: {{file: /proc/none/a.log}}"
    )
    assert "/proc/none/a.log" in refused(path)


# --- Running --------------------------------------------------------------------------------------


def test_what_is_printed(serve: Callable[..., Server]) -> None:
    """A start prints its address and a page that opens; the log is text."""
    rules = {"source": f"oci:{EXAMPLE}", "prePull": ["v1"]}
    server = serve({**SERVED, "repos": {REPOSITORY: rules}})
    assert eventually(lambda: f"blobserve: {server.url}{PAGE}" in server.output.read_text())
    output = server.output.read_text()
    assert f"blobserve: listening on 127.0.0.1:{server.port}\n" in output
    assert f"blobserve: {server.url}{PAGE}\n" in output
    assert "\x1e" not in output
    assert server.fetch(PAGE).status == 200


def test_what_is_announced() -> None:
    """The announced address can be opened, also if the server listens on all interfaces."""
    config = Config(repos={"r.example/x": RepositoryRules(pre_pull=("v1", "v2"))})
    addresses = [IPv4Address("TCP", "0.0.0.0", 80), IPv6Address("TCP", "::", 81)]
    assert announcement(config, addresses) == [
        "blobserve: listening on 127.0.0.1:80",
        "blobserve: listening on [::1]:81",
        "blobserve: http://127.0.0.1/r.example/x:v1/",
    ]
    assert announcement(config, addresses[1:])[-1] == "blobserve: http://[::1]:81/r.example/x:v1/"
    assert len(announcement(config, [UNIXAddress(b"/run/b.sock")])) == 1
    assert len(announcement(Config(), addresses)) == 2


def announced(sites: dict[str, object], listen: str, *addresses: IAddress) -> list[str]:
    """Return the URLs that a start announces, and further lines."""
    config = attrs.evolve(load({"blobserve": {"sites": sites}}), listen=(listen,))
    lines = announcement(config, list(addresses))
    return [line.removeprefix("blobserve: ") for line in lines[len(addresses) :]]


def test_sites_are_announced() -> None:
    """The URL of each site that has one host is announced, five at most."""
    image = "r.example/x:v1"
    address = IPv4Address("TCP", "127.0.0.1", 8080)
    sites: dict[str, object] = {
        "App.Example.com": image,
        "www.example.com": {"redirect": "app.example.com"},
        "*.preview.example.com": "r.example/x:{1}",
        "example.com/größe a": image,
        "*": image,
        "*/docs": image,
    }
    assert announced(sites, "tcp:0", address) == [
        "http://app.example.com:8080/",
        "http://example.com:8080/gr%C3%B6%C3%9Fe%20a/",
        "http://127.0.0.1:8080/",
        "http://127.0.0.1:8080/docs/",
    ]
    many: dict[str, object] = {f"s{n}.example.com": image for n in range(7)}
    assert announced(many, "tcp:0", address)[4:] == [
        "http://s4.example.com:8080/",
        "and 2 more sites",
    ]
    assert announced(sites, "unix:x", UNIXAddress(b"x")) == []


def test_the_scheme_and_port_that_are_announced() -> None:
    """The announced URLs have the scheme of the endpoint, and no default port."""
    site: dict[str, object] = {"app.example.com": "r.example/x:v1"}
    for listen, port, url in (
        ("tcp:80", 80, "http://app.example.com/"),
        ("tcp:443", 443, "http://app.example.com:443/"),
        ("ssl:443", 443, "https://app.example.com/"),
        ("ssl:8443", 8443, "https://app.example.com:8443/"),
    ):
        for host in (IPv4Address("TCP", "0.0.0.0", port), IPv6Address("TCP", "::", port)):
            assert announced(site, listen, host) == [url]


def test_the_originals_configuration_runs(tmp_path: Path) -> None:
    """A config.json of the original server starts a server."""
    port = free_port()
    path = tmp_path / "config.json"
    path.write_text(
        f'{{"blobserve": {{"port": {port}, "timeout": 5000000000, "repos": {{}},'
        f' "blobSpace": {{"location": "{tmp_path}/c", "maxSizeBytes": 1048576}}}},'
        ' "dockerAuth": "", "pprofAddr": ":6060", "prometheusAddr": "",'
        ' "readinessProbeAddr": ""}'
    )
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(
            [*TWIST, "blobserve", "--config", path], env=ENVIRONMENT, stdout=output, stderr=output
        )
        wait_until(lambda: answers(port), process, tmp_path / "output")
        end(process)
    assert "pprofAddr: pprof is not supported" in (tmp_path / "output").read_text()


def test_a_reload(serve: Callable[..., Server]) -> None:
    """SIGHUP applies changed rules and repositories at once: a removed one gets a 403."""
    server = serve(SERVED)
    home = server.fetch(PAGE).body
    rules = {"source": f"oci:{EXAMPLE}", "workdir": "/docs"}
    server.configure({**SERVED, "repos": {REPOSITORY: rules}})
    server.reload()
    assert eventually(lambda: server.fetch(PAGE).body != home)
    server.configure({**SERVED, "repos": {}})
    server.reload()
    assert eventually(lambda: server.fetch(PAGE).status == 403)


def test_a_large_reload(tmp_path: Path, running: Callable[[Server], Server]) -> None:
    """The reactor goes on while a very large configuration is read."""
    many = {f"registry.example/team{n}/*": {"tagMaxAge": "1s"} for n in range(3000)}
    config = {**SERVED, "repos": {**SERVED["repos"], **many}}
    server = running(Server(tmp_path, config, **slow_turns(100)))
    before = server.output.read_text()
    server.reload()
    assert eventually(lambda: "configuration loaded" in server.output.read_text())
    assert server.fetch(PAGE).status == 200
    assert LOGGED not in server.output.read_text().removeprefix(before)


def test_a_reload_that_is_refused(serve: Callable[..., Server]) -> None:
    """A reload that is invalid, or needs a restart, changes nothing, and the log says why."""
    server = serve(SERVED)
    server.configure({**SERVED, "repos": {}, "colour": "red"})
    server.reload()
    assert eventually(lambda: "colour: unknown key" in server.output.read_text())
    assert server.fetch(PAGE).status == 200
    server.configure({**SERVED, "repos": {}})
    elsewhere = server.config.read_text().replace(str(server.port), str(free_port()))
    server.config.write_text(elsewhere.replace(str(server.space), f"{server.space}-2"))
    server.reload()
    assert eventually(lambda: "listen: needs a restart" in server.output.read_text())
    assert "blobSpace.location: needs a restart" in server.output.read_text()
    assert server.fetch(PAGE).status == 200


def test_logs_follow_a_rotation(serve: Callable[..., Server], tmp_path: Path) -> None:
    """SIGHUP reopens the access log."""
    log = tmp_path / "access.log"
    server = serve(SERVED, {"accessLog": {"file": str(log)}})
    server.fetch(PAGE)
    moved = log.rename(tmp_path / "access.log.1")
    server.reload()
    assert eventually(log.exists)
    server.fetch("/none")
    assert eventually(lambda: '"GET /none HTTP/1.1" 404' in log.read_text())
    assert f'"GET {PAGE} HTTP/1.1" 200' in moved.read_text()


def test_probes_and_metrics(serve: Callable[..., Server]) -> None:
    """/live, /ready and /metrics are at the configured addresses."""
    metrics, probes = free_port(), free_port()
    server = serve(
        SERVED,
        {
            "prometheusAddr": f"127.0.0.1:{metrics}",
            "readinessProbeAddr": f"127.0.0.1:{probes}",
        },
    )
    server.fetch(PAGE)
    assert get(probes, "/live") == (200, b"ok\n")
    assert eventually(lambda: get(probes, "/ready") == (200, b"ok\n"))
    assert b"freeBytes" in get(probes, "/ready?full=1")[1]
    status, body = get(metrics, "/metrics")
    assert status == 200
    assert b'http_server_requests_total{code="200",method="get"} 1.0' in body


def get(port: int, target: str) -> tuple[int, bytes]:
    """Send one request; return status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


# --- The end --------------------------------------------------------------------------------------


@pytest.fixture
def silent_registry() -> Iterator[int]:
    """The port of a registry that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        yield listening.getsockname()[1]


def test_stalled_pulls_do_not_delay_the_end(
    serve: Callable[..., Server], silent_registry: int
) -> None:
    """Ten stalled pulls do not delay the end: their clients get a 503 within a second."""
    registry = f"127.0.0.1:{silent_registry}"
    server = serve(
        {
            "timeout": "60s",
            "repos": {f"{registry}/*": {}},
            "registries": {registry: {"insecure": True}},
        },
        {"prometheusAddr": f"127.0.0.1:{(metrics := free_port())}"},
    )
    with ThreadPoolExecutor(10) as clients:
        waiting = [clients.submit(server.fetch, f"/{registry}/x:v{n}/") for n in range(10)]
        waits = b"\nblobserve_requests_in_flight 10.0\n"
        assert eventually(lambda: waits in get(metrics, "/metrics")[1])
        began = time.monotonic()
        server.stop()
        took = time.monotonic() - began
        answered = [each.result(20) for each in waiting]
    assert [(each.status, each.body) for each in answered] == [(503, b"timeout")] * 10
    assert took < 1.0 + 0.5 * SLACK  # half a second for the process itself to end
    assert not list((server.space / "ingest").iterdir())


# Python runs this at its start; some names then get no answer for half a minute.
SLOW_NAMES = """
import socket, time
usual = socket.getaddrinfo
def getaddrinfo(host, *more, **named):
    name = host.decode() if isinstance(host, bytes) else host
    if name.endswith(".slow.example"):
        time.sleep(30)
        raise socket.gaierror
    return usual(host, *more, **named)
socket.getaddrinfo = getaddrinfo
"""


@pytest.fixture
def slow_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a server resolve names by `SLOW_NAMES`."""
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "sitecustomize.py").write_text(SLOW_NAMES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "python"))


def seconds_of(act: Callable[[], object]) -> float:
    """Return the duration of a call in seconds."""
    began = time.monotonic()
    act()
    return time.monotonic() - began


@pytest.mark.usefixtures("slow_names")
def test_names_that_do_not_resolve(
    serve: Callable[..., Server], docker_registry: DockerRegistry
) -> None:
    """Look-ups that hang for names in requests delay nothing else.

    Meanwhile a listed registry is resolved, a reload succeeds, and the end is immediate.
    """
    registry = docker_registry.host.replace("127.0.0.1", "localhost")
    docker_registry.push(Image.of({"a": b"of a listed registry"}), "site:v1")
    config = {
        "timeout": "20s",
        "allowAnyRepo": True,
        "repos": {f"{registry}/site": {}},
        "registries": {registry: {"insecure": True}},
    }
    server = serve(config)
    with ThreadPoolExecutor(20) as clients:
        slow = [f"/r{n}.slow.example/x:v1/" for n in range(20)]
        waiting = [clients.submit(server.fetch, target) for target in slow]
        for each in waiting:  # all requests are sent, and hang
            with pytest.raises(Unfinished):
                each.result(0.1)
        assert server.fetch(f"/{registry}/site:v1/a").body == b"of a listed registry"
        server.reload()
        assert eventually(lambda: "configuration loaded" in server.output.read_text())
        assert seconds_of(server.stop) < 5 * SLACK
        assert {each.result(20).status for each in waiting} == {503}


def test_a_credential_helper_that_hangs(
    serve: Callable[..., Server],
    docker_registry: DockerRegistry,
    htpasswd_registry: DockerRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A credential helper that hangs delays its own registry alone, and ends with the server."""
    docker_registry.push(Image.of({"a": b"without a helper"}), "site:v1")
    helper = tmp_path / "docker-credential-hang"
    helper.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/helpers\nexec sleep 600\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    login = base64.b64encode(b"me:secret").decode()
    auth = tmp_path / "auth.json"
    auth.write_text(
        json.dumps(
            {
                "credHelpers": {htpasswd_registry.host: "hang"},
                "auths": {docker_registry.host: {"auth": login}},
            }
        )
    )
    hosts = docker_registry.host, htpasswd_registry.host
    config = {
        "timeout": "20s",
        "repos": {f"{host}/*": {} for host in hosts},
        "registries": {host: {"insecure": True} for host in hosts},
    }
    probes = free_port()
    top = {"dockerAuth": str(auth), "readinessProbeAddr": f"127.0.0.1:{probes}"}
    server = serve(config, top)
    with ThreadPoolExecutor(20) as clients:
        targets = [f"/{htpasswd_registry.host}/x{n}:v1/" for n in range(20)]
        waiting = [clients.submit(server.fetch, target) for target in targets]
        assert eventually((tmp_path / "helpers").exists)
        for each in waiting:
            with pytest.raises(Unfinished):
                each.result(0.1)
        assert get(probes, "/ready") == (200, b"ok\n")
        assert server.fetch(f"/{docker_registry.host}/site:v1/a").body == b"without a helper"
        [pid] = (tmp_path / "helpers").read_text().split()
        assert seconds_of(server.stop) < 5 * SLACK
        assert {each.result(20).status for each in waiting} == {503}
    assert eventually(lambda: not Path(f"/proc/{pid}").exists())


def test_the_end_is_that_of_twist(serve: Callable[..., Server]) -> None:
    """SIGTERM releases everything and ends the process by that signal, as it ends twist."""
    server = serve(SERVED)
    assert server.fetch(PAGE).status == 200
    assert server.stop() == -signal.SIGTERM
    server.start()
    assert server.fetch(PAGE, headers={"X-BlobServe-ReadOnly": "true"}).status == 200


def test_systemd_is_told(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd is notified when the server is ready, alive, reloading and stopping."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        server = serve(SERVED)
        heard = [listening.recv(100) for _ in range(4)]
        assert heard == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1", b"WATCHDOG=1"]
        server.reload()
        said = iter(lambda: listening.recv(100), None)
        assert b"RELOADING=1" in said
        assert b"READY=1" in said
        server.stop()
        assert b"STOPPING=1" in said


SHIFTED = """
import os, time
told = time.time
def shifted():
    with open(os.environ["SHIFT"]) as shift:
        return told() + float(shift.read())
time.time = shifted
parted = time.gmtime
time.gmtime = lambda at=None: parted(shifted() if at is None else at)
"""
"""Adds the number in a file, in seconds, to the time of day of a process."""


def test_a_time_of_day_that_is_set(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Setting the time of day stops no timer; `Date` and the log show the new time."""
    (tmp_path / "sitecustomize.py").write_text(SHIFTED)
    shift = tmp_path / "shift"

    def set_ahead(seconds: int) -> None:
        (tmp_path / "new").write_text(str(seconds))
        (tmp_path / "new").replace(shift)

    set_ahead(0)
    log = tmp_path / "access.log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening, ExitStack() as stack:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(10)
        for name, value in {
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": "200000",
            "PYTHONPATH": str(tmp_path),
            "SHIFT": str(shift),
        }.items():
            monkeypatch.setenv(name, value)
        limits = {"clientHeadTimeout": "1s", "clientIdleTimeout": "20s"}
        server = serve({**SERVED, "limits": limits}, {"accessLog": {"file": str(log)}})
        assert server.fetch(PAGE).status == 200
        for ahead in (-3600, 7200):
            kept = stack.enter_context(
                closing(http.client.HTTPConnection("127.0.0.1", server.port))
            )
            kept.request("GET", PAGE)
            kept.getresponse().read()
            late = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
            late.sendall(b"GET / HTTP/1.1\r\n")
            set_ahead(ahead)
            listening.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    listening.recv(100)
            listening.settimeout(10)
            assert [listening.recv(100) for _ in range(5)] == [b"WATCHDOG=1"] * 5
            assert late.recv(100).startswith(b"HTTP/1.1 408 ")
            for method in ("GET", "OPTIONS"):  # only GET takes the fast path
                kept.request(method, PAGE)
                answer = kept.getresponse()
                answer.read()
                shown = parsedate_to_datetime(answer.headers["Date"]).timestamp()
                assert abs(shown - (time.time() + ahead)) < 60
        assert eventually(lambda: log.read_text().count(" 408 ") == 2)
        lines = [line for line in log.read_text().splitlines() if '"OPTIONS' in line]
        logged = [
            datetime.strptime(line.split("[")[1].split("]")[0], "%d/%b/%Y:%H:%M:%S %z").timestamp()
            for line in lines
        ]
        for at, ahead in zip(logged, (-3600, 7200), strict=True):
            assert abs(at - (time.time() + ahead)) < 60


@pytest.mark.parametrize(
    "hosts", [["127.0.0.1"], ["127.0.0.1", "127.0.0.1"], ["127.0.0.1", "[::1]"]]
)
def test_sockets_from_systemd(tmp_path: Path, hosts: list[str]) -> None:
    """The server uses every socket that systemd passes under the configured name."""
    activate = program("systemd-socket-activate")
    addresses = [(host.strip("[]"), free_port()) for host in hosts]
    path = tmp_path / "b.yaml"
    path.write_text(
        "blobserve: {listen: 'systemd:domain=INET:name=blobserve', timeout: 20s,"
        f" blobSpace: {{location: {tmp_path}/c}},"
        f" repos: {{{REPOSITORY}: {{source: 'oci:{EXAMPLE}'}}}}}}"
    )
    listening = [
        f"--listen={host}:{port}" for host, (_, port) in zip(hosts, addresses, strict=True)
    ]
    names = ":".join(["blobserve"] * len(hosts))
    with ExitStack() as stack:
        output = stack.enter_context((tmp_path / "output").open("w"))
        process = subprocess.Popen(
            [
                *[activate, *listening, f"--fdname={names}"],
                *["-E", f"PYTHONPATH={ROOT}", *TWIST, "blobserve", "--config", str(path)],
            ],
            stdout=output,
            stderr=output,
        )
        stack.callback(end, process)
        wait_until(lambda: answers(addresses[0][1]), process, tmp_path / "output")
        for host, port in addresses:
            connection = http.client.HTTPConnection(host, port, timeout=20)
            stack.callback(connection.close)
            connection.request("GET", PAGE)
            assert connection.getresponse().status == 200
