"""Credentials from the files and helpers that container tools share."""

import base64
import json
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs, formatEvent

from blobserve.concurrency.threads import OwnThreads
from blobserve.names.reference import Repository
from blobserve.oci.credentials.docker_config import AuthFile
from blobserve.oci.credentials.helpers import CredentialHelpers, HelperLogin
from blobserve.oci.credentials.keychain import (
    CREDENTIAL_THREADS,
    Credential,
    Keychain,
    SharedKeychain,
)
from tests.support.source_fixtures import until
from tests.support.within import within

SITE = Repository.parse("registry.example/team/site")
HUB = Repository.parse("docker.io/alpine")
ME = Credential("me", "secret")


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def auths(key: str = "registry.example", login: str = "me:secret") -> dict[str, object]:
    return {"auths": {key: {"auth": encoded(login)}}}


def parsed(**members: object) -> AuthFile:
    return AuthFile.parse(json.dumps(members).encode())


@pytest.fixture
def logged() -> Iterator[Sequence[LogEvent]]:
    """The logged events, as text."""
    with capturedLogs() as events:
        yield events


@pytest.fixture
def helper(tmp_path):
    """A credential helper made of a shell script: its environment, and the file with its runs."""

    def make(script: str, name: str = "test") -> dict[str, str]:
        program = tmp_path / f"docker-credential-{name}"
        program.write_text(f'#!/bin/sh\nread -r server\necho "$1 $server" >> "$RUNS"\n{script}\n')
        program.chmod(0o755)
        return {"PATH": f"{tmp_path}:/usr/bin:/bin", "RUNS": str(tmp_path / "runs")}

    return make


ANSWER = """echo '{"ServerURL": "x", "Username": "me", "Secret": "secret"}'"""


# --- The content of a file ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "credential"),
    [
        ({"auth": encoded("me:secret")}, ME),
        ({"auth": encoded("me:se:cr:et")}, Credential("me", "se:cr:et")),
        ({"auth": encoded("me:secret") + "\n"}, ME),
        ({"auth": encoded("me:secret\0\0")}, ME),
        ({"auth": encoded("me:sécret")}, Credential("me", "sécret")),
        ({"username": "me", "password": "secret"}, ME),
        ({"username": "you", "password": "x", "auth": encoded("me:secret")}, ME),
        ({"identitytoken": "t"}, Credential(identity_token="t")),
        ({"auth": encoded("me:"), "identitytoken": "t"}, Credential("me", identity_token="t")),
        ({"username": "<token>", "password": "t"}, Credential(identity_token="t")),
        ({"auth": encoded("<token>:t")}, Credential(identity_token="t")),
        ({"registrytoken": "t"}, Credential(registry_token="t")),
        ({"email": "x@example", "auth": encoded("me:secret")}, ME),
        ({}, None),
        ({"auth": None, "username": ""}, None),
    ],
)
def test_entry(entry: dict[str, object], credential: Credential | None) -> None:
    """A password, an identity token and a registry token are read in every form.

    Rows A30, A31, A32.
    """
    file = parsed(auths={"registry.example": entry})
    assert file.credential(SITE) == credential
    assert file.problems == ()


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"auth": "%%%"}, "auth is not base64"),
        ({"auth": encoded("me")}, "auth has no colon"),
        ({"auth": base64.b64encode(b"\xff:x").decode()}, "auth is not base64"),
        ({"auth": encoded(":secret")}, "has no user or no password"),
        ({"username": "me"}, "has no user or no password"),
        ({"auth": 5}, "a member is not text"),
        ("me:secret", "not a JSON object"),
    ],
)
def test_wrong_entry(entry: object, problem: str) -> None:
    """A malformed entry is reported with its registry, and the others still count (A30)."""
    file = parsed(auths={"registry.example": entry, "docker.io": {"registrytoken": "t"}})
    assert file.credential(SITE) is None
    assert file.credential(HUB) == Credential(registry_token="t")
    (told,) = file.problems
    assert told.startswith("auths of registry.example: ")
    assert problem in told


