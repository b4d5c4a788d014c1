"""Errors in input, and the messages to the process, its operator and its clients.

Messages are compared whole, since users see them. After any error nothing half-done is left on
disk, and images that were served before are still served.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.layers import compress
from tests.support.parts.images import Image, Index, Layer, digest_of, tar_of, write_layout
from tests.support.parts.programs import free_port, program
from tests.support.parts.registry import DockerRegistry
from tests.support.parts.server import ROOT, Server
from tests.support.slack import SLACK

FILES = {"index.html": b"fine"}
LISTEN = "tcp:0:interface=127.0.0.1"
NO_HOST = "begin it with a registry host such as docker.io or registry.example.com:5000"
NO_REPOSITORY = "no repository: a reference is <registry>/<repository>:<tag>"
NO_TAG = "no tag and no digest: add :<tag> or @sha256:<digest>"
REPOSITORY_FORM = "a repository has lower-case letters and digits, separated by single . _ - or /"
TAG_FORM = "a tag is 1 to 128 letters, digits, _ . or -, and does not begin with . or -"
URL_FORM = (
    "the path of a URL is /<registry>/<repository>:<tag>/<file>, or @<digest> in place of :<tag>"
)


@pytest.fixture
def blobserve(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs `twist blobserve` to its end in the test's directory."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*without_privileges(), sys.executable, "-m", "twisted", "blobserve", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command,
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            timeout=60,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr
        return done

    return run


def without_privileges() -> list[str]:
    """Return a command prefix that makes the kernel check permissions even for root."""
    if os.geteuid() != 0:
        return []
    return [program("setpriv"), "--bounding-set=-dac_override,-dac_read_search"]


def eventually(is_true: Callable[[], bool]) -> bool:
    """Return whether a condition becomes true within a bounded time."""
    for _ in range(int(200 * SLACK)):
        if is_true():
            return True
        time.sleep(0.05)  # the test waits for another process, and has no clock to advance
    return False


# --- The command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Name the configuration: --config FILE"),
        (["--config", ""], "Name the configuration: --config FILE"),
        (["--config"], "option --config requires argument"),
        (["b.yaml"], "not an option: 'b.yaml'. Name the configuration: --config FILE"),
        (["--confog", "b.yaml"], "option --confog not recognized"),
    ],
)
def test_the_command_line(blobserve: Any, arguments: list[str], said: str) -> None:
    """A wrong command line is answered with the problem and a list of all options."""
    done = blobserve(*arguments)
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.startswith(f"Error: {said}\n\nUsage: ")
    assert "--config=  The configuration file" in done.stderr


# --- The configuration ----------------------------------------------------------------------------

MANY = """\
blobserve:
  repos:
    alpine: {}
    r.example/site:v1: {}
    r.example/Site: {}
    r.example/site:
      source: oci:nowhere
    r.example/other:
      source: oci:.
  blobSpace: {location: c, maxSizeBytes: big}
