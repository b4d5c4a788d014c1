"""Proxies between us and registries: which one leads where, and what it is asked for."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from blobserve.configfile import load
from blobserve.errors import ConfigError
from blobserve.names.proxy import NoProxy, Proxies, Proxy, UnusableProxy
from blobserve.testing import make_image
from tests.oci.http.test_tls import Authority
from tests.support.parts.programs import free_port
from tests.support.parts.proxies import Proxy as RunningProxy
from tests.support.parts.proxies import Squid, Tinyproxy
from tests.support.scripted_registry import Answer, Scripted, cut, listening, redirect, status
from tests.support.services import Running, configured
from tests.support.services import running as service
from tests.support.source_fixtures import until
from tests.support.within import within

IMAGE = make_image({"a": b"through a proxy"})
USER = "reader:secret"
PROXY = Proxy.parse("http://proxy.example:3128")


# --- Names of proxies -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "proxy"),
    [
        ("http://p.example:3128", Proxy("http", "p.example", 3128)),
        ("http://p.example:3128/", Proxy("http", "p.example", 3128)),
        ("HTTP://P.Example", Proxy("http", "p.example", 80)),
        ("https://p.example", Proxy("https", "p.example", 443)),
        ("p.example:3128", Proxy("http", "p.example", 3128)),
        ("proxy", Proxy("http", "proxy", 80)),
        ("127.0.0.1:3128", Proxy("http", "127.0.0.1", 3128)),
        ("http://[::1]:3128", Proxy("http", "::1", 3128)),
        (" http://p.example:1 ", Proxy("http", "p.example", 1)),
        ("http://me:se%40cret@p.example:1", Proxy("http", "p.example", 1, "me", "se@cret")),
        ("http://me@p.example:1", Proxy("http", "p.example", 1, "me")),
        ("me:a:b@p.example", Proxy("http", "p.example", 80, "me", "a:b")),
    ],
)
def test_proxy(text: str, proxy: Proxy) -> None:
    """A proxy is named by its URL, without a scheme as well, as command-line tools take it."""
    assert Proxy.parse(text) == proxy
    assert "cret" not in repr(proxy)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "socks5://p.example:1080",
        "ftp://p.example",
        "http://",
        "http://:3128",
        "http://p.example:0",
        "http://p.example:65536",
        "http://p.example:x",
        "http://p.example/path",
        "http://p.example:1?q",
        "http://me:sec ret@p.example",
        "http://me:secret@",
        "p.example\r\nX: y",
    ],
)
def test_no_proxy_at_all(text: str) -> None:
    """Anything else is refused, and a password in it is not repeated."""
    with pytest.raises(ValueError, match=r"proxy|port") as raised:
        Proxy.parse(text)
    assert "sec" not in str(raised.value)


def test_environment() -> None:
    """Upper-case names go before lower-case ones, and an empty one counts as absent."""
    lower = {"https_proxy": "http://a.example", "http_proxy": "b.example", "no_proxy": "c.example"}
    proxies = Proxies.from_environment(lower)
    assert proxies.https == Proxy("http", "a.example", 80, setting="https_proxy")
    assert proxies.http == Proxy("http", "b.example", 80, setting="http_proxy")
    assert proxies.leading_to("https", "c.example", 443) is None
    both = {**lower, "HTTPS_PROXY": "http://d.example", "HTTP_PROXY": "", "NO_PROXY": "e.example"}
    proxies = Proxies.from_environment(both)
    assert proxies.https == Proxy("http", "d.example", 80, setting="HTTPS_PROXY")
    assert proxies.http == Proxy("http", "b.example", 80, setting="http_proxy")
    assert proxies.leading_to("https", "c.example", 443) == proxies.https
    assert proxies.leading_to("http", "c.example", 80) == proxies.http
    assert proxies.leading_to("https", "e.example", 443) is None
    assert Proxies.from_environment({}) == Proxies()
    unusable = Proxies.from_environment({"HTTPS_PROXY": "socks5://secret@p.example"}).https
    assert isinstance(unusable, UnusableProxy)
    assert unusable.setting == "HTTPS_PROXY"
    assert "secret" not in unusable.problem


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost.",
        "LOCALHOST",
        "registry.localhost",
        "localhost.localdomain",
        "ip6-localhost",
        "127.0.0.1",
        "127.1.2.3",
        "[::1]",
        "[::ffff:127.0.0.1]",
    ],
)
def test_loopback_has_no_proxy(host: str) -> None:
    """This machine is never reached through a proxy, also not through one in a configuration."""
    proxies = Proxies(PROXY, PROXY)
    for each in (proxies, Proxies().configured(PROXY, "key")):
        assert each.leading_to("https", host, 5000) is None
        assert each.leading_to("http", host, 5000) is None


def test_the_key_of_a_registry() -> None:
    """A registry's own ``proxy`` goes before the environment, NO_PROXY included."""
    environment = Proxies(PROXY, None, NoProxy.parse("*"))
    own = environment.configured(Proxy.parse("other.example:1"), "key")
    for scheme in ("http", "https"):
        assert own.leading_to(scheme, "a.example", 5000) == Proxy(
            "http", "other.example", 1, setting="key"
        )
    assert environment.configured("none", "key") == Proxies()
    assert environment.configured(None, "key") is environment


