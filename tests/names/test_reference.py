"""References, repositories, and URLs that begin with one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobserve.errors import MalformedReference
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference, Repository, canonical_registry, split_path

SHA256 = "sha256:" + "a1" * 32
SHA512 = "sha512:" + "b2" * 64
ALNUM = "abcdefghijklmnopqrstuvwxyz0123456789"

words = st.text(ALNUM, min_size=1, max_size=8)
separators = st.sampled_from([".", "_", "__", "-", "--", "---"])
components = st.lists(st.tuples(words, separators), max_size=2).flatmap(
    lambda parts: words.map(lambda last: "".join(map("".join, parts)) + last)
)
ports = st.integers(1, 65535).map(":{}".format)
hosts = st.one_of(
    st.sampled_from(["docker.io", "index.docker.io", "localhost", "127.0.0.1", "[::1]", "a.b-c.d"]),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map("[{}]".format),
    st.lists(words, min_size=1, max_size=3).map(lambda labels: ".".join([*labels, "example"])),
)
registries = st.one_of(hosts, st.builds(str.__add__, hosts, ports))
repositories = st.builds(
    lambda registry, path: "/".join([registry, *path]),
    registries,
    st.lists(components, min_size=1, max_size=4),
)
tags = st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
references = st.builds(
    lambda repository, tag, digest: (
        repository + (tag or "") + (digest if digest or tag else "@" + SHA256)
    ),
    repositories,
    st.one_of(st.none(), tags.map(":".__add__)),
    st.sampled_from(["", "@" + SHA256, "@" + SHA512]),
)


@given(references)
def test_round_trip(text: str) -> None:
    """The canonical text of a reference parses to the same reference."""
    reference = Reference.parse(text)
    assert Reference.parse(str(reference)) == reference
    assert Repository.parse(str(reference.repository)) == reference.repository


@given(references, st.one_of(st.none(), st.binary()))
def test_path_is_split_where_the_reference_ends(text: str, rest: bytes | None) -> None:
    """A URL path is split after the reference, for any path of a file."""
    path = text.encode() + (b"" if rest is None else b"/" + rest)
    assert split_path(path) == (Reference.parse(text), rest)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("docker.io/alpine", "docker.io/library/alpine"),
        ("index.docker.io/alpine", "docker.io/library/alpine"),
        ("Index.Docker.IO/library/alpine", "docker.io/library/alpine"),
        ("docker.io/team/site", "docker.io/team/site"),
        ("docker.io:443/alpine", "docker.io:443/alpine"),
        ("localhost/x", "localhost/x"),
        ("registry:5000/x", "registry:5000/x"),
        ("[::1]:5000/x/y", "[::1]:5000/x/y"),
        ("[0:0:0:0:0:0:0:1]/x", "[::1]/x"),
        ("127.0.0.1:5000/x", "127.0.0.1:5000/x"),
        ("a.b/c__d/e.f/g---h", "a.b/c__d/e.f/g---h"),
        ("a.b/" + "x" * 255, "a.b/" + "x" * 255),
    ],
)
def test_canonical_repository(text: str, canonical: str) -> None:
    """Hosts are lower case, Docker Hub has one name, and its official images are in library/.

    Rows N01, N02.
    """
    assert str(Repository.parse(text)) == canonical


@pytest.mark.parametrize(
    "registry",
    [
        "",
        "alpine",
        "a..b",
        ".a.b",
        "a.b.",
        "-a.b",
        "a-.b",
        "a_b.c",
        "a.b:",
        "a.b:0",
        "a.b:080",
        "a.b:65536",
        "a.b:5000:5000",
        "user@a.b",
        "127.1",
        "127.0.0.01",
        "256.0.0.1",
        "0x7f000001:80",
        "2130706433:80",
        "::1",
        "[::1",
        "[::1]x",
        "[::1%eth0]",
        "[127.0.0.1]",
        "\u212a.example",
        "a.b\n",
        "a" * 64 + ".b",
        ".".join(["a" * 63] * 4) + ".b",
    ],
)
def test_no_registry(registry: str) -> None:
    """An invalid host, or an address in an unusual notation, is refused."""
    assert canonical_registry(registry) is None
    with pytest.raises(MalformedReference, match="begin it with a registry host such as"):
        Repository.parse(f"{registry}/x")


@pytest.mark.parametrize(
    "path",
    [
        *["", "X", "x//y", "/x", "x/", "..", "x/../y", ".x", "x.", "x..y", "x___y", "-x", "x_-y"],
        *["x y", "x\0", "x%2fy", "é", "٣", "x\n", "x:1", "x@y", "x" * 256],
    ],
)
def test_no_repository(path: str) -> None:
    """The path of a repository follows the grammar of the distribution specification (N04)."""
    with pytest.raises(MalformedReference):
        Repository.parse(f"registry.example/{path}")


@pytest.mark.parametrize(
    ("path", "reference", "rest"),
    [
        (b"docker.io/alpine:3/a", "docker.io/library/alpine:3", b"a"),
        (b"h:5000/r:tag/a/b", "h:5000/r:tag", b"a/b"),
        (b"h:5000/r:tag", "h:5000/r:tag", None),
        (b"h:5000/r:tag/", "h:5000/r:tag", b""),
        (b"h:5000/r:tag//a", "h:5000/r:tag", b"/a"),
        (b"h.x/a/b/c:1/d:2/e@f", "h.x/a/b/c:1", b"d:2/e@f"),
        (b"h.x/r:1/h.x/r:2/index.html", "h.x/r:1", b"h.x/r:2/index.html"),
        (b"h.x/r:1/../../etc/passwd", "h.x/r:1", b"../../etc/passwd"),
        (b"h.x/r:1/\xff\0", "h.x/r:1", b"\xff\0"),
        (f"h.x/r@{SHA256}/a".encode(), f"h.x/r@{SHA256}", b"a"),
        (f"h.x/r:1@{SHA512}/a".encode(), f"h.x/r:1@{SHA512}", b"a"),
        (b"[::1]:5000/r:1/a", "[::1]:5000/r:1", b"a"),
    ],
)
def test_split_path(path: bytes, reference: str, rest: bytes | None) -> None:
    """The path of a URL has a reference and, after the next slash, a file."""
    assert split_path(path) == (Reference.parse(reference), rest)
    assert str(split_path(path)[0]) == reference


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        (b"", "begin it with a registry host such as docker.io"),
        (b"alpine", "begin it with a registry host"),
        (b"alpine:latest/a", "begin it with a registry host"),
        (b"team/site:1/a", "begin it with a registry host"),
        (b"\xff.x/r:1", "begin it with a registry host"),
        (b"h.x", "no repository: a reference is <registry>/<repository>:<tag>"),
        (b"alpine:3/", "no repository"),
        (b"h.x/r", "no tag and no digest: add :<tag> or @sha256:<digest>"),
        (b"h.x/r/Index.HTML", "no tag and no digest"),
        (b"h.x/r/\xff", "no tag and no digest"),
        (b"h.x//r:1/a", "a repository has lower-case"),
        (b"h.x/Site:1/a", "a repository has lower-case"),
        (b"h.x/r%3A1:2/a", "a repository has lower-case"),
        (b"h.x/:1/a", "no repository after the registry host"),
        (b"h.x/r:/a", "a tag is 1 to 128 letters"),
        (b"h.x/r:-1/a", "a tag is 1 to 128 letters"),
        (b"h.x/r:1:2/a", "a tag is 1 to 128 letters"),
        (b"h.x/r:\xc3\xa9/a", "a tag is 1 to 128 letters"),
        (b"h.x/r:" + b"1" * 129, "a tag is 1 to 128 letters"),
        (b"h.x/r@/a", "a digest begins with sha256: or sha512:"),
        (b"h.x/r@md5:0/a", "a digest begins with sha256: or sha512:"),
        (b"h.x/r@sha256:0/a", "64 lower-case hex digits"),
        (f"h.x/r@{SHA256}:1/a".encode(), "64 lower-case hex digits"),
        (f"h.x/r@{SHA256}@{SHA256}/a".encode(), "64 lower-case hex digits"),
    ],
)
def test_problem_is_named(path: bytes, problem: str) -> None:
    """An invalid reference is refused with the missing or wrong part.

    Rows N02, N04.
    """
    with pytest.raises(MalformedReference) as raised:
        split_path(path)
    assert problem in str(raised.value)


@given(st.one_of(st.binary(), st.text("aZ0.:/@[]_-~é\0").map(str.encode)))
def test_hostile_path(path: bytes) -> None:
    """Any bytes parse to a reference and a path, or raise `MalformedReference`."""
    try:
        reference, rest = split_path(path)
    except MalformedReference:
        return
    assert Reference.parse(str(reference)) == reference
    assert rest is None or path.endswith(b"/" + rest)


@pytest.mark.parametrize("unit", ["a", "a-", "a.", "a/", "a_", "-", "_", ":", "@", "/", "[:", "0."])
@pytest.mark.parametrize("frame", ["{}", "a.b/{}", "a.b/r:~{}", "a.b/r@{}", "a.b/{}!:1/x"])
def test_long_input(unit: str, frame: str) -> None:
    """A megabyte of any text is refused in linear time."""
    with pytest.raises(MalformedReference):
        split_path(frame.format(unit * (1_000_000 // len(unit))).encode())


def test_digest_form() -> None:
    """The digest form of a reference has the digest and no tag."""
    digest = Digest.parse(SHA256)
    reference = Reference.parse("h.x/r:1").at(digest)
    assert str(reference) == f"h.x/r@{SHA256}"
    assert reference == Reference.parse(str(reference))


@pytest.mark.parametrize(
    ("written", "bare"),
    [
        ("https://r.example/team/site:v1", "r.example/team/site:v1"),
        ("http://r.example:5000/a@sha256:0", "r.example:5000/a@sha256:0"),
        ("docker://r.example/a", "r.example/a"),
        ("oci:/r.example/a:v1", "r.example/a:v1"),
    ],
)
def test_references_with_a_scheme(written: str, bare: str) -> None:
    """A reference that begins with a scheme is refused with the reference to write."""
    with pytest.raises(MalformedReference, match=f"leave out .*: write {bare}$"):
        Reference.parse(written)
    with pytest.raises(MalformedReference, match="leave out"):
        split_path(f"{written}/index.html".encode())
