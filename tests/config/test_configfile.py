"""Configuration files: the meaning of each key, and the messages for files that are refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobserve import configfile
from blobserve.config import (
    AccessLogRules,
    Address,
    BlobSpaceRules,
    Config,
    FileType,
    InlineVariable,
    Limits,
    LocalSource,
    RegistryRules,
    Replacement,
    RepositoryRules,
)
from blobserve.configfile import load, syntax
from blobserve.errors import ConfigError
from blobserve.names.platform import Platform

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "etc" / "blobserve.yaml"

Write = Callable[[str], Path]


@pytest.fixture
def written(tmp_path: Path) -> Write:
    """Return a function that writes a configuration file."""

    def write(text: str) -> Path:
        path = tmp_path / "b.yaml"
        path.write_text(text)
        return path

    return write


def problems(source: configfile.ConfigSource) -> list[str]:
    """Return the problems of a configuration, without the directory of the file."""
    with pytest.raises(ConfigError) as caught:
        load(source)
    directory = f"{source.parent}/" if isinstance(source, Path) else ""
    return [problem.removeprefix(directory) for problem in caught.value.problems]


def problem(keys: dict[str, Any], **top: Any) -> str:
    """Return the only problem of a mapping, without its name."""
    [found] = problems({"blobserve": keys, **top})
    return found.removeprefix("configuration: ")


def rules(**keys: Any) -> RepositoryRules:
    """Return the rules for a repository with these keys."""
    return load({"blobserve": {"repos": {"r.example/x": keys}}}).repos["r.example/x"]


def rule_problem(**keys: Any) -> str:
    """Return the only problem of these keys of a repository."""
    return problem({"repos": {"r.example/x": keys}}).removeprefix('repos."r.example/x".')


# --- Every key ------------------------------------------------------------------------------------


def test_every_key_of_a_repository(written: Write, tmp_path: Path) -> None:
    """Every key of a repository has the meaning in the reference."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.json").touch()
    path = written(
        """
blobserve:
  repos:
    registry.example.com/team/site:
      prePull: ["v1", v2]
      workdir: /ide/
      replacements: [{path: /ide/index.html, search: a, replacement: ""}]
      inlineStatic: [{search: "{{BASE}}", replacement: "${ide}"}]
      layers: all
      platform: linux/arm64
      tagMaxAge: 2m
      immutableTags: ["commit-*"]
      immutablePaths: ["assets/*"]
      headers: {access-control-allow-origin: "*"}
      types:
        "*.DATA": application/x-data
        "*.wasm.br": {type: application/wasm, coding: br}
      listing: true
      contentLocation: true
      fallback: /index.html
      notFound: /404.html
      earlyServe: true
      source: oci:site
"""
    )
    key = "registry.example.com/team/site"
    assert load(path).repos == {
        key: RepositoryRules(
            key=key,
            pre_pull=("v1", "v2"),
            workdir="/ide",
            replacements=(Replacement("ide/index.html", "a", ""),),
            inline_static=(InlineVariable("{{BASE}}", "${ide}"),),
            layers="all",
            platform=Platform("linux", "arm64"),
            tag_max_age=120.0,
            immutable_tags=("commit-*",),
            immutable_paths=("assets/*",),
            headers=(("Access-Control-Allow-Origin", "*"),),
            types=(
                FileType("*.data", "application/x-data"),
                FileType("*.wasm.br", "application/wasm", "br"),
            ),
            listing=True,
            content_location=True,
            fallback="/index.html",
            not_found="/404.html",
            early_serve=True,
            source=LocalSource("oci", tmp_path / "site"),
        )
    }


def test_limits_of_published_indexes() -> None:
    """Each bound on published indexes can be configured."""
    sizes = {"publishedIndexMinSize": "1MiB", "publishedIndexSize": "2MiB", "chunkCacheSize": 3}
    config = load({"blobserve": {"limits": {**sizes, "parallelChunkReads": 4}}})
    assert config.limits == Limits(
        published_index_min_size=1 << 20,
        published_index_size=2 << 20,
        chunk_cache_size=3,
        parallel_chunk_reads=4,
    )


def test_a_registry_that_opts_in_where_nothing_is_served(written: Write) -> None:
    """A registry's allowAnyRepo has no effect, and a warning, without the global one."""
    path = written(
        """
blobserve:
  repos: {x.example/y: {}}
  registries:
    a.example: {allowAnyRepo: true}
    b.example:
      allowAnyRepo: true
    c.example: {allowAnyRepo: false}
    d.example:
pprofAddr: ":6060"
"""
    )
    own, other, pprof = load(path).warnings
    problem = "has no effect unless allowAnyRepo under blobserve is true"
    assert own == f'{path}:5: registries."a.example".allowAnyRepo: {problem}'
    assert other == f'{path}:7: registries."b.example".allowAnyRepo: {problem}'
    assert "pprof" in pprof
    path.write_text(path.read_text().replace("blobserve:", "blobserve:\n  allowAnyRepo: true", 1))
    assert [each for each in load(path).warnings if "pprof" not in each] == []