# As golang.org/x/net/http/httpproxy v0.47.0 does it: an entry, hosts that it names, and others.
@pytest.mark.parametrize(
    ("entry", "named", "others"),
    [
        ("example.com", "example.com a.example.com A.B.Example.com", "example.com. notexample.com"),
        (".example.com", "a.example.com", "example.com notexample.com"),
        ("*.example.com", "a.example.com b.a.example.com", "example.com"),
        ("EXAMPLE.com", "example.com", "example.org"),
        ("com", "example.com com", "example.org"),
        ("example.com:443", "example.com a.example.com", "example.com:5000"),
        ("example.com:5000", "example.com:5000 a.example.com:5000", "example.com"),
        (".example.com:5000", "a.example.com:5000", "a.example.com example.com:5000"),
        ("example.com:", "example.com example.com:5000", "example.org"),
        ("[example.com]:443", "example.com", "example.com:5000"),
        ("*", "example.com 8.8.8.8 [2001:db8::1]:5000", ""),
        ("a.example, *", "example.com", ""),
        ("*:443", "", "example.com"),
        ("*example.com", "", "example.com a.example.com"),
        ("10.0.0.0/8", "10.1.2.3 10.1.2.3:5000 [::ffff:10.1.2.3]", "11.0.0.1 ten.example"),
        ("10.1.2.3/8", "10.9.9.9", "11.0.0.1"),
        ("10.0.0.0/08", "10.1.2.3", "11.0.0.1"),
        ("10.0.0.0/255.0.0.0", "", "10.1.2.3"),
        ("10.0.0.0/33", "", "10.0.0.0"),
        ("::ffff:10.0.0.0/104", "10.1.2.3", "11.0.0.1"),
        ("::/0", "[2001:db8::1]", "10.1.2.3"),
        ("10.1.2.3", "10.1.2.3 10.1.2.3:5000", "10.1.2.4"),
        ("10.1.2.3:5000", "10.1.2.3:5000", "10.1.2.3"),
        ("[10.1.2.3]:443", "10.1.2.3", "10.1.2.3:5000"),
        ("010.1.2.3", "", "10.1.2.3 8.1.2.3"),
        ("2001:db8::1", "[2001:db8::1] [2001:db8::1]:5000", "[2001:db8::2]"),
        ("[2001:db8::1]:5000", "[2001:db8::1]:5000", "[2001:db8::1]"),
        ("[2001:db8::1]", "", "[2001:db8::1]"),
        ("2001:db8::/32", "[2001:db8::1]", "[2001:db9::1]"),
        ("bücher.example", "xn--bcher-kva.example a.xn--bcher-kva.example", "bcher.example"),
        (" example.com ,,:443, example.org", "example.com example.org", "example.net"),
        ("", "", "example.com"),
    ],
)
def test_no_proxy(entry: str, named: str, others: str) -> None:
    """NO_PROXY names hosts as Go's standard client reads it."""
    proxies = Proxies(PROXY, PROXY, NoProxy.parse(entry))
    for host in (*named.split(), *others.split()):
        name, port = host, 443
        if found := re.fullmatch(r"(.*[^:]):([0-9]+)", host):
            name, port = found[1], int(found[2])
        is_led = proxies.leading_to("https", name, port) is not None
        assert is_led is (host in others.split()), host


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("http://me:secret@p.example:x", "it is not the URL of a proxy"),
        ("socks5://p.example", "the URL of a proxy begins with http:// or https://"),
        ("", "it is not the URL of a proxy"),
        (3128, "got number"),
        (None, "got nothing"),
        (False, "got boolean"),
    ],
)
def test_wrong_key(value: object, problem: str) -> None:
    """A wrong ``proxy`` is a problem of the configuration, and no password in it is repeated."""
    own = {"repos": {"r.example/a": {}}, "registries": {"r.example": {"proxy": value}}}
    with pytest.raises(ConfigError) as raised:
        load({"blobserve": own})
    said = str(raised.value)
    assert 'registries."r.example".proxy: expected the URL of a proxy, such as' in said
    assert problem in said
    assert "secret" not in said