dockerAuth: nowhere/config.json
prometheusAddr: 9500
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", [": the key blobserve is missing"]),
        (b"port: 80\n", [":1: port: this key belongs under b", ":1: the key blobserve is missing"]),
        (b"blobserve:\n", [":1: blobserve: expected mapping, got nothing"]),
        (b"- blobserve\n", [":1: expected mapping, got list"]),
        (b"blobserve:\n\tport: 1\n", [":2: not YAML: a tab; indent with spaces"]),
        (b"blobserve: {\n", [":2: not YAML: while parsing a flow node expected the node content"]),
        (b"blobserve:\n  port: 1 # \xff\n", [":2: not UTF-8"]),
        (b'{"blobserve": {"port": 1,}}', [':1: not JSON: expected a key in ""']),
        (
            MANY.encode(),
            [
                f":3: repos.alpine: {NO_HOST}",
                ':4: repos."r.example/site:v1": expected a repository without tag or'
                " digest; list tags under prePull",
                f':5: repos."r.example/Site": {REPOSITORY_FORM}',
                ':7: repos."r.example/site".source: there is no directory {here}/nowhere',
                ':9: repos."r.example/other".source: {here} is not an image layout:'
                " it has no index.json",
                ":10: blobSpace.maxSizeBytes: expected size such as 10GiB, or a number of bytes,"
                ' got text "big"',
                ":11: dockerAuth: there is no file {here}/nowhere/config.json",
                ":12: prometheusAddr: expected host:port, got number 9500",
            ],
        ),
    ],
)
def test_bad_configurations(blobserve: Any, tmp_path: Path, text: bytes, said: list[str]) -> None:
    """A bad configuration is refused by a start and by --check, with a line for each problem."""
    (tmp_path / "b.yaml").write_bytes(text)
    for arguments in (["--config", "b.yaml"], ["--config", "b.yaml", "--check"]):
        done = blobserve(*arguments)
        assert (done.returncode, done.stdout) == (1, "")
        lines = done.stderr.splitlines()
        assert len(lines) == len(said)
        for line, expected in zip(lines, said, strict=True):
            assert line.startswith("b.yaml" + expected.replace("{here}", str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["b.yaml"]


def test_configurations_that_cannot_be_read(blobserve: Any, tmp_path: Path) -> None:
    """A configuration that is missing, unreadable or a directory is named with the reason."""
    (tmp_path / "secret.yaml").touch(mode=0o000)
    (tmp_path / "directory").mkdir()
    for name, said in {
        "missing.yaml": "missing.yaml: No such file or directory\n",
        "directory": "directory: Is a directory\n",
        "secret.yaml": "secret.yaml: Permission denied\n",
    }.items():
        done = blobserve("--config", name)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


def test_a_check_touches_nothing(blobserve: Any, tmp_path: Path) -> None:
    """--check of a valid configuration reports it as valid; it neither listens nor makes files."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        rest = "allowAnyRepo: true, blobSpace: {location: c}"
        text = f"blobserve: {{listen: '{listen}', {rest}}}\n"
        (tmp_path / "b.yaml").write_text(text)
        done = blobserve("--config", "b.yaml", "--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "b.yaml: valid\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["b.yaml"]


def test_a_reload_of_a_bad_file(serve: Callable[..., Server]) -> None:
    """A reload refuses a bad file by file and line, and the configuration in force stays."""
    example = {"repos": {"b.example/site": {"source": f"oci:{ROOT}/etc/example"}}}
    server = serve(example)
    for text, said in {
        "blobserve:\n  repos:\n    b.example/site: {wordir: x}\n": ":3: repos."
        '"b.example/site".wordir: unknown key; the nearest known one is workdir',
        "blobserve: {\n": ":2: not YAML: ",
        "": ": the key blobserve is missing",
    }.items():
        server.config.write_text(text)
        server.reload()
        line = f"configuration not loaded: {server.config}{said}"
        assert eventually(lambda line=line: line in server.output.read_text())  # type: ignore[misc]
        assert server.fetch("/b.example/site:v1/").status == 200
    server.config.unlink()
    server.reload()
    missing = f"configuration not loaded: {server.config}: No such file or directory\n"
    assert eventually(lambda: missing in server.output.read_text())
    server.configure({**example, "repos": {}})
    server.reload()
    assert eventually(lambda: server.fetch("/b.example/site:v1/").status == 403)
    assert "Traceback" not in server.output.read_text()


# --- The start ------------------------------------------------------------------------------------


@pytest.fixture
def refused(blobserve: Any, tmp_path: Path) -> Callable[..., str]:
    """Return a function that fails to start on a blob space at ``space`` and returns the error."""

    def start(top: Mapping[str, object] | None = None, listen: str = LISTEN) -> str:
        own = {"listen": listen, "blobSpace": {"location": "space"}}
        (tmp_path / "b.yaml").write_text("# JSON\n" + json.dumps({"blobserve": own, **(top or {})}))
        done = blobserve("--config", "b.yaml")
        assert (done.returncode, done.stdout) == (1, "")
        lines = done.stderr.splitlines()
        [said] = [line for line in lines if line.startswith("blobserve: ")]
        assert not [line for line in lines if " critical " in line or " error " in line]
        assert not list(tmp_path.glob("space/ingest/*"))
        return said.removeprefix("blobserve: ").replace(str(tmp_path), "{here}")

    return start


def a_file(space: Path) -> None:
    space.touch()


def read_only(space: Path) -> None:
    space.mkdir(mode=0o555)


def another_format(space: Path) -> None:
    space.mkdir()
    (space / "VERSION").write_text("7\n")


def somebody_elses(space: Path) -> None:
    (space / "blobs").mkdir(parents=True)


def a_file_inside(space: Path) -> None:
    space.mkdir()
    (space / "VERSION").write_text("1\n")
    (space / "ingest").touch()


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (a_file_inside, "ingest is a link or a file: remove it"),
        (a_file, "it is not a directory: choose another blobSpace.location"),
        (
            read_only,
            "this user may not write to it: change its owner or choose another blobSpace.location",
        ),
        (
            another_format,
            "its VERSION is '7', this blobserve reads '1': choose another blobSpace.location, or"
            " remove the directory if it is an older blob space (its images are pulled again)",
        ),
        (
            somebody_elses,
            "it holds 'blobs' but no VERSION, so it is no blob space: choose an empty directory as"
            " blobSpace.location",
        ),
    ],
)
def test_blob_spaces_that_cannot_be_used(
    refused: Callable[..., str], tmp_path: Path, prepare: Callable[[Path], None], said: str
) -> None:
    """A blob space that cannot be used prevents the start with advice, and is not changed."""
    prepare(tmp_path / "space")
    before = {path for path in tmp_path.rglob("space/*") if path.name != "lock"}
    assert refused() == "blob space {here}/space: " + said
    assert {path for path in tmp_path.rglob("space/*") if path.name != "lock"} == before


def test_two_servers_on_one_blob_space(refused: Callable[..., str], serve: Any) -> None:
    """A second server on a blob space names the first, which goes on serving."""
    owner = serve({"repos": {"b.example/site": {"source": f"oci:{ROOT}/etc/example"}}})
    advice = "stop it or choose another blobSpace.location"
    said = refused()
    assert said == f"blob space {{here}}/space: already used by process {owner.pid}: {advice}"
    assert owner.fetch("/b.example/site:v1/").status == 200


@pytest.mark.parametrize("key", ["listen", "prometheusAddr", "readinessProbeAddr"])
def test_ports_in_use(refused: Callable[..., str], key: str) -> None:
    """An address in use prevents the start with the key, and its listener is not disturbed."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        if key == "listen":
            address = f"tcp:{port}:interface=127.0.0.1"
            said = refused(listen=address)
        else:
            address = f"127.0.0.1:{port}"
            said = refused({key: address})
    assert said == f"{key}: cannot open {address}: Address already in use"


@pytest.mark.parametrize(
    ("listen", "top", "said"),
    [
        (
            "systemd:domain=INET:name=b",
            {},
            "listen: cannot open systemd:domain=INET:name=b: systemd passed no such socket",
        ),
        (
            "unix:/nowhere/b.socket",
            {},
            "listen: cannot open unix:/nowhere/b.socket: No such file or directory",
        ),
        (
            "tcp:0:interface=192.0.2.1",
            {},
            "listen: cannot open tcp:0:interface=192.0.2.1: Cannot assign requested address",
        ),
        (
            LISTEN,
            {"accessLog": {"file": "nowhere/a.log"}},
            "accessLog.file: cannot open {here}/nowhere/a.log: No such file or directory",
        ),
    ],
)
def test_what_cannot_be_opened(
    refused: Callable[..., str], listen: str, top: dict[str, object], said: str
) -> None:
    """A file that cannot be opened is named as configured, with the key and the reason."""
    assert refused(top, listen) == said


# --- Requests -------------------------------------------------------------------------------------


def test_urls_that_name_no_image(serve: Callable[..., Server]) -> None:
    """A URL that names no image gets a 404 that says why, or a 403 with the repository."""
    server = serve({"repos": {"b.example/site": {"source": f"oci:{ROOT}/etc/example"}}})
    for target, text, problem in [
        ("/", "/", URL_FORM),
        ("/favicon.ico", "favicon.ico", NO_REPOSITORY),
        ("/alpine:3/", "alpine:3/", NO_REPOSITORY),
        ("/alpine", "alpine", NO_HOST),
        ("/alpine:latest/index.html", "alpine:latest/index.html", NO_HOST),
        (
            "/https://b.example/site:v1/",
            "https:/b.example/site:v1",
            "leave out https:/: write b.example/site:v1",
        ),
        ("/b.example/site", "b.example/site", NO_TAG),
        ("/b.example/site/app.js", "b.example/site/app.js", NO_TAG),
        ("/b.example/Site:v1/", "b.example/Site", REPOSITORY_FORM),
        ("/b.example/site:/", "b.example/site:", TAG_FORM),
        ("/b.example/site@/", "b.example/site@", "a digest begins with sha256: or sha512:"),
        (
            "/b.example/site@sha256:abc/",
            "b.example/site@sha256:abc",
            "a sha256 digest has 64 lower-case hex digits",
        ),
    ]:
        answer = server.fetch(target)
        said = f"not an image reference: {text!r}: {problem}\n"
        assert (answer.status, answer.body.decode()) == (404, said)
        assert server.fetch(target, "HEAD").status == 404
    for target, status, said in [
        ("/b.example/sight:v1/", 403, 'forbidden repo: "b.example/sight"\n'),
        ("/b.example/site:v2/", 404, "no such image: b.example/site:v2; its source has v1\n"),
        ("/b.example/site:v1/nope.js", 404, "no such file: /nope.js\n"),
        ("/b.example/site:v1/index.html/", 404, "no such file: /index.html/\n"),
        ("/b.example/site:v1/images/", 404, "no such file: /images/\n"),
    ]:
        answer = server.fetch(target)
        assert (answer.status, answer.body.decode()) == (status, said)
    assert server.fetch("/b.example/site:v1/docs", "HEAD").headers["Location"] == "./docs/"
    assert server.fetch("/b.example/site:v1/").status == 200
    assert not list((server.space / "ingest").iterdir())


def unservable(registry: DockerRegistry) -> dict[str, tuple[int, str]]:
    """Push images that cannot be served; return the expected answer for each name."""
    tar = tar_of({"random.bin": os.urandom(100_000)})
    gzip, zstd = compress(tar, "gzip"), compress(tar, "zstd")
    layers = {
        "no-tar": (Layer.of_tar(b"no tar" * 1000), "it is not a tar archive"),
        "page": (
            Layer(b"<html>Log in" * 90, digest_of(b"")),
            "it is an HTML or XML document, not a tar archive",
        ),
        "short-tar": (Layer.of_tar(tar[:50_000]), "its tar archive is cut short"),
        "short-gzip": (Layer(gzip[:-500], digest_of(tar)), "its gzip data is cut short"),
        "short-zstd": (Layer(zstd[:-500], digest_of(tar), "zstd"), "its zstd data is cut short"),
    }
    answers = {}
    for name, (layer, problem) in layers.items():
        registry.put(Image((layer,)), f"team/{name}:v1")
        answers[name] = (502, f"cannot serve layer {layer.digest}: {problem}")
    registry.put(Image(()), "team/empty:v1")
    answers["empty"] = (404, f"the image has no layers: {registry.host}/team/empty:v1")
    registry.put(Index((Image.of(FILES, platform="linux/arm64"),)), "team/other:v1")
    answers["other"] = (404, "the index has no image for linux/amd64")
    return answers


def damaged(registry: DockerRegistry) -> dict[str, tuple[int, str]]:
    """Push images and damage their layers in the registry; return the expected answer for each."""
    answers = {}
    for name, damage, status, problem in [
        (
            "changed",
            lambda blob: blob[:-9] + bytes([blob[-9] ^ 1]) + blob[-8:],
            502,
            "the registry sent wrong content for {0}: its digest is another one",
        ),
        (
            "shortened",
            lambda blob: blob[:-20],
            502,
            "the registry sent wrong content for {0}: {1} bytes were announced, not {2}",
        ),
        ("gone", lambda _: None, 404, "the registry does not have the layer {0}"),
    ]:
        layer = Layer.of({"index.html": name.encode() * 1000})
        registry.push(Image((layer,)), f"team/{name}:v1")
        stored = registry.blob_file(layer.digest)
        content = damage(layer.blob)
        stored.unlink() if content is None else stored.write_bytes(content)
        length = len(layer.blob)
        answers[name] = (status, problem.format(layer.digest, length - 20, length))
    return answers


def test_images_that_cannot_be_served(docker_registry, serve):
    """An image that cannot be served is answered with the reason, and leaves nothing on disk."""
    docker_registry.push(Image.of(FILES), "team/site:v1")
    wrong = {**unservable(docker_registry), **damaged(docker_registry)}
    repository = f"{docker_registry.host}/team"
    repos = {f"{repository}/*": {}, f"{repository}/other": {"platform": "linux/amd64"}}
    server = serve({"timeout": "30s", "repos": repos})
    assert server.fetch(f"/{repository}/site:v1/").body == b"fine"
    before = set(server.space.glob("blobs/*/*"))
    for name, (status, said) in wrong.items():
        answer = server.fetch(f"/{repository}/{name}:v1/")
        assert (answer.status, answer.body.decode()) == (status, said + "\n")
        logged = f"cannot pull {repository}/{name}:v1: {said}\n"
        assert logged in server.output.read_text()
        assert not list((server.space / "ingest").iterdir())
    assert set(server.space.glob("blobs/*/*")) == before
    assert server.fetch(f"/{repository}/site:v1/").body == b"fine"
    assert "Traceback" not in server.output.read_text()


def test_a_refused_login(htpasswd_registry, docker_registry, serve, tmp_path):
    """A refused login gets a 502 without the secret; after a right login the image is served."""
    htpasswd_registry.push(Image.of({"index.html": b"secret"}), "team/site:v1")
    docker_registry.push(Image.of(FILES), "team/site:v1")
    auth = tmp_path / "auth.json"
    auth.write_text("{}")
    locked, opened = (f"{each.host}/team/site" for each in (htpasswd_registry, docker_registry))
    config = {"timeout": "30s", "repos": {locked: {}, opened: {}}}
    server = serve(config, {"dockerAuth": str(auth)})

    def login(secret: str) -> str:
        user = {"username": "reader", "password": secret}
        return json.dumps({"auths": {htpasswd_registry.host: user}})

    none = "no credentials were found for it, or it does not exist"
    wrong = "the credentials that were found for it are wrong"
    for text, why in (("{}", none), ('{"auths": {', none), (login("wrong horse"), wrong)):
        auth.write_text(text)
        answer = server.fetch(f"/{locked}:v1/")
        said = f"registry refused access to {locked}: {why}"
        assert (answer.status, answer.body.decode()) == (502, said + "\n")
        assert server.fetch(f"/{opened}:v1/").body == b"fine"
    output = server.output.read_text()
    assert f"cannot pull {locked}:v1: {said}\n" in output
    assert f"credentials in {auth}: it is not strict JSON" in output
    assert "wrong horse" not in output
    assert not list((server.space / "ingest").iterdir())
    auth.write_text(login("correct horse"))
    assert server.fetch(f"/{locked}:v1/").body == b"secret"


def test_a_registry_that_is_down(docker_registry, serve):
    """A registry that is down gets a 502 with its name, and images pulled before are served."""
    docker_registry.push(Image.of(FILES), "team/site:v1")
    nowhere = f"127.0.0.1:{free_port()}"
    repos = {f"{docker_registry.host}/*": {"tagMaxAge": "0s"}, f"{nowhere}/*": {}}
    server = serve({"timeout": "30s", "repos": repos})
    site = f"/{docker_registry.host}/team/site:v1/"
    assert server.fetch(site).body == b"fine"
    docker_registry.stop()
    for registry in (docker_registry.host, nowhere):
        answer = server.fetch(f"/{registry}/team/new:v1/")
        said = f"registry {registry} failed: it does not accept connections\n"
        assert (answer.status, answer.body.decode()) == (502, said)
        assert not list((server.space / "ingest").iterdir())
    assert server.fetch(site).body == b"fine"


def test_a_layout_that_is_gone(serve, tmp_path):
    """A removed layout gets a 502 without its path, and images pulled before are served."""
    layout = write_layout(tmp_path / "layout", {"v1": Image.of(FILES)})
    server = serve({"repos": {"b.example/site": {"source": f"oci:{layout}"}}})
    assert server.fetch("/b.example/site:v1/").body == b"fine"
    shutil.rmtree(layout)
    answer = server.fetch("/b.example/site:v2/")
    said = "registry oci layout failed: its index.json is missing or cannot be used\n"
    assert (answer.status, answer.body.decode()) == (502, said)
    assert server.fetch("/b.example/site:v1/").body == b"fine"