def test_proxies_that_are_mapped_into_ipv6() -> None:
    """A network of IPv4-mapped addresses stands for the IPv4 network."""
    written = ["::ffff:10.0.0.0/104", "::ffff:192.0.2.1", "::/0", "2001:db8::/32"]
    trusted = load({"blobserve": {"trustedProxies": written}}).trusted_proxies
    assert [str(each) for each in trusted] == [
        "10.0.0.0/8",
        "192.0.2.1/32",
        "::/0",
        "2001:db8::/32",
    ]


def test_every_other_key(written: Write, tmp_path: Path) -> None:
    """Every key outside repositories has the meaning in the reference."""
    (tmp_path / "ca.pem").touch()
    (tmp_path / "auth.json").touch()
    path = written(
        """
blobserve:
  listen: ["tcp:0:interface=127.0.0.1", "systemd:domain=INET:name=http"]
  timeout: 1.5s
  drainTimeout: 1m30s
  allowAnyRepo: true
  registries:
    "Registry.internal:5000":
      {insecure: true, ca: ca.pem, allowHosts: [minio, "auth:8443"], allowAnyRepo: true}
  blobSpace: {location: cache, maxSizeBytes: 10GiB, gcInterval: 500ms, verifyOnRead: true}
  limits: {manifestSize: 1KiB, depth: 7, silenceTimeout: 2s}
  trustedProxies: ["10.0.0.0/8", "::1"]
accessLog: {format: json, file: access.log}
dockerAuth: auth.json
prometheusAddr: "[::1]:9500"
readinessProbeAddr: localhost:0
"""
    )
    config = load(path)
    assert config.listen == ("tcp:0:interface=127.0.0.1", "systemd:domain=INET:name=http")
    assert (config.timeout, config.drain_timeout, config.allow_any_repo) == (1.5, 90.0, True)
    hosts = frozenset({"minio", "auth:8443"})
    expected = RegistryRules(
        insecure=True, ca=tmp_path / "ca.pem", allow_hosts=hosts, allow_any_repo=True
    )
    assert config.registries == {"registry.internal:5000": expected}
    assert config.blob_space.location == tmp_path / "cache"
    assert (config.blob_space.max_size, config.blob_space.gc_interval) == (10 << 30, 0.5)
    assert (config.blob_space.verify_on_read, BlobSpaceRules().verify_on_read) == (True, False)
    assert config.limits == Limits(manifest_size=1024, depth=7, silence_timeout=2.0)
    assert [str(network) for network in config.trusted_proxies] == ["10.0.0.0/8", "::1/128"]
    assert config.access_log == AccessLogRules("json", str(tmp_path / "access.log"))
    assert config.docker_auth == tmp_path / "auth.json"
    assert config.prometheus_addr == Address("::1", 9500)
    assert config.readiness_addr == Address("localhost", 0)


def test_nothing_but_defaults() -> None:
    """A configuration without keys is valid and has every default."""
    config = load({"blobserve": {}})
    assert config == Config(blob_space=config.blob_space)
    assert config.blob_space.max_size is None


def test_a_config_is_taken_as_it_is() -> None:
    """A `Config` from an embedding application is used unchanged."""
    config = Config(timeout=7.0)
    assert load(config) is config


def test_the_shipped_configuration_shows_every_key() -> None:
    """The shipped file shows every key, works without root, and shows the default of each limit."""
    text = SHIPPED.read_text()
    tables = (
        configfile._OWN,
        configfile._BESIDE,
        configfile._REPOSITORY,
        configfile.sites._SITE,
        configfile._REGISTRY,
        configfile._BLOB_SPACE,
        configfile._ACCESS_LOG,
        configfile._REPLACEMENT,
        configfile._INLINE_VARIABLE,
        configfile._LIMITS,
    )
    keys = {key for table in tables for key in table} - {"pprofAddr"}
    assert [key for key in sorted(keys) if not re.search(rf"\b{key}:", text)] == []
    config = load(SHIPPED)
    assert config.listen == ("tcp:8080:interface=127.0.0.1",)
    assert config.limits == Limits()
    shown = re.search(r"# limits:\n((?:  #   .*\n)+)", text)
    assert shown is not None
    limits = "\n".join(line.replace("#", " ", 1) for line in shown[1].splitlines())
    uncommented = load(_yaml_mapping(f"blobserve:\n  limits:\n{limits}\n"))
    assert attrs.evolve(uncommented.limits, unpacked_size=None) == Limits()


def _yaml_mapping(text: str) -> Any:
    def plain(node: syntax.SyntaxNode) -> Any:
        if node.kind == "mapping":
            return {key: plain(each) for key, each in node.value.items()}
        return node.value

    return plain(syntax.from_yaml(text))


# --- The configuration of the original server -----------------------------------------------------