@pytest.mark.parametrize(
    ("value", "proxy"),
    [("none", "none"), ("None", "none"), ("p.example:1", Proxy("http", "p.example", 1))],
)
def test_key(value: str, proxy: object) -> None:
    """``proxy`` is a URL, or the word none."""
    own = {"repos": {"r.example/a": {}}, "registries": {"r.example": {"proxy": value}}}
    assert load({"blobserve": own}).registries["r.example"].proxy == proxy


# --- Real proxies ---------------------------------------------------------------------------------


@attrs.frozen
class Stand:
    """A registry with TLS and one in clear, as they are reached at an address that is not loopback.

    A connection to 0.0.0.0 leads to this machine. It is no loopback address by the rules.
    """

    authority: Authority
    registry: Scripted
    directory: Path

    def own(self, *others: Scripted, **rules: Any) -> dict[str, Any]:
        """Return what serves the registry, which may lead to `others`, under ``blobserve``."""
        ca = self.authority.write(self.directory / "ca.pem")
        hosts = [each.host for each in others]
        own = {"ca": str(ca), "allowHosts": hosts, **rules}
        return {
            "timeout": "20s",
            "repos": {f"{self.registry.host}/*": {}},
            "registries": {self.registry.host: own},
        }


@asynccontextmanager
async def outside(authority: Authority | None = None) -> AsyncIterator[Scripted]:
    """Let a registry listen that is named by an address that is not loopback."""
    tls = authority and authority.issue("0.0.0.0")
    async with listening(tls=tls) as registry:
        registry.host = registry.host.replace("127.0.0.1", "0.0.0.0")
        yield registry


@asynccontextmanager
async def standing(directory: Path) -> AsyncIterator[Stand]:
    """Let such a registry with TLS and an authority of its own listen."""
    authority = Authority.make(directory)
    async with outside(authority) as registry:
        yield Stand(authority, registry, directory)


@pytest.fixture(params=[Tinyproxy, Squid], ids=["tinyproxy", "squid"])
def proxy(
    request: pytest.FixtureRequest, part_directory: Callable[[], Path], running: Any
) -> RunningProxy:
    """A proxy that anybody on this machine may use."""
    return running(request.param(part_directory()))  # type: ignore[no-any-return]


@pytest.fixture(params=[Tinyproxy, Squid], ids=["tinyproxy", "squid"])
def user_proxy(
    request: pytest.FixtureRequest, part_directory: Callable[[], Path], running: Any
) -> RunningProxy:
    """A proxy that asks for a user and a password."""
    return running(request.param(part_directory(), "carol:hush"))  # type: ignore[no-any-return]