@pytest.mark.parametrize(
    "key",
    [
        "registry.example",
        "REGISTRY.example",
        "registry.example/",
        "http://registry.example",
        "https://registry.example/",
        "https://registry.example/v1/",
        "registry.example/v2/",
        "registry.example/team",
        "registry.example/team/site",
        "https://registry.example/team/",
    ],
)
def test_key(key: str) -> None:
    """The key of a registry may be its host, its URL, its API's URL, or these with a path.

    Row A33.
    """
    assert AuthFile.parse(json.dumps(auths(key)).encode()).credential(SITE) == ME


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "index.docker.io", "docker.io"])
def test_hub_key(key: str) -> None:
    """The key of Docker Hub may be any of its names (A33, N01)."""
    assert AuthFile.parse(json.dumps(auths(key)).encode()).credential(HUB) == ME


@pytest.mark.parametrize(
    "key",
    [
        *["", "example", "registry.example:5000", "sub.registry.example", "registry.example.evil"],
        *["registry.example/te", "registry.example/team/site/x", "me@registry.example"],
    ],
)
def test_key_of_another(key: str) -> None:
    """A credential is used for no registry and no repository but its own (A22)."""
    assert AuthFile.parse(json.dumps(auths(key)).encode()).credential(SITE) is None


def test_most_specific_key() -> None:
    """The most specific of several keys counts."""
    keys = ["registry.example", "registry.example/team", "registry.example/team/site"]
    file = parsed(auths={key: {"registrytoken": key} for key in keys})
    for path, key in [("other", keys[0]), ("team/x", keys[1]), ("team/site", keys[2])]:
        found = file.credential(Repository.parse(f"registry.example/{path}"))
        assert found == Credential(registry_token=key)


def test_helpers_of_a_file() -> None:
    """The helper of a registry is preferred to the credentials store."""
    file = parsed(credsStore="all", credHelpers={"https://registry.example/": "own"})
    assert file.helpers(SITE) == ("own", "all")
    assert file.helpers(HUB) == ("all",)


def test_secrets_stay_unseen() -> None:
    """A secret never appears in the repr of a credential, a file or a login."""
    values = [
        Credential("me", "hidden", "hidden", "hidden"),
        HelperLogin("me", "hidden"),
        parsed(auths={"registry.example": {"registrytoken": "hidden"}}),
    ]
    assert "hidden" not in repr(values)


@given(
    st.one_of(
        st.binary(),
        st.recursive(
            st.one_of(st.none(), st.integers(), st.text(), st.just(encoded("a:b"))),
            lambda inner: st.one_of(
                st.lists(inner),
                st.dictionaries(
                    st.sampled_from(
                        ["auths", "credHelpers", "credsStore", "auth", "username", "a.b"]
                    ),
                    inner,
                ),
            ),
        )
        .map(json.dumps)
        .map(str.encode),
    )
)
def test_hostile_file(content: bytes) -> None:
    """Any bytes parse to a file of credentials or raise a `ValueError`."""
    try:
        file = AuthFile.parse(content)
    except ValueError:
        return
    assert isinstance(file.credential(SITE), Credential | None)


# --- Places of files ------------------------------------------------------------------------------


def write(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("variable", "below"),
    [
        ("DOCKER_CONFIG", "config.json"),
        ("HOME", ".docker/config.json"),
        ("REGISTRY_AUTH_FILE", ""),
        ("XDG_RUNTIME_DIR", "containers/auth.json"),
    ],
)
def test_usual_places(tmp_path: Path, variable: str, below: str) -> None:
    """Credentials are found in the usual places of container tools (A39)."""
    write(tmp_path / "place" / below, auths())
    keychain = Keychain(None, {variable: str(tmp_path / "place")})
    assert keychain.for_repository(SITE) == ME
    assert keychain.for_repository(HUB) is None


def test_inline_text() -> None:
    """Credentials may be the text of an environment variable (A39)."""
    assert Keychain(None, {"DOCKER_AUTH_CONFIG": json.dumps(auths())}).for_repository(SITE) == ME