ORIGINAL = """{
\t"blobserve": {
\t\t"port": 32224,
\t\t"timeout": %s,
\t\t"repos": {
\t\t\t"docker.io/gitpod/ide": {
\t\t\t\t"prePull": ["commit-1", "1.10"],
\t\t\t\t"workdir": "/ide",
\t\t\t\t"replacements": [
\t\t\t\t\t{"search": "a\\/b", "replacement": "\\ud83d\\ude00", "path": "/ide/index.html"}
\t\t\t\t],
\t\t\t\t"inlineStatic": [{"search": "{{URL}}", "replacement": "${ide}"}]
\t\t\t},
\t\t\t"docker.io/alpine": {}
\t\t},
\t\t"allowAnyRepo": true,
\t\t"blobSpace": {"location": "/mnt/cache", "maxSizeBytes": 1073741824}
\t},
\t"dockerAuth": "",
\t"pprofAddr": "%s",
\t"prometheusAddr": ":9500",
\t"readinessProbeAddr": ""
}
"""


def test_the_originals_configuration(tmp_path: Path) -> None:
    """A config.json of the original server, with its tabs, loads with the same meaning."""
    path = tmp_path / "config.json"
    path.write_text(ORIGINAL % ('"5s"', ""))
    config = load(path)
    assert config.listen == ("tcp:32224:backlog=1024",)
    assert config.timeout == 5.0
    assert list(config.repos) == ["docker.io/gitpod/ide", "docker.io/library/alpine"]
    ide = config.repos["docker.io/gitpod/ide"]
    assert ide.pre_pull == ("commit-1", "1.10")
    assert ide.replacements == (Replacement("ide/index.html", "a/b", "\N{GRINNING FACE}"),)
    assert config.allow_any_repo
    assert config.blob_space.location == Path("/mnt/cache")
    assert config.blob_space.max_size == 1 << 30
    assert config.docker_auth is None
    assert config.prometheus_addr == Address("", 9500)
    assert config.readiness_addr is None
    assert config.warnings == ()


def test_a_bare_timeout_of_the_original_is_nanoseconds(tmp_path: Path) -> None:
    """In the original format a timeout without a unit is in nanoseconds."""
    path = tmp_path / "config.json"
    path.write_text(ORIGINAL % ("2500000000", ""))
    assert load(path).timeout == 2.5


@pytest.mark.parametrize("written", ['"0s"', "0", "null", '"0h0m"'])
def test_a_timeout_of_zero_in_the_originals_form_is_no_bound(tmp_path: Path, written: str) -> None:
    """In the original format a timeout of zero, or none, means no limit."""
    path = tmp_path / "config.json"
    path.write_text(ORIGINAL % (written, ""))
    assert load(path).timeout == math.inf
    path.write_text('{"blobserve": {"allowAnyRepo": true}}')
    assert load(path).timeout == math.inf
    path.write_text("blobserve: {allowAnyRepo: true, timeout: 0s}")
    with pytest.raises(ConfigError, match="must be greater than zero"):
        load(path)


def test_unknown_keys_of_the_originals_form(tmp_path: Path) -> None:
    """In the original format unknown keys cause a warning, and the case of keys does not matter."""
    path = tmp_path / "config.json"
    path.write_text(
        '{"blobserve": {"ALLOWANYREPO": true, "repos": {"x.example/y": {"workDir": "/a",\n'
        '"earlyServed": {"deep": 1}}}, "prometheusAddr": ":1"}, "port": 3, "dockerauths": null}'
    )
    config = load(path)
    assert config.allow_any_repo
    assert config.repos["x.example/y"].workdir == "/a"
    assert (config.listen, config.prometheus_addr) == ((), None)
    assert [warning.removeprefix(f"{path}:") for warning in config.warnings] == [
        '2: repos."x.example/y".earlyServed: unknown key; the nearest known one is earlyServe;'
        " it is ignored",
        "2: prometheusAddr: this key belongs beside blobserve, not under it; it is ignored",
        "2: port: this key belongs under blobserve; it is ignored",
        "2: dockerauths: unknown key; the nearest known one is dockerAuth; it is ignored",
    ]
    path.write_text('{"blobserve": {"allowAnyRepo": "yes", "extra": 1}}')
    with pytest.raises(ConfigError, match="expected true or false"):
        load(path)


def test_a_configuration_that_serves_nothing_is_warned_about() -> None:
    """A configuration that serves no repository loads with a warning."""
    [warning] = load({"blobserve": {"repos": {}}}).warnings
    assert warning.startswith("configuration: repos: no repository is listed")
    assert load({"blobserve": {"allowAnyRepo": True}}).warnings == ()
    assert load({"blobserve": {"repos": {"x.example/y": {}}}}).warnings == ()


def test_pprof_is_warned_about(tmp_path: Path) -> None:
    """A pprofAddr is accepted with a warning that it has no effect."""
    path = tmp_path / "config.json"
    path.write_text(ORIGINAL % ('"5s"', ":6060"))
    assert load(path).warnings == (
        f"{path}:20: pprofAddr: pprof is not supported; this key has no effect",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"blobserve": {},}', 'b.yaml:1: not JSON: expected a key in ""'),
        ('{"blobserve": {}\n "x": 1}', "b.yaml:2: not JSON: expected , or }"),
        ('{"blobserve" {}}', "b.yaml:1: not JSON: expected : after a key"),
        ('{"blobserve": {}} x', "b.yaml:1: not JSON: unexpected text after the end"),
        ('{"blobserve":\n {"timeout": NaN}}', "b.yaml:2: not JSON: NaN is not a JSON number"),
        ('{"blobserve": {"a": [1 2]}}', "b.yaml:1: not JSON: expected , or ]"),
        ('{"blobserve": ', "b.yaml:1: not JSON: Expecting value"),
        ('{"a":' + "[" * 99_999, "b.yaml: not JSON: nested too deeply"),
    ],
)
def test_bad_json(written: Write, text: str, said: str) -> None:
    """Invalid JSON is refused with the line of the error."""
    assert problems(written(text)) == [said]


