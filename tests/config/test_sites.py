"""The key ``sites``: its forms, the rules that a site inherits, and the messages of ``--check``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blobserve.config import Config, ImageTemplate, KeepVersions, RepositoryRules, Site
from blobserve.configfile import load
from blobserve.errors import ConfigError, MalformedReference
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference, Repository

SHOP = Repository.parse("r.example/team/shop")
REFERENCE = "r.example/team/shop:live"
DIGEST = "sha256:" + "a" * 64


def loaded(sites: dict[str, Any], **keys: Any) -> Config:
    """Return a configuration with these sites."""
    return load({"blobserve": {"sites": sites, **keys}})


def site(value: Any, key: str = "a.example", **keys: Any) -> Site:
    """Return the only site of a configuration."""
    [found] = loaded({key: value}, **keys).sites.values()
    return found


def problems(sites: dict[str, Any], **keys: Any) -> list[str]:
    """Return the problems of these sites."""
    with pytest.raises(ConfigError) as caught:
        loaded(sites, **keys)
    return [each.removeprefix("configuration: sites.") for each in caught.value.problems]


def warnings(sites: dict[str, Any], **keys: Any) -> list[str]:
    """Return the warnings about these sites."""
    found = loaded(sites, **keys).warnings
    return [each.removeprefix("configuration: sites.") for each in found]


# --- The forms ------------------------------------------------------------------------------------


def test_the_forms_of_a_site(tmp_path: Path) -> None:
    """A site is a reference, a redirect, or an image with all keys of a repository."""
    path = tmp_path / "b.yaml"
    path.write_text(
        """
blobserve:
  sites:
    App.Example.com.: registry.example.com/team/shop:live
    www.app.example.com: {redirect: APP.example.com:8443}
    "*.preview.example.com": "registry.example.com/team/shop:pr-{1}"
    example.com/docs/Éa:
      image: registry.example.com/team/docs@sha256:%s
      trailingSlash: add
      cleanUrls: true
      hostingDialect: netlify
      prePull: false
      layers: all
      workdir: /srv
      immutablePaths: []
      headers: {x-a: b}
    "*": {image: registry.example.com/team/landing:live, fallback: false}