def test_empty_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable does not stand for a file in the working directory."""
    write(tmp_path / "config.json", auths())
    monkeypatch.chdir(tmp_path)
    variables = ["DOCKER_CONFIG", "HOME", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"]
    keychain = Keychain(None, dict.fromkeys([*variables, "DOCKER_AUTH_CONFIG"], ""))
    assert keychain.for_repository(SITE) is None


def test_order_of_places(tmp_path: Path) -> None:
    """The first place with a credential for a repository counts (A39)."""
    environ = {
        "DOCKER_CONFIG": str(tmp_path),
        "HOME": str(tmp_path),
        "REGISTRY_AUTH_FILE": str(tmp_path / "auth.json"),
        "DOCKER_AUTH_CONFIG": json.dumps({"auths": {"registry.example": {"registrytoken": "4"}}}),
    }
    keychain = Keychain(None, environ)
    write(tmp_path / ".docker" / "config.json", auths())
    assert keychain.for_repository(SITE) == Credential(registry_token="4")
    write(tmp_path / "auth.json", {"auths": {"registry.example": {"registrytoken": "3"}}})
    assert keychain.for_repository(SITE) == Credential(registry_token="3")
    write(tmp_path / "config.json", auths("docker.io"))
    assert keychain.for_repository(SITE) == Credential(registry_token="3")
    write(tmp_path / "config.json", auths())
    assert keychain.for_repository(SITE) == ME


def test_named_file_alone(tmp_path: Path) -> None:
    """A configured file is the only one that is read."""
    environ = {"DOCKER_AUTH_CONFIG": json.dumps(auths())}
    assert Keychain(tmp_path / "config.json", environ).for_repository(SITE) is None
    write(tmp_path / "config.json", auths(login="you:x"))
    keychain = Keychain(tmp_path / "config.json", environ)
    assert keychain.for_repository(SITE) == Credential("you", "x")


@pytest.mark.parametrize("content", [b"", b" \n", b"{}", b"\xef\xbb\xbf", b'{"auths": null}'])
def test_empty_file(tmp_path: Path, content: bytes, logged: Sequence[LogEvent]) -> None:
    """An empty file means anonymous access without a message (A38)."""
    path = tmp_path / "config.json"
    path.write_bytes(content)
    assert Keychain(path, {}).for_repository(SITE) is None
    assert logged == []


def test_no_file(tmp_path: Path, logged: Sequence[LogEvent]) -> None:
    """A file that is missing, a directory or a FIFO means anonymous access, with no wait (A38)."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "absent", tmp_path, tmp_path / "fifo", tmp_path / "fifo" / "x"):
        assert Keychain(path, {}).for_repository(SITE) is None
    assert logged == []