def test_keys_of_json_have_lines_and_may_not_repeat(written: Write) -> None:
    """Problems in JSON have line numbers, and duplicate keys are problems."""
    text = '{"blobserve": {\n"port": "x",\n"timeout": "1s",\n"timeout": "2s"}}'
    assert problems(written(text)) == [
        'b.yaml:2: port: expected port number, got text "x"',
        "b.yaml:4: timeout: duplicate key, first on line 3",
    ]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(json_values, st.sampled_from([None, 1, "\t"]))
def test_json_means_what_the_standard_library_says(value: Any, indent: Any) -> None:
    """JSON is read as the standard library reads it."""

    def plain(node: syntax.SyntaxNode) -> Any:
        if node.kind == "mapping":
            return {key: plain(each) for key, each in node.value.items()}
        return [plain(each) for each in node.value] if node.kind == "list" else node.value

    assert plain(syntax.from_json(json.dumps(value, indent=indent))) == value


# --- Refused values -------------------------------------------------------------------------------


def test_every_problem_at_once_with_file_line_and_path(written: Write) -> None:
    """All problems of a file are listed in order, each with its file, line and path."""
    path = written(
        """blobserve:
  prot: 8080
  repos:
    x.example/y:
      workdir: [a]
      prePull: [1.10, "x y", 2024-01-01, true, no]
      workdri: /x
      workdir: /x
  registries: {"r.example:5000": {insecure: "yes"}}
limits: {}
docker_auth: red
"""
    )
    assert problems(path) == [
        "b.yaml:2: prot: unknown key; the nearest known one is port",
        'b.yaml:5: repos."x.example/y".workdir: expected text, got list',
        'b.yaml:6: repos."x.example/y".prePull[0]: expected text, got number; quote it: "1.10"',
        'b.yaml:6: repos."x.example/y".prePull[1]: a tag is 1 to 128 letters, digits, _ . or -,'
        " and does not begin with . or -",
        'b.yaml:6: repos."x.example/y".prePull[2]: expected text, got date; quote it: "2024-01-01"',
        'b.yaml:6: repos."x.example/y".prePull[3]: expected text, got boolean; quote it: "true"',
        'b.yaml:7: repos."x.example/y".workdri: unknown key; the nearest known one is workdir',
        'b.yaml:8: repos."x.example/y".workdir: duplicate key, first on line 5',
        'b.yaml:9: registries."r.example:5000".insecure: expected true or false, got text "yes"',
        "b.yaml:10: limits: this key belongs under blobserve",
        "b.yaml:11: docker_auth: unknown key; the nearest known one is dockerAuth",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "b.yaml: the key blobserve is missing"),
        ("- a", "b.yaml:1: expected mapping, got list"),
        ("blobserve:", "b.yaml:1: blobserve: expected mapping, got nothing"),
        ("blobserve: {a", "b.yaml:1: not YAML: "),
        ("a: b\n\tc: d", "b.yaml:2: not YAML: a tab; indent with spaces"),
        ("blobserve: {}\n---\nblobserve: {}", "b.yaml:2: not YAML: "),
        ("blobserve: {timeout: !!python/name:os.system x}", "b.yaml:1: the tag "),
        ("? [a]\n: b", "b.yaml:1: a key must be text"),
        ("blobserve: &a {repos: *a}", "b.yaml: not YAML: "),
        ("blobserve: \x01", "b.yaml: not YAML: "),
    ],
)
def test_bad_yaml(written: Write, text: str, said: str) -> None:
    """Invalid YAML, and YAML of an unsupported kind, is refused in one line."""
    [found] = problems(written(text))
    assert found.startswith(said)
    assert "\n" not in found


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A file that is missing or not text is named."""
    assert problems(tmp_path / "none.yaml") == ["none.yaml: No such file or directory"]
    (tmp_path / "b.yaml").write_bytes(b"# one\n# two \xff\xfe")
    assert problems(tmp_path / "b.yaml") == ["b.yaml:2: not UTF-8"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"port": 70000}, "port: expected port number, got number 70000"),
        ({"port": 1, "listen": "tcp:1"}, "listen: cannot be combined with port"),
        ({"listen": []}, "listen: must have at least one endpoint"),
        ({"listen": "tpc:80"}, "listen: not an endpoint description: Unknown endpoint type: 'tpc'"),
        (
            {"listen": "systemd:http"},
            "listen: expected systemd:domain=INET:name=<name of the socket>,"
            ' got text "systemd:http"',
        ),
        (
            {"timeout": 5},
            "timeout: expected duration with its unit, such as 30s, 5m or 500ms, got number 5",
        ),
        ({"timeout": "0s"}, "timeout: must be greater than zero"),
        (
            {"drainTimeout": "5"},
            'drainTimeout: expected duration with its unit, such as 30s, 5m or 500ms, got text "5"',
        ),
        ({"allowAnyRepo": "no"}, 'allowAnyRepo: expected true or false, got text "no"'),
        (
            {"blobSpace": {"maxSizeBytes": "10 apples"}},
            "blobSpace.maxSizeBytes: expected size such as 10GiB, or a number of bytes,"
            ' got text "10 apples"',
        ),
        (
            {"limits": {"depth": 0}},
            "limits.depth: expected whole number of at least 1, got number 0",
        ),
        ({"limits": {"manifestSize": 0}}, "limits.manifestSize: must be greater than zero"),
        (
            {"limits": {"manifest": 1}},
            "limits.manifest: unknown key; the nearest known one is manifestSize",
        ),
        (
            {"registries": {"nohost": {}}},
            "registries.nohost: expected a registry: host or host:port; a host without a dot needs"
            " its port",
        ),
        (
            {"registries": {"r.example": {"ca": "/nowhere/ca.pem"}}},
            'registries."r.example".ca: there is no file /nowhere/ca.pem',
        ),
        (
            {"registries": {"r.example": {"allowHosts": ["a b"]}}},
            'registries."r.example".allowHosts[0]: expected host or host:port',
        ),
        (
            {"registries": {"r.example": {"allowAnyRepo": "yes"}}},
            'registries."r.example".allowAnyRepo: expected true or false, got text "yes"',
        ),
        (
            {"trustedProxies": ["fe80::%eth0/64"]},
            "trustedProxies[0]: expected a network such as fe80::/10, without a zone",
        ),
        (
            {"trustedProxies": ["10.0.0.1/8"]},
            "trustedProxies[0]: expected a network such as 10.0.0.0/8:"
            " 10.0.0.1/8 has host bits set",
        ),
        (
            {"repos": {"alpine": {}}},
            "repos.alpine: begin it with a registry host such as docker.io or"
            " registry.example.com:5000",
        ),
        (
            {"repos": {"docker.io/alpine": {}, "docker.io/library/alpine": {}}},
            'repos."docker.io/library/alpine": another key also means docker.io/library/alpine',
        ),
        (
            {"repos": {"r.example/*": {"prePull": ["v1"]}}},
            'repos."r.example/*": prePull needs a single repository, but this key matches many',
        ),
        (
            {"prometheusAddr": ":1"},
            "prometheusAddr: this key belongs beside blobserve, not under it",
        ),
    ],
)
def test_wrong_values(keys: dict[str, Any], said: str) -> None:
    """An unusable value is refused with a message that names the usable ones."""
    assert problem(keys) == said


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"listing": "on"}, 'listing: expected true or false, got text "on"'),
        ({"contentLocation": 1}, "contentLocation: expected true or false, got number 1"),
        ({"layers": "last"}, 'layers: expected first or all, got text "last"'),
        ({"workdir": "/a/../b"}, "workdir: a path in an image must not contain .."),
        (
            {"fallback": "index.html"},
            'fallback: expected path of a page, such as /index.html, got text "index.html"',
        ),
        (
            {"notFound": "/404/"},
            'notFound: expected path of a page, such as /index.html, got text "/404/"',
        ),
        (
            {"source": "/x"},
            "source: expected oci:<directory>, oci-archive:<file> or docker-archive:<file>,"
            ' got text "/x"',
        ),
        ({"source": "oci:/nowhere"}, "source: there is no directory /nowhere"),
        ({"source": "oci-archive:/x.tar"}, "source: there is no file /x.tar"),
        ({"source": "docker-archive:/"}, "source: there is no file /"),
        ({"source": "oci:/"}, "source: / is not an image layout: it has no index.json"),
        (
            {"platform": "linux"},
            "platform: a platform is written os/architecture, such as linux/arm64",
        ),
        ({"prePull": "v1"}, 'prePull: expected list, got text "v1"; write ["v1"]'),
        ({"prePull": [["v1"]]}, "prePull[0]: expected text, got list"),
        (
            {"replacements": [{"path": "a", "search": "", "replacement": "b"}]},
            "replacements[0].search: must not be empty",
        ),
        (
            {"inlineStatic": [{"search": "", "replacement": "b"}]},
            "inlineStatic[0].search: must not be empty",
        ),
        ({"inlineStatic": [{"search": "a"}]}, "inlineStatic[0]: the key replacement is missing"),
        ({"headers": {"bad name": "x"}}, 'headers."bad name": not a header name'),
        (
            {"headers": {"X-A": "a\r\nSet-Cookie: b"}},
            'headers."X-A": a header\'s value is one line of printable Latin-1 characters',
        ),
        ({"headers": {"X-A": 1}}, 'headers."X-A": expected text, got number; quote it: "1"'),
        (
            {"headers": {"x-a": "1", "X-A": "2"}},
            'headers."X-A": another key also means X-A',
        ),
        (
            {"headers": {"content-type": "text/plain"}},
            'headers."content-type": blobserve sets this header itself; types sets it by file name',
        ),
        (
            {"types": {"*.a": "wasm"}},
            'types."*.a": expected text such as application/wasm, or a mapping with type and '
            'coding, got text "wasm"',
        ),
        ({"types": {"*.a": {"coding": "br"}}}, 'types."*.a": the key type is missing'),
        (
            {"types": {"*.a": {"type": "a/b", "coding": "deflate"}}},
            'types."*.a".coding: expected br or gzip or zstd, got text "deflate"',
        ),
        (
            {"types": {"a/*.a": "a/b"}},
            'types."a/*.a": expected a file name or a glob such as *.wasm, without /',
        ),
        ({"types": {"*.a": "a/b", "*.A": "a/c"}}, 'types."*.A": another key also means *.a'),
    ],
)
def test_wrong_rules(keys: dict[str, Any], said: str) -> None:
    """An unusable rule of a repository is refused with a message that names the usable ones."""
    assert rule_problem(**keys) == said


@pytest.mark.parametrize(
    "name",
    [
        "Content-Length",
        "transfer-encoding",
        "Connection",
        "Keep-Alive",
        "TE",
        "Trailer",
        "Upgrade",
        "Proxy-Authenticate",
        "Proxy-Authorization",
        "ETag",
        "Last-Modified",
        "Date",
        "Vary",
        "Content-Range",
        "Content-Encoding",
        "Accept-Ranges",
        "content-type",
        "Content-Location",
        "Location",
        "Allow",
        "Retry-After",
        "Repr-Digest",
    ],
)
def test_headers_of_our_own(name: str) -> None:
    """Headers that describe one response, and hop-by-hop headers, cannot be configured."""
    assert "blobserve sets this header itself" in rule_problem(headers={name: "x"})


def test_credentials_that_are_named_and_missing() -> None:
    """A dockerAuth file that does not exist is an error."""
    assert (
        problem({}, dockerAuth="/nowhere/a.json") == "dockerAuth: there is no file /nowhere/a.json"
    )


@pytest.mark.parametrize("written", ["9500", "localhost", "::1:9500", "a:70000", "a:x", "a:-1"])
def test_addresses_that_are_none(written: str) -> None:
    """An address must be host:port."""
    assert problem({}, prometheusAddr=written).startswith("prometheusAddr: expected host:port")


# --- Accepted values ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("5s", 5.0),
        ("1h30m", 5400.0),
        ("500ms", 0.5),
        ("1.5s", 1.5),
        ("1m0.5s", 60.5),
        ("2us", 2e-6),
    ],
)
def test_durations(written: str, seconds: float) -> None:
    """Durations use the notation of Go."""
    assert rules(tagMaxAge=written).tag_max_age == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (7, 7),
        ("7", 7),
        ("7B", 7),
        ("1KiB", 1024),
        ("1.5 MiB", 3 << 19),
        ("2GB", 2 * 10**9),
        (0, None),
    ],
)
def test_sizes(written: object, size: int | None) -> None:
    """Sizes are bytes or have a binary or decimal unit; a quota of 0 means none."""
    config = load({"blobserve": {"blobSpace": {"maxSizeBytes": written}}})
    assert config.blob_space.max_size == size


def test_yaml_1_2_scalars(written: Write) -> None:
    """Words, times and numbers that only YAML 1.1 converts are text."""
    path = written(
        "blobserve: {repos: {r.example/x: {prePull: [no, On, y, 1_000, 0b1, 1e, !!str 1.10]}}}"
    )
    assert load(path).repos["r.example/x"].pre_pull == (
        "no",
        "On",
        "y",
        "1_000",
        "0b1",
        "1e",
        "1.10",
    )


@pytest.mark.parametrize("text", ["1.10", "010", "0x1f", "1e5", "+1", "null", "~", ".5", "TRUE"])
def test_what_is_not_text_must_be_quoted(written: Write, text: str) -> None:
    """A tag that YAML reads as another type is an error unless it is quoted."""
    keys = "blobserve: {repos: {r.example/x: {inlineStatic: [{search: %s, replacement: a}]}}}"
    [found] = problems(written(keys % text))
    assert "prePull" not in found
    assert "expected text, got" in found
    quoted = load(written(keys % f'"{text}"'))
    assert quoted.repos["r.example/x"].inline_static[0].search == text


def test_quotes_are_suggested_only_where_they_help(written: Write) -> None:
    """A message suggests quotes only for text that is then valid."""
    keys = "blobserve: {repos: {r.example/x: {%s}}}"
    for rule, said in {
        "fallback: true": "expected path of a page, such as /index.html, got boolean true",
        "notFound: 404": "expected path of a page, such as /index.html, got number 404",
        "fallback:": "expected path of a page, such as /index.html, got nothing",
        "platform: true": "a platform is written os/architecture, such as linux/arm64",
        "source: true": "expected oci:<directory>, oci-archive:<file> or docker-archive:<file>,"
        " got boolean true",
        "prePull: [-1]": "a tag is 1 to 128 letters, digits, _ . or -, and does not begin with"
        " . or -",
        "prePull: 1.10": "expected list, got number 1.1",
        "immutableTags: [-1]": "no tag matches: a tag has letters, digits, _ . and -, and begins"
        " with no . or -",
        "types: {a: 1}": "expected text such as application/wasm, or a mapping with type and"
        " coding, got number 1",
        "workdir: 404": 'expected text, got number; quote it: "404"',
        "immutableTags: commit-*": 'expected list, got text "commit-*"; write ["commit-*"]',
        "immutableTags: ^v1": 'expected list, got text "^v1"',
        "immutableTags: true": "expected list, got boolean true",
        "headers: {X-A: true}": 'expected text, got boolean; quote it: "true"',
    }.items():
        [found] = problems(written(keys % rule))
        assert found.partition(": ")[2].partition(": ")[2] == said


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("file", "unknown key; write path"),
        ("filename", "unknown key; write path"),
        ("whatever", "unknown key; write path"),
        ("paht", "unknown key; the nearest known one is path"),
    ],
)
def test_a_replacement_with_another_word_for_its_path(key: str, said: str) -> None:
    """An unknown key in place of the one that is missing is one problem with its remedy."""
    rule = {key: "/index.html", "search": "a", "replacement": "b"}
    assert rule_problem(replacements=[rule]) == f"replacements[0].{key}: {said}"


def test_words_of_other_programs() -> None:
    """The usual word of another program for a key is answered with our key."""
    rule = {"path": "/a", "find": "a", "with": "b"}
    with pytest.raises(ConfigError) as caught:
        load({"blobserve": {"repos": {"r.example/x": {"replacements": [rule]}}}})
    texts = [text.rpartition("].")[2] for text in caught.value.problems]
    assert texts == ["find: unknown key; write search", "with: unknown key; write replacement"]
    assert rule_problem(spa=True) == "spa: unknown key; write fallback"
    assert rule_problem(root="/ide") == "root: unknown key; write workdir"
    assert problem({"registries": {"r.example": {"plainHttp": True}}}).endswith("write insecure")
    assert problem({"blobSpace": {"directory": "/x"}}).endswith("unknown key; write location")


def test_a_missing_key_stays_missing_in_the_originals_form(tmp_path: Path) -> None:
    """In the original format an unknown key is ignored, so a missing key is still a problem."""
    path = tmp_path / "config.json"
    rule = '{"file": "/a", "search": "a", "replacement": "b"}'
    repos = '{"x.example/y": {"replacements": [' + rule + "]}}"
    path.write_text('{"blobserve": {"repos": ' + repos + "}}")
    with pytest.raises(ConfigError, match="the key path is missing"):
        load(path)


@pytest.mark.parametrize(
    ("tag", "instead"),
    [
        ("^commit-.*$", "write commit-*"),
        ("commit-[0-9a-f]{40}", "write commit-*"),
        ("commit-[0-9a-f]+", "write commit-[0-9a-f]*"),
        (r"v\d+\.\d+", "write v[0-9]*.[0-9]*"),
        ("/^v1/", "write v1"),
        (".*", "write *"),
        (".+", "write ?*"),
        ("[^a]b", "write [!a]b"),
        ("(v1|v2)", "one glob for each alternative"),
        ("{v1,v2}", "write one glob for each"),
        ("v1|v2", "write one glob for each"),
        ("release/*", "no tag matches"),
        ("!v1", "no tag matches"),
    ],
)
def test_regular_expressions_as_globs_of_tags(tag: str, instead: str) -> None:
    """A glob that no tag can match is refused, with the glob to write for a regular expression."""
    found = rule_problem(immutableTags=["v1.*", tag])
    assert found.startswith("immutableTags[1]: ")
    assert instead in found


def test_doubtful_globs_of_tags() -> None:
    """A glob that may be meant as a regular expression is warned about."""
    rules = {"immutableTags": ["commit-.*", "v1.*", "[0-9]*", "*", "[!a]?"]}
    config = load({"blobserve": {"repos": {"r.example/x": rules}}})
    [warning] = config.warnings
    assert 'repos."r.example/x".immutableTags[0]: ' in warning
    assert warning.endswith("if it is a regular expression, write commit-*")


@pytest.mark.parametrize("name", [r".*\.js$", "^assets/", r"a\.js", "[a-f0-9]+.js", "(a|b).js"])
def test_regular_expressions_as_globs_of_files(name: str) -> None:
    """A regular expression in a list of globs of files is refused."""
    said = "this is a regular expression, but globs are expected"
    assert said in rule_problem(immutablePaths=[name])
    assert said in rule_problem(types={name.replace("/", ""): "text/plain"})


def test_names_that_only_look_like_regular_expressions() -> None:
    """Globs of files may have the characters that site generators put into names."""
    globs = ("*.c++", "(group)/*.js", "$id.js", "[[]slug].js", "*.min.*", "+page.js", "a.[0-9]*.js")
    assert rules(immutablePaths=list(globs)).immutable_paths == globs
    assert rules(immutablePaths=["a[$]"]).immutable_paths == ("a[$]",)


@pytest.mark.parametrize(
    ("key", "instead"),
    [
        ("https://r.example/team/site", "leave out https://: write r.example/team/site"),
        ("HTTP://r.example:5000/a/", "leave out HTTP://: write r.example:5000/a"),
        ("docker://r.example/a", "leave out docker://: write r.example/a"),
        ("https:/r.example/a", "leave out https:/: write r.example/a"),
        ("https://r.example/a:v1", "leave out https://: write r.example/a:v1"),
        ("r.example/team/*/site", "write r.example/team/*,"),
        ("r.example/team-*", "write r.example/*,"),
        ("r.example/team/**", "write r.example/team/*,"),
        ("r.example/*/*", "write r.example/*,"),
        ("r.example/team/.*", "write r.example/team/*,"),
        (r"^r\.example/team/site$", "write r.example/team/site"),
        (r"r\.example/team/(a|b)", "write r.example/team/*,"),
        ("*", "allowAnyRepo"),
        ("*/*", "allowAnyRepo"),
        ("*.example/a", "a registry has no *"),
        ("${REGISTRY}/a", "${REGISTRY} is not expanded"),
        ("r.example/$TEAM/a", "$TEAM is not expanded"),
    ],
)
def test_keys_of_repositories_in_other_forms(key: str, instead: str) -> None:
    """A URL, a star in the middle, a regular expression or a variable is answered with a remedy."""
    found = problem({"repos": {key: {}}})
    assert instead in found
    if "write r.example" in instead and instead.endswith(","):
        wide = found.partition("write ")[2].partition(",")[0]
        assert list(load({"blobserve": {"repos": {wide: {}}}}).repos) == [wide]


@pytest.mark.parametrize(
    ("host", "instead"),
    [
        ("https://r.example", "write r.example"),
        ("https://r.example:5000/v2/", "write r.example:5000"),
        ("r.example/team", "write r.example"),
        ("*.example", "without *"),
        ("$HOST", "variables are not expanded"),
    ],
)
def test_keys_of_registries_in_other_forms(host: str, instead: str) -> None:
    """A URL, a repository, a star or a variable as a registry is answered with a remedy."""
    assert instead in problem({"registries": {host: {}}})
    assert instead in problem({"registries": {"r.example": {"allowHosts": [host]}}})


@pytest.mark.parametrize("path", ["$HOME/x", "${HOME}/x", "/srv/${NAME:-x}", "a/$(id)/x"])
def test_variables_in_paths(path: str) -> None:
    """A variable of a shell in a path is refused, since it is not expanded."""
    said = "is not expanded: write the path itself"
    assert said in problem({"blobSpace": {"location": path}})
    assert said in problem({"registries": {"r.example": {"ca": path}}})
    assert said in rule_problem(source=f"oci:{path}")
    assert said in problem({}, dockerAuth=path)
    assert said in problem({}, accessLog={"file": path})


def test_variables_elsewhere() -> None:
    """A variable in another place is mentioned; in a path of an image it is a warning."""
    assert "${PORT} is not expanded" in problem({"port": "${PORT}"})
    assert "$MAX is not expanded" in problem({"blobSpace": {"maxSizeBytes": "$MAX"}})
    config = load({"blobserve": {"repos": {"r.example/x": {"workdir": "/${DIR}"}}}})
    assert "${DIR} is not expanded" in config.warnings[0]
    config = load({"blobserve": {"repos": {"r.example/x": {"immutablePaths": ["$id.js"]}}}})
    assert config.warnings == ()
    rule = {"search": "${x}", "replacement": "$HOME ${x}"}
    assert rules(inlineStatic=[rule]).inline_static[0].replacement == "$HOME ${x}"


def test_a_user_without_a_home() -> None:
    """A path that begins with an unknown user is a problem, not a crash."""
    said = problem({"blobSpace": {"location": "~no-such-user/x"}})
    assert said.endswith("~no-such-user has no home directory: write the path itself")


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        (":8080", "tcp:8080"),
        ("127.0.0.1:8080", "tcp:8080:interface=127.0.0.1"),
        ("[::1]:80", "tcp:80:interface=\\:\\:1"),
        ("8080", "tcp:8080"),
        (8080, "tcp:8080, or use port"),
    ],
)
def test_addresses_as_endpoints(written: object, instead: str) -> None:
    """An address in place of an endpoint is answered with the endpoint, which is then valid."""
    assert f"such as {instead}, got" in problem({"listen": written})
    endpoint = instead.partition(",")[0]
    assert load({"blobserve": {"listen": endpoint}}).listen == (endpoint,)


def test_zero_in_place_of_a_duration() -> None:
    """A zero where a duration must be positive is not answered with units."""
    assert problem({"timeout": 0}) == "timeout: must be greater than zero"
    assert problem({"blobSpace": {"gcInterval": 0}}).endswith("must be greater than zero")


def test_repository_keys_are_canonical() -> None:
    """Names of repositories and registries are normalized."""
    config = load(
        {
            "blobserve": {
                "repos": {"index.docker.io/nginx": {}, "docker.io/*": {}, "R.Example/a/*": {}},
                "registries": {"R.Example:5000": {}},
            }
        }
    )
    assert list(config.repos) == ["docker.io/library/nginx", "docker.io/*", "r.example/a/*"]
    assert list(config.registries) == ["r.example:5000"]


def test_no_key_leaves_a_trace_in_another_load(written: Write) -> None:
    """Loading a file twice gives the same configuration."""
    path = written("blobserve: {timeout: 9s}")
    assert load(path) == load(str(path))