"""
        % ("a" * 64)
    )
    shop = Repository.parse("registry.example.com/team/shop")
    docs = Repository.parse("registry.example.com/team/docs")
    landing = Repository.parse("registry.example.com/team/landing")
    sites = [
        Site(
            "app.example.com",
            "app.example.com",
            image=ImageTemplate(shop, "live"),
            rules=RepositoryRules(str(shop), keep_versions=KeepVersions()),
        ),
        Site(
            "www.app.example.com",
            "www.app.example.com",
            redirect="app.example.com:8443",
            is_pulled_at_start=False,
        ),
        Site(
            "*.preview.example.com",
            "*.preview.example.com",
            image=ImageTemplate(shop, "pr-{1}"),
            rules=RepositoryRules(str(shop), keep_versions=KeepVersions()),
            is_pulled_at_start=False,
        ),
        Site(
            "example.com/docs/Éa",
            "example.com",
            "/docs/Éa",
            image=ImageTemplate(docs, None, Digest.parse(DIGEST)),
            rules=RepositoryRules(
                str(docs),
                layers="all",
                workdir="/srv",
                headers=(("X-A", "b"),),
                keep_versions=KeepVersions(),
            ),
            has_immutable_names=False,
            trailing_slash="add",
            clean_urls=True,
            dialect="netlify",
            is_pulled_at_start=False,
        ),
        Site(
            "*",
            "*",
            image=ImageTemplate(landing, "live"),
            rules=RepositoryRules(str(landing), keep_versions=KeepVersions()),
            has_app_fallback=False,
            is_pulled_at_start=False,
        ),
    ]
    config = load(path)
    assert config.sites == {each.key: each for each in sites}
    assert list(config.sites.values()) == sites
    assert config.warnings == ()


def test_sites_in_the_originals_form(tmp_path: Path) -> None:
    """The JSON form of the original has sites too."""
    path = tmp_path / "config.json"
    sites = {"A.example": {"image": REFERENCE}}
    path.write_text(json.dumps({"blobserve": {"Sites": sites}}))
    config = load(path)
    assert list(config.sites) == ["a.example"]
    assert config.warnings == ()


def test_sites_alone_are_enough() -> None:
    """A configuration with sites alone serves something; one with empty sites does not."""
    assert warnings({"a.example": REFERENCE}) == []
    [warning] = load({"blobserve": {"sites": {}}}).warnings
    assert "no repository is listed" in warning


def test_a_short_reference_of_docker_hub() -> None:
    """The reference of a site becomes canonical."""
    assert str(site("docker.io/nginx:1.27").image) == "docker.io/library/nginx:1.27"


def test_the_image_of_a_label() -> None:
    """The label of the host takes the place of ``{1}``; a fixed image ignores it."""
    image = site("r.example/team/shop:pr-{1}", "*.p.example").image
    assert image is not None
    assert not image.is_fixed
    assert image.reference("a-1") == Reference.parse("r.example/team/shop:pr-a-1")
    for label in ("a" * 126, "é", "a/b", "a:b", "", "%41"):
        valid = label == ""
        if valid:
            assert image.reference(label).tag == "pr-"
            continue
        with pytest.raises(MalformedReference) as caught:
            image.reference(label)
        assert "r.example" not in str(caught.value)
    bare = site("r.example/team/shop:{1}", "*.p.example").image
    assert bare is not None
    for label in ("-a", "", None):
        with pytest.raises(MalformedReference):
            bare.reference(label)
    both = site(f"{REFERENCE}@{DIGEST}").image
    assert both is not None
    assert both.is_fixed
    assert both.reference("x") == Reference.parse(f"{REFERENCE}@{DIGEST}")


# --- Inheritance ----------------------------------------------------------------------------------


def test_a_site_inherits_the_longest_key_of_its_repository() -> None:
    """A site has the rules of its repository in `repos`; its own keys replace them."""
    repos = {
        "r.example/team/*": {"workdir": "/other", "listing": True},
        "r.example/team/shop": {"workdir": "/a", "layers": "all", "headers": {"X-A": "a"}},
    }
    own = {"image": REFERENCE, "workdir": "/b", "headers": {"X-B": "b"}}
    found = site(own, repos=repos).rules
    assert (found.workdir, found.layers, found.headers) == ("/b", "all", (("X-B", "b"),))
    assert not found.listing
    below = site({"image": "r.example/team/other:v1"}, repos=repos).rules
    assert (below.workdir, below.listing, below.listed) == ("/other", True, True)


@pytest.mark.parametrize(
    ("own", "of_repository", "is_on"),
    [
        ({}, {}, True),
        ({"fallback": False}, {}, False),
        ({"fallback": "/app.html"}, {}, False),
        ({"notFound": "/404.html"}, {}, False),
        ({}, {"fallback": "/app.html"}, False),
        ({}, {"notFound": "/404.html"}, False),
        ({"fallback": False}, {"fallback": "/app.html"}, False),
    ],
)
def test_the_default_fallback(
    own: dict[str, Any], of_repository: dict[str, Any], is_on: bool
) -> None:
    """The fallback for routes is off for `false`, and where `fallback` or `notFound` is set."""
    found = site({"image": REFERENCE, **own}, repos={"r.example/team/*": of_repository})
    assert found.has_app_fallback is is_on
    if own.get("fallback") is False:
        assert found.rules.fallback is None


@pytest.mark.parametrize(
    ("own", "of_repository", "is_on"),
    [
        ({}, {}, True),
        ({"immutablePaths": []}, {}, False),
        ({"immutablePaths": ["a/*"]}, {}, False),
        ({}, {"immutablePaths": []}, False),
        ({}, {"immutablePaths": ["a/*"]}, False),
        ({"immutablePaths": []}, {"immutablePaths": ["a/*"]}, False),
    ],
)
def test_the_default_immutable_names(
    own: dict[str, Any], of_repository: dict[str, Any], is_on: bool
) -> None:
    """The default of `immutablePaths` is off where the key is, also with an empty list."""
    found = site({"image": REFERENCE, **own}, repos={"r.example/team/shop": of_repository})
    assert found.has_immutable_names is is_on


def test_a_repository_that_only_sites_name() -> None:
    """A repository that only `sites` names is forbidden by path, and pulled for its site."""
    value = {"image": REFERENCE, "layers": "all"}
    for any_repo in (False, True):
        config = loaded({"a.example": value}, allowAnyRepo=any_repo)
        assert config.rules_for(SHOP) is None
        assert config.pull_rules_for(SHOP) is None
        rules = config.pull_rules_for(SHOP.within(config.sites["a.example"].scope))
        assert rules is not None
        assert (rules.layers, rules.listed, rules.pre_pull) == ("all", True, ("live",))
        other = Repository.parse("r.example/other")
        assert (config.rules_for(other) is not None) is any_repo
        assert config.pull_rules_for(other) is config.rules_for(other)


def test_a_repository_that_is_listed_too() -> None:
    """A repository of `repos` is served by path by its rules, and pulled for sites by theirs."""
    repos = {"r.example/team/*": {"workdir": "/a"}}
    value = {"image": f"r.example/team/shop@{DIGEST}", "workdir": "/b"}
    config = loaded({"a.example": value, "b.example": REFERENCE}, repos=repos)
    rules = config.rules_for(SHOP)
    scope = config.sites["a.example"].scope
    pulled = config.pull_rules_for(SHOP.within(scope))
    assert rules is not None
    assert pulled is not None
    assert (rules.workdir, rules.pre_pull) == ("/a", ())
    assert config.pull_rules_for(SHOP) is rules
    assert (pulled.layers, pulled.pre_pull) == ("first", ("live", DIGEST))
    assert config.sites["b.example"].scope == scope


# --- Messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("", "the host is missing"),
        ("*.", "the host is missing"),
        (".", "the host is missing"),
        ("/docs", "the host is missing"),
        ("https://a.example", "leave out the scheme: a.example"),
        ("//a.example", "leave out the scheme: a.example"),
        ("a.example/", "leave out the slash at the end"),
        ("a.example/docs/", "leave out the slash at the end"),
        ("a.example:80", "leave out the port, since hosts are compared without it: a.example"),
        ("*.a.example:80", "leave out the port, since hosts are compared without it: a.example"),
        ("127.0.0.1", "an IP address is not a host name"),
        ("127.1", "an IP address is not a host name"),
        ("0x7f000001", "an IP address is not a host name"),
        ("::1", "an IP address is not a host name"),
        ("[::1]", "an IP address is not a host name"),
        ("[::1]:80", "an IP address is not a host name"),
        ("a.example/x?y", "a site is a host and a path; it has no query and no fragment"),
        ("a.example#x", "a site is a host and a path; it has no query and no fragment"),
        ("a.example/%41", "write the path without percent-encoding"),
        ("a.*.example", "* is the whole first label of a host"),
        ("*.*.example", "* is the whole first label of a host"),
        ("pre-*.example", "* is the whole first label of a host"),
        ("**", "* is the whole first label of a host"),
        ("a.example//x", "this can never be reached"),
        ("a.example/x/../y", "this can never be reached"),
        ("a.example/./x", "this can never be reached"),
        ("a.example/x\\y", "a path has no backslash and no control character"),
        ("a.example/x\ny", "a path has no backslash and no control character"),
        ("a.example/*", "a path has no wildcard and no placeholder"),
        ("a.example/{1}", "a path has no wildcard and no placeholder"),
        ("a.example/" + "x" * 1000, "the path is longer than 1000 bytes"),
        ("{1}.example", "a host has letters, digits, - and _"),
        ("-a.example", "a host has letters, digits, - and _"),
        ("a b.example", "a host has letters, digits, - and _"),
        ("me@a.example", "a host has letters, digits, - and _"),
        ("a..example", "a host has no empty label"),
        ("a" * 64 + ".example", "a label of a host has at most 63 characters"),
        ("a." * 125 + "example", "a host has at most 253 characters"),
        ("☃.example", "it has a character that host names do not have"),
        ("xn--zzzzzz.example", "xn--zzzzzz is not a valid A-label"),
    ],
)
def test_keys_that_are_no_site(key: str, said: str) -> None:
    """A key is a host without port, or such a host and a path, or a wildcard of one label."""
    [found] = problems({key: REFERENCE})
    assert said in found


@pytest.mark.parametrize(
    "keys",
    [
        ("a.example", "A.Example"),
        ("a.example", "a.example."),
        ("bücher.example", "xn--bcher-kva.example"),
        ("bücher.example", "BÜCHER.example"),
        ("a.example/x", "A.example./x"),
        ("*.a.example", "*.A.example"),
    ],
)
def test_keys_that_mean_the_same(keys: tuple[str, str]) -> None:
    """Two keys of the same site are an error."""
    [found] = problems(dict.fromkeys(keys, REFERENCE))
    assert "another key also means" in found
    # Paths have case, and prefixes of one host are sites of their own.
    assert len(loaded(dict.fromkeys(["a.example/x", "a.example/X", "a.example"], REFERENCE)).sites)


@pytest.mark.parametrize(
    ("key", "image", "said"),
    [
        ("a.example", "r.example/x:{1}", "{1} is the label of a host with a wildcard"),
        ("*", "r.example/x:{1}", "{1} is the label of a host with a wildcard"),
        ("*.a.example", "r.example/x:{2}", "the only placeholder is {1}"),
        ("*.a.example", "r.example/x:{}", "the only placeholder is {1}"),
        ("*.a.example", "r.example/x:{1", "the only placeholder is {1}"),
        ("*.a.example", "r.example/x:{1}{1}", "{1} may occur only once"),
        ("*.a.example", "r.example/{1}:v1", "{1} may only be in the tag"),
        ("*.a.example", "{1}.example/x:v1", "{1} may only be in the tag"),
        ("*.a.example", "r.example:{1}/x:v1", "{1} may only be in the tag"),
        ("*.a.example", "r.example/x/{1}", "{1} may only be in the tag"),
        ("*.a.example", f"r.example/x:{{1}}@{DIGEST}", "a digest names one image"),
        ("*.a.example", "r.example/x:-{1}", "a tag is 1 to 128 letters"),
        ("*.a.example", "r.example/x:{1}/y", "{1} may only be in the tag"),
        ("*.a.example", "r.example/x:" + "a" * 128 + "{1}", "a tag is 1 to 128 letters"),
        ("a.example", "r.example/x", "no tag and no digest"),
        ("a.example", "x:v1", "begin it with a registry host"),
        ("a.example", "", "must not be empty"),
        ("a.example", 1.5, "expected text such as registry.example.com/team/site:v1"),
        ("a.example", None, "expected text such as registry.example.com/team/site:v1"),
        ("a.example", [REFERENCE], "expected text such as registry.example.com/team/site:v1"),
    ],
)
def test_images_that_are_impossible(key: str, image: Any, said: str) -> None:
    """An image that cannot exist is an error in both forms."""
    for value in (image, {"image": image}):
        [found] = problems({key: value})
        assert said in found


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, '"a.example": the key image or redirect is missing'),
        ({"layers": "all"}, '"a.example": the key image or redirect is missing'),
        (
            {"redirect": "b.example", "image": REFERENCE},
            '"a.example": redirect cannot be combined with image',
        ),
        ({"image": REFERENCE, "cleanUrl": True}, "the nearest known one is cleanUrls"),
        ({"image": REFERENCE, "trailingSlash": True}, "expected keep or add or remove"),
        (
            {"image": REFERENCE, "hostingDialect": "vercel"},
            "expected cloudflare or netlify or none",
        ),
        ({"image": REFERENCE, "cleanUrls": "yes"}, "expected true or false"),
        ({"image": REFERENCE, "prePull": ["v1"]}, "prePull: expected true or false, got list"),
        ("r.example/$TEAM/site:v1", "$TEAM is not expanded: write the reference itself"),
        ("https://r.example/site:v1", "leave out https://: write r.example/site:v1"),
        (
            {"image": REFERENCE, "fallback": True},
            "expected path of a page, such as /index.html, or false",
        ),
        (
            {"image": REFERENCE, "fallback": "index.html"},
            "expected path of a page, such as /index.html",
        ),
        ({"redirect": "https://b.example"}, "expected a host alone"),
        ({"redirect": "b.example/x"}, "expected a host alone"),
        ({"redirect": "*.b.example"}, "without wildcard and placeholder"),
        ({"redirect": "{1}.b.example"}, "without wildcard and placeholder"),
        ({"redirect": "b.example:0"}, "expected host or host:port"),
        ({"redirect": "b.example:65536"}, "expected host or host:port"),
        ({"redirect": "b example"}, "not a host such as app.example.com"),
        ({"redirect": ""}, "must not be empty"),
    ],
)
def test_values_that_are_no_site(value: Any, said: str) -> None:
    """A wrong value is an error with its key."""
    [found] = problems({"a.example": value})
    assert said in found


def test_a_wildcard_is_not_pulled_at_start() -> None:
    """`prePull: true` is an error for a wildcard, and `false` is not."""
    for image in ("r.example/x:{1}", REFERENCE):
        [found] = problems({"*.a.example": {"image": image, "prePull": True}})
        assert found.endswith("prePull: a site with a wildcard cannot be pulled at start")
        assert not site({"image": image, "prePull": False}, "*.a.example").is_pulled_at_start


def test_redirects_that_lead_back() -> None:
    """A redirect that comes back to itself is an error."""
    back = {"redirect": "a.example"}
    [found] = problems({"a.example": back})
    assert found == '"a.example".redirect: these redirects are a loop: a.example to a.example'
    assert len(problems({"a.example": {"redirect": "b.example"}, "b.example": back})) == 2
    [found] = problems({"*": back})
    assert "* to a.example" in found
    [found] = problems({"*.a.example": {"redirect": "b.a.example"}, "a.example": REFERENCE})
    assert "*.a.example to b.a.example" in found
    [found] = problems(
        {"a.example": {"redirect": "b.example"}, "b.example": REFERENCE, "b.example/x/y": back}
    )
    assert found.startswith('"b.example/x/y".redirect: these redirects are a loop')
    [found] = warnings({"a.example": {"redirect": "a.example:8443"}})
    assert "a loop, unless another server has that port" in found


def test_redirects_that_are_not_the_last() -> None:
    """A redirect to another redirect, or to a misspelt host, is a warning."""
    [found] = warnings({"a.example": {"redirect": "b.example"}, "b.example": {"redirect": "c.io"}})
    assert found.endswith("two redirects in a row: a.example to b.example, then b.example to c.io")
    sites = {"app.example.com": REFERENCE, "www.example.com": {"redirect": "ap.example.com"}}
    [found] = warnings(sites)
    assert found.endswith("no site has this host; the nearest one is app.example.com")
    assert warnings({**sites, "*": REFERENCE}) == []
    assert warnings({"a.example": {"redirect": "elsewhere.test"}, "b.example": REFERENCE}) == []
    # Another prefix of the same host is no loop.
    assert warnings({"a.example": REFERENCE, "a.example/old": {"redirect": "b.example"}}) == []


def test_prefixes_that_are_shadowed() -> None:
    """A prefix of a wildcard that more exact hosts do not have is a warning."""
    sites = dict.fromkeys(["*.p.example/x", "a.p.example", "b.p.example", "p.example"], REFERENCE)
    [found] = warnings(sites)
    assert (
        found == '"*.p.example/x": a.p.example and 1 more has sites of its own, so /x is not there'
    )
    assert warnings(dict.fromkeys(["*.p.example/x", "a.p.example/x", "p.example"], REFERENCE)) == []
    [found] = warnings(dict.fromkeys(["*/x", "*.p.example"], REFERENCE))
    assert "*.p.example has sites of its own" in found
    repos = {"r.example/team/*": {}}
    [found] = problems({"*/r.example/team/shop/docs": REFERENCE}, repos=repos)
    assert found.endswith(
        "this can never be reached: r.example/team/shop/docs of repos comes first"
    )
    assert warnings(
        {"*/r.example": REFERENCE, "b.example/r.example/team/x": REFERENCE}, repos=repos
    )


def test_messages_have_file_and_line(tmp_path: Path) -> None:
    """All problems are reported at once, each with its file and line."""
    path = tmp_path / "b.yaml"
    path.write_text(
        "blobserve:\n  timeout: 1\n  sites:\n    a.example:80: x\n    b.example:\n"
        "      image: r.example/x:{1}\n      cleanUrls: 1\n    c.example: {redirect: c.example}\n"
        "    d.example: r.example/x:v1\n    d.example: r.example/x:v2\n"
    )
    with pytest.raises(ConfigError) as caught:
        load(path)
    lines = [int(each.removeprefix(f"{path}:").partition(":")[0]) for each in caught.value.problems]
    assert lines == [2, 4, 4, 7, 10]
    path.write_text("blobserve:\n  sites:\n    *.a.example: r.example/x:v1\n")
    with pytest.raises(ConfigError, match=r"b\.yaml:3: not YAML: a \* at the beginning; quote"):
        load(path)