def test_byte_order_mark(tmp_path: Path) -> None:
    """A byte order mark at the start of a file is ignored (A38)."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(auths()), encoding="utf-8-sig")
    assert Keychain(path, {}).for_repository(SITE) == ME


def test_rotation(tmp_path: Path) -> None:
    """A changed or removed password counts from the next use on (A38)."""
    path = tmp_path / "config.json"
    keychain = Keychain(path, {})
    for login in ("me:one", "me:two"):
        write(path, auths(login=login))
        assert keychain.for_repository(SITE) == Credential(*login.split(":"))
    path.unlink()
    assert keychain.for_repository(SITE) is None


@pytest.mark.parametrize(
    "content",
    [
        b'{"auths": {"registry.example": {"auth": "c2VjcmV0',
        b"[]",
        b'{"auths": []}',
        b'{"credHelpers": "x"}',
        b'{"credsStore": 5}',
        b'{"auths": {}, "auths": {}}',
        b"[" * 100_000,
        b" " * (1 << 20) + b"{}",
        b"\xff",
    ],
    ids=range(9),
)
def test_malformed_file(tmp_path: Path, content: bytes, logged: Sequence[LogEvent]) -> None:
    """A file that becomes malformed is reported once, and its last valid content counts.

    Row A38.
    """
    path = tmp_path / "config.json"
    write(path, auths())
    keychain = Keychain(path, {})
    assert keychain.for_repository(SITE) == ME
    path.write_bytes(content)
    assert keychain.for_repository(SITE) == keychain.for_repository(SITE) == ME
    (line,) = map(formatEvent, logged)
    assert str(path) in line
    assert "c2VjcmV0" not in line
    write(path, {})
    assert keychain.for_repository(SITE) is None


def test_unreadable_file(tmp_path: Path, logged: Sequence[LogEvent]) -> None:
    """A file that becomes unreadable is reported, and its last content counts (A38)."""
    path = tmp_path / "config.json"
    write(path, auths())
    keychain = Keychain(path, {})
    assert keychain.for_repository(SITE) == ME
    path.unlink()
    path.symlink_to(path)
    assert keychain.for_repository(SITE) == ME
    assert len(logged) == 1


def test_wrong_entry_is_reported(tmp_path: Path, logged: Sequence[LogEvent]) -> None:
    """An unusable entry is reported with its file and its key, without its text."""
    write(tmp_path / "c.json", {"auths": {"registry.example": {"auth": "c2VjcmV0"}}})
    assert Keychain(tmp_path / "c.json", {}).for_repository(SITE) is None
    assert [formatEvent(event) for event in logged] == [
        f"credentials in {tmp_path}/c.json: auths of registry.example: auth has no colon"
    ]


# --- Helpers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("repository", "server"),
    [(SITE, "registry.example"), (HUB, "https://index.docker.io/v1/")],
)
def test_helper_is_asked(helper, tmp_path: Path, repository: Repository, server: str) -> None:
    """A helper gets the name of the registry in its own form."""
    environ = helper(ANSWER) | {"DOCKER_AUTH_CONFIG": '{"credsStore": "test"}'}
    assert Keychain(None, environ).for_repository(repository) == ME
    assert (tmp_path / "runs").read_text() == f"get {server}\n"


def test_order_of_helpers(helper, tmp_path: Path) -> None:
    """A registry's helper is preferred to the store, and the store to the file's own text (A34)."""
    helper(ANSWER.replace("secret", "from store"), "store")
    environ = helper(ANSWER.replace("secret", "from helper"), "own")
    file = {"credsStore": "store", **auths(login="me:from file")}
    path = tmp_path / "config.json"
    keychain = Keychain(path, environ)
    for change, secret in [
        ({"credHelpers": {"registry.example": "own"}}, "from helper"),
        ({"credHelpers": {"docker.io": "own"}}, "from store"),
        ({"credsStore": "absent"}, "from file"),
    ]:
        write(path, {**file, **change})
        assert keychain.for_repository(SITE) == Credential("me", secret)


def test_identity_token_of_a_helper(helper) -> None:
    """The secret of a helper for the user <token> is an identity token (A34)."""
    environ = helper(ANSWER.replace('"me"', '"<token>"'))
    environ["DOCKER_AUTH_CONFIG"] = '{"credsStore": "test"}'
    keychain = Keychain(None, environ)
    assert keychain.for_repository(SITE) == Credential(identity_token="secret")


@pytest.mark.parametrize(
    "script",
    [
        "echo credentials not found in native keychain; exit 1",
        "echo garbage",
        ANSWER + "; exit 1",
        'echo \'{"Username": "me"}\'',
        "echo '[]'",
        "",
        "yes",
        "sleep 60",
        "exec >&-; sleep 60",
        "sleep 60 & echo '{'",
        "kill -9 $$",
    ],
)
def test_helper_fails(helper, script: str, logged: Sequence[LogEvent]) -> None:
    """A helper that fails, hangs or prints too much is stopped, reported and ignored.

    Row A35.
    """
    helpers = CredentialHelpers(helper(script), runs_within=0.5)
    assert helpers.ask("test", "registry.example") is None
    (line,) = map(formatEvent, logged)
    assert line.startswith("credential helper test failed for registry.example: ")


@pytest.mark.parametrize("name", ["../test", "sub/test", "..", "", "te st", "/bin/sh", "absent"])
def test_helper_is_no_path(helper, name: str, tmp_path: Path) -> None:
    """A helper must be a plain name on the PATH (A36)."""
    environ = helper(ANSWER)
    (tmp_path / "docker-credential-sub").mkdir()
    (tmp_path / "docker-credential-sub" / "test").symlink_to("../docker-credential-test")
    assert CredentialHelpers(environ).ask(name, "registry.example") is None
    assert not (tmp_path / "runs").exists()


def test_helper_without_a_path(helper) -> None:
    """Without a PATH no helper is found."""
    helper(ANSWER)
    assert CredentialHelpers({}).ask("test", "registry.example") is None


@pytest.mark.parametrize(("script", "kept"), [(ANSWER, 3600.0), ("exit 1", 5.0)])
def test_answer_is_remembered(helper, tmp_path: Path, script: str, kept: float) -> None:
    """The answer of a helper is cached for an hour, its failure for five seconds (A37)."""
    clock = Clock()
    helpers = CredentialHelpers(helper(script), clock.seconds)
    for pause, runs in [(0.0, 1), (kept - 1, 1), (2.0, 2)]:
        clock.advance(pause)
        helpers.ask("test", "registry.example")
        assert len((tmp_path / "runs").read_text().splitlines()) == runs


def test_many_ask_at_once(helper, tmp_path: Path) -> None:
    """Concurrent requests for one registry run its helper once."""
    environ = helper(f"sleep 0.2; {ANSWER}") | {"DOCKER_AUTH_CONFIG": '{"credsStore": "test"}'}
    keychain = Keychain(None, environ)
    start = threading.Barrier(8)

    def ask(_: int) -> Credential | None:
        start.wait(10)
        return keychain.for_repository(SITE)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(8))) == [ME] * 8
    assert len((tmp_path / "runs").read_text().splitlines()) == 1


# --- Helpers that hang ----------------------------------------------------------------------------


@pytest.fixture
def pool() -> Iterator[OwnThreads]:
    """Start the threads that look up credentials."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    pool = OwnThreads(reactor, CREDENTIAL_THREADS, "credentials", is_awaited=False)  # type: ignore[arg-type]
    pool.start()
    yield pool
    pool.stop()