async def page(server: Running, tagged: object) -> bytes:
    """Fetch the file of an image."""
    return (await server.fetch(f"{tagged}/a")).body


@within(60)
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
async def test_a_pull_through_a_proxy(
    tmp_path: Path, proxy: RunningProxy, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Manifests, tokens, blobs and storage come through a proxy, which sees hosts and no more.

    A transfer that is cut off goes on through it as well.
    """
    monkeypatch.setenv(name, proxy.url)
    async with standing(tmp_path) as stand, outside(stand.authority) as storage:
        registry = stand.registry
        registry.has_tokens, registry.user = True, USER
        tagged = registry.push("team/site:v1", IMAGE)
        storage.push("team/site:v1", IMAGE)
        place = f"https://{storage.host}/v2/team/site/blobs/{IMAGE.layers[0].digest}"
        registry.always("blobs", redirect(place))
        storage.script("blobs", cut(10))
        login = {"auths": {registry.host: {"auth": base64.b64encode(USER.encode()).decode()}}}
        (tmp_path / "auth.json").write_text(json.dumps(login))
        config = configured(tmp_path, stand.own(storage), dockerAuth=str(tmp_path / "auth.json"))
        async with service(config) as server:
            assert await page(server, tagged) == b"through a proxy"
        assert len(storage.asked("blobs")) == 2
        assert registry.asked("/token")
    await until(proxy.requests)
    assert set(proxy.requests()) == {f"CONNECT {each.host}" for each in (registry, storage)}


@within(60)
async def test_a_proxy_with_a_password(
    tmp_path: Path, user_proxy: RunningProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user in the URL of a proxy is shown to it alone; without one the error says so."""
    monkeypatch.setenv("HTTPS_PROXY", user_proxy.url)
    async with standing(tmp_path) as stand:
        tagged = stand.registry.push("team/site:v1", IMAGE)
        async with service(configured(tmp_path, stand.own())) as server:
            assert await page(server, tagged) == b"through a proxy"
        assert not any("proxy-authorization" in each.headers for each in stand.registry.requests)
        before = stand.registry.accepted
        for user, said in (("", "asks for a user and a password"), ("x:y@", "refuses its user")):
            own = stand.own(proxy=f"http://{user}{user_proxy.host}")
            async with service(configured(tmp_path / f"space{user[:1]}", own)) as server:
                body = (await page(server, tagged)).decode()
            setting = f'registries."{stand.registry.host}".proxy'
            assert f"its proxy ({setting}) {said}" in body
            assert user_proxy.host not in body
        assert stand.registry.accepted == before


@within(60)
async def test_plain_http_through_a_proxy(
    tmp_path: Path, user_proxy: RunningProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry in clear is asked for through the proxy of HTTP_PROXY, by whole URLs."""
    monkeypatch.setenv("HTTP_PROXY", user_proxy.url)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")
    async with outside() as registry:
        registry.user = USER
        tagged = registry.push("team/site:v1", IMAGE)
        login = {"auths": {registry.host: {"auth": base64.b64encode(USER.encode()).decode()}}}
        (tmp_path / "auth.json").write_text(json.dumps(login))
        own = {
            "timeout": "20s",
            "repos": {f"{registry.host}/*": {}},
            "registries": {registry.host: {"insecure": True}},
        }
        config = configured(tmp_path, own, dockerAuth=str(tmp_path / "auth.json"))
        async with service(config) as server:
            assert await page(server, tagged) == b"through a proxy"
            asked = [each.target for each in registry.requests]
            assert not any("proxy-authorization" in each.headers for each in registry.requests)
        await until(lambda: len(user_proxy.requests()) == len(asked))
        assert user_proxy.requests() == [f"GET http://{registry.host}{target}" for target in asked]
        own["registries"] = {registry.host: {"insecure": True, "proxy": user_proxy.host}}
        async with service(configured(tmp_path / "other", own)) as server:
            said = (await page(server, tagged)).decode()
        assert f'its proxy (registries."{registry.host}".proxy) asks for a user' in said
        assert len(registry.requests) == len(asked)


@within(60)
async def test_a_refusal_of_a_proxy_leaves_no_connection(tmp_path: Path) -> None:
    """After a proxy of plain HTTP has asked for a password, its connection is closed."""
    async with listening() as proxy, outside() as registry:
        proxy.always("GET", lambda *_: Answer(407, body=bytes(16 << 20)))
        proxied = {"insecure": True, "proxy": f"http://{proxy.host}"}
        own = {"repos": {f"{registry.host}/*": {}}, "registries": {registry.host: proxied}}
        async with service(configured(tmp_path, own)) as server:
            for n in range(3):
                said = (await page(server, f"{registry.host}/team/site:v{n}")).decode()
                assert "asks for a user" in said
            assert (len(proxy.requests), registry.requests) == (3, [])
        await until(lambda: not proxy.connections)


@within(60)
@pytest.mark.parametrize("way", ["NO_PROXY", "none", "key"])
async def test_past_the_proxy_of_the_environment(
    tmp_path: Path,
    part_directory: Callable[[], Path],
    running: Any,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    """NO_PROXY, ``proxy: none`` and a proxy of the registry's own go before HTTPS_PROXY."""
    proxy, other = (running(Tinyproxy(part_directory())) for _ in range(2))
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    async with standing(tmp_path) as stand:
        rules: dict[str, object] = {}
        if way == "NO_PROXY":
            monkeypatch.setenv("no_proxy", "other.example,0.0.0.0/8")
        else:
            rules["proxy"] = "none" if way == "none" else other.url
        tagged = stand.registry.push("team/site:v1", IMAGE)
        async with service(configured(tmp_path, stand.own(**rules))) as server:
            assert await page(server, tagged) == b"through a proxy"
        assert proxy.requests() == []
        assert bool(other.requests()) is (way == "key")


@within(60)
@pytest.mark.parametrize(
    "place",
    [
        "https://10.0.0.1/x",
        "https://169.254.169.254/latest/meta-data",
        "https://0.0.0.0/x",
        "https://[fd00::1]/x",
        "https://[::ffff:10.0.0.1]/x",
        "https://2130706433/x",
        "https://127.1/x",
        "https://0x7f000001/x",
        "https://010.0.0.1/x",
        "https://10.0.0.1./x",
        "https://cdn.10/x",
        "https://127.0.0.1/x",
        "https://localhost/x",
    ],
)
async def test_private_addresses_behind_a_proxy(
    tmp_path: Path, part_directory: Any, running: Any, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A private address in a redirect is refused, however it is spelled, and no proxy hears of it.

    Neither does a proxy hear of a realm there.
    """
    proxy = running(Tinyproxy(part_directory()))
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    async with standing(tmp_path) as stand:
        tagged = stand.registry.push("team/site:v1", IMAGE)
        stand.registry.always("blobs", redirect(place))
        async with service(configured(tmp_path, stand.own())) as server:
            answer = await server.fetch(f"{tagged}/a")
            assert answer.status == 502
            assert b"its address is not public" in answer.body
            challenge = f'Bearer realm="{place}"'
            stand.registry.always("/v2/", status(401, WWW_Authenticate=challenge))
            other = await server.fetch(f"{stand.registry.host}/team/other:v1/a")
            assert b"its address is not public" in other.body
        await until(proxy.requests)
        assert set(proxy.requests()) == {f"CONNECT {stand.registry.host}"}


@within(60)
async def test_ports_behind_a_proxy(
    tmp_path: Path, part_directory: Any, running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy is asked for port 443 and for ports that the configuration names, for no others."""
    proxy = running(Squid(part_directory(), hosts={"cdn.example": "127.0.0.1"}))
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    async with standing(tmp_path) as stand:
        tagged = stand.registry.push("team/site:v1", IMAGE)
        digest = IMAGE.layers[0].digest
        own = stand.own()
        own["allowAnyRepo"] = True
        async with service(configured(tmp_path, own)) as server:
            stand.registry.always("blobs", redirect(f"https://cdn.example:8443/{digest}"))
            refused = (await page(server, tagged)).decode()
            key = f'add "cdn.example:8443" to registries."{stand.registry.host}".allowHosts'
            assert "port 8443 of cdn.example is not allowed through a proxy" in refused
            assert key in refused
            unlisted = await server.fetch("r.example:8443/x:v1/a")
            assert b"port 8443 of r.example is not allowed through a proxy" in unlisted.body
            assert unlisted.status == 502
            assert (await server.fetch("r.example/x:v1/a")).status == 502
            assert "CONNECT r.example:443" in proxy.requests()
        assert {each for each in proxy.requests() if "8443" in each} == set()
        rules = own["registries"][stand.registry.host]
        rules["allowHosts"] = ["cdn.example:8443"]
        stand.registry.push("team/more:v1", IMAGE)
        async with service(configured(tmp_path / "other", own)) as server:
            assert (await server.fetch(f"{stand.registry.host}/team/more:v1/a")).status == 502
            assert "CONNECT cdn.example:8443" in proxy.requests()


@within(60)
async def test_a_name_that_the_proxy_alone_resolves(
    tmp_path: Path, part_directory: Any, running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry is reached by a name that only the proxy knows, its certificate is for that name.

    A certificate for another name is refused, through a proxy as without one.
    """
    names = {"registry.example": "127.0.0.1", "other.example": "127.0.0.1"}
    proxy = running(Squid(part_directory(), hosts=names))
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    authority = Authority.make(tmp_path)
    async with listening(tls=authority.issue("registry.example")) as registry:
        port = registry.host.rpartition(":")[2]
        ca = str(authority.write(tmp_path / "ca.pem"))
        hosts = [f"{name}:{port}" for name in names]
        own = {
            "timeout": "20s",
            "repos": {f"{host}/*": {} for host in hosts},
            "registries": {host: {"ca": ca} for host in hosts},
        }
        registry.push("team/site:v1", IMAGE)
        async with service(configured(tmp_path, own)) as server:
            assert await page(server, f"{hosts[0]}/team/site:v1") == b"through a proxy"
            said = await page(server, f"{hosts[1]}/team/site:v1")
            assert b"the certificate of other.example" in said


@within(60)
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("http://127.0.0.1:{port}", "its proxy (HTTPS_PROXY) does not accept connections"),
        ("http://absent.invalid:{port}", "its proxy (HTTPS_PROXY) has a name that does not res"),
        ("socks5://127.0.0.1:{port}", "HTTPS_PROXY cannot be used: the URL of a proxy begins with"),
        ("https://127.0.0.1:{plain}", "its proxy (HTTPS_PROXY) does not speak TLS"),
        ("http://127.0.0.1:{tls}", "its proxy (HTTPS_PROXY) "),
        ("http://127.0.0.1:{plain}", "its proxy (HTTPS_PROXY) refuses to connect to 0.0.0.0:"),
    ],
)
async def test_a_proxy_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, said: str
) -> None:
    """Without its proxy a registry is not reached, past it neither, and the error names the key."""
    async with standing(tmp_path) as stand, listening() as plain:
        ports = {
            "port": free_port(),
            "plain": plain.host.rpartition(":")[2],
            "tls": stand.registry.host.rpartition(":")[2],
        }
        monkeypatch.setenv("HTTPS_PROXY", value.format(**ports))
        plain.always("CONNECT", status(403))
        tagged = stand.registry.push("team/site:v1", IMAGE)
        async with service(configured(tmp_path, stand.own())) as server:
            answer = await server.fetch(f"{tagged}/a")
            assert answer.status == 502
            assert said in answer.body.decode()
        assert stand.registry.requests == []