@within(30)
async def test_one_helper_for_all_that_ask(helper, tmp_path: Path, pool: OwnThreads) -> None:
    """Concurrent callers share one helper, and a caller that is cancelled affects no other."""
    environ = helper(f"sleep 0.3; {ANSWER}") | {"DOCKER_AUTH_CONFIG": '{"credsStore": "test"}'}
    shared = SharedKeychain(Keychain(None, environ), pool)
    asking = [Deferred.fromCoroutine(shared.for_repository(SITE)) for _ in range(100)]
    asking[0].addErrback(lambda failure: failure.trap(CancelledError) and None)
    await until(lambda: (tmp_path / "runs").exists())
    asking[0].cancel()
    assert await gatherResults(asking) == [None, *[ME] * 99]
    assert len((tmp_path / "runs").read_text().splitlines()) == 1
    assert await shared.for_repository(SITE) == ME


@within(30)
async def test_a_helper_that_hangs_delays_no_other_registry(
    helper, tmp_path: Path, pool: OwnThreads
) -> None:
    """Helpers that hang for some registries do not delay the credentials of others.

    The end of the keychain ends the helpers.
    """
    environ = helper(f'case "$server" in known*) {ANSWER};; *) sleep 61;; esac')
    known = Repository.parse("known.example/site")
    slow = [Repository.parse(f"slow{n}.example/site") for n in range(20)]
    names = [known.registry, *[each.registry for each in slow]]
    entries = {"credHelpers": dict.fromkeys(names, "test"), **auths("plain.example")}
    environ["DOCKER_AUTH_CONFIG"] = json.dumps(entries)
    shared = SharedKeychain(Keychain(None, environ), pool)
    assert await shared.for_repository(known) == ME
    asking = [Deferred.fromCoroutine(shared.for_repository(each)) for each in slow * 10]
    runs = tmp_path / "runs"
    await until(lambda: len(runs.read_text().splitlines()) == CREDENTIAL_THREADS - 1)
    assert await shared.for_repository(Repository.parse("plain.example/site")) == ME
    assert await shared.for_repository(known) == ME
    shared.stop()
    assert await gatherResults(asking) == [None] * 200
    assert len(runs.read_text().splitlines()) == CREDENTIAL_THREADS - 1
