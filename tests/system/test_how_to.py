"""The how-to pages, followed to the letter with the programs that they name."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import attrs
import pytest
import yaml

from blobserve.names.host import canonical_host
from blobserve.names.reference import Reference
from tests.support.followed_page import CURL_OPTIONS, HOW_TO, Follower
from tests.support.parts.authority import Authority
from tests.support.parts.images import Image
from tests.support.parts.nginx import Nginx
from tests.support.parts.programs import free_port, own_directory, program
from tests.support.parts.registry import DockerRegistry
from tests.support.parts.umoci import umoci_layout

BUILT = {
    "index.html": '<!doctype html>\n<html lang="en">\n  <head>\n    <title>shop</title>\n'
    '    <script type="module" crossorigin src="/assets/index-D_6Ay_gG.js"></script>\n'
    '  </head>\n  <body><div id="root"></div></body>\n</html>\n',
    "favicon.svg": '<svg xmlns="http://www.w3.org/2000/svg"/>\n',
    "assets/index-D_6Ay_gG.js": "document.title = location.pathname\n" * 100,
    "assets/index-D64VDMd1.css": "body { margin: 0 }\n",
}
"""The names that `vite build` gives to the files of its template, in place of the build."""

Following = Callable[..., Follower]


@pytest.fixture(scope="module")
def registry() -> Iterator[DockerRegistry]:
    """Return a registry without TLS."""
    with own_directory() as directory:
        running = DockerRegistry(directory)
        try:
            running.start()
            yield running
        finally:
            running.stop()


@pytest.fixture
def following(registry: DockerRegistry, tmp_path: Path) -> Iterator[Following]:
    """Return a function that makes a reader of a page, with a built app in ``dist/``."""
    program("curl")
    with ExitStack() as stack:

        def follow(
            page: str, replaced: Mapping[str, str], registry: DockerRegistry = registry
        ) -> Follower:
            directory, port = stack.enter_context(own_directory()), free_port()
            names = {
                "registry.example.com": registry.host,
                "localhost:8080": f"localhost:{port}",
                "127.0.0.1:8080": f"127.0.0.1:{port}",
            }
            text = (HOW_TO / page).read_text()
            names = {old: new for old, new in names.items() if old in text}
            settings = {"registries": {registry.host: {"insecure": True}}, "timeout": "60s"}
            cache = tmp_path / "cache"
            names |= replaced
            follower = Follower(directory, page, names, settings, port, cache, registry.host)
            stack.callback(follower.stop)
            for name, text in BUILT.items():
                follower.write(f"dist/{name}", text)
            return follower

        yield follow


@pytest.mark.parametrize("tool", ["podman", "buildah", "umoci"])
def test_host_a_vite_app(following: Following, tool: str) -> None:
    """An app is served at its own name after the steps for each tool that the page names."""
    program(tool)
    replaced = {"team/shop": f"team/shop-{tool}"}
    if tool == "buildah":
        replaced["podman"] = "buildah"
    reader = following("host-a-vite-app.md", replaced)
    reader.follow(omitted="npm|podman" if tool == "umoci" else "npm|umoci")


def test_nginx_images(following: Following, registry: DockerRegistry) -> None:
    """An image that is built from nginx is served like nginx does, without its other files.

    The base image has the folders and files of the published one that matter here.
    """
    program("podman")
    base = [
        ("/", {"etc/os-release": b"the base system\n", "index.html": b"not the site\n"}),
        ("/usr/share/nginx/html", {"index.html": b"nginx\n", "50x.html": b"nginx\n"}),
    ]
    with own_directory() as directory:
        layout = umoci_layout(directory, *base)
        registry.copy(f"oci:{layout}:made", "library/nginx:stable")
    names = {"docker.io/library": f"{registry.host}/library", "team/shop": "team/shop-nginx"}
    reader = following("nginx-images.md", names)
    [config] = [block for block in reader.blocks if block.language == "nginx"]
    reader.write("nginx.conf", config.text)
    [build] = [block for block in reader.blocks if "podman build" in block.text]
    for block in reader.blocks:
        if block.language == "console" and "/old" in block.text:
            reader.do(build)
            reader.restart()
        reader.do(block)

    with own_directory() as directory, ExitStack() as stack:
        inner = config.text.strip().removeprefix("server {").removesuffix("}")
        inner = inner.replace("listen 80;", "").replace(
            "/usr/share/nginx/html", f"{directory}/html"
        )
        shutil.copytree(
            reader.directory / "dist", directory / "html", copy_function=shutil.copyfile
        )
        nginx = Nginx(directory, inner)
        stack.callback(nginx.stop)
        nginx.start()
        for path in ("", "old", "new", "index.html", "assets/index-D_6Ay_gG.js", "a/deep/link"):
            print_answer = (
                f"curl -s -D - -H 'Host: app.example.com' http://127.0.0.1:%d/{path} |"
                " tr -d '\\r' | sed 's,http://app.example.com[:0-9]*,,' |"
                " grep -i -e ^HTTP -e '^location:' -e '^x-frame' -e '<title>shop'"
            )
            by_nginx = reader.shell(print_answer % nginx.port)
            if path == "old":  # nginx adds the field to files only
                by_nginx += "X-Frame-Options: DENY\n"
            assert sorted(by_nginx.split("\n")) == sorted(
                reader.shell(print_answer % reader.port).split("\n")
            )


def test_previews_per_branch(following: Following) -> None:
    """A branch is served at its own name after its CI job."""
    program("podman")
    reader = following("previews-per-branch.md", {"team/shop": "team/shop-preview"})
    [workflow] = [block for block in reader.blocks if block.name.endswith("preview.yml")]
    reader.write("Containerfile", "FROM scratch\nCOPY dist/ /\n")
    for block in reader.blocks:
        if "no-such-branch" in block.text:
            job = yaml.safe_load(workflow.text)["jobs"]["preview"]
            assert job["env"]["BRANCH"] == "${{ github.ref_name }}"
            reader.environment["BRANCH"] = "feature/cart"
            [build] = [step["run"] for step in job["steps"] if "build -t" in step.get("run", "")]
            assert reader.shell(build).endswith("https://feature-cart.preview.example.net/\n")
        reader.do(block)
    reader.restart()
    ended = f"curl -s -H 'Host: feature-cart.preview.example.net' http://localhost:{reader.port}/"
    assert reader.shell(ended) == "This preview has ended.\n"


@pytest.mark.parametrize(
    ("branch", "tag"),
    [
        ("main", "main"),
        ("--release_1.2--", "release-1-2"),
        ("Übung/ß", "bung"),
        ("xn--a", "xn-a"),
        ("x" * 62 + "/" + "y" * 9, "x" * 62),
    ],
)
def test_tags_of_branches(following: Following, branch: str, tag: str) -> None:
    """The script for tags of branches prints a label of a host that is a tag too."""
    reader = following("previews-per-branch.md", {})
    [script] = [block for block in reader.blocks if block.name == "preview-tag.sh"]
    reader.do(script)
    assert reader.shell(f"sh preview-tag.sh '{branch}'") == tag + "\n"
    assert Reference.parse(f"registry.example.com/team/shop:{tag}").tag == tag
    assert canonical_host(f"{tag}.preview.example.net").partition(".")[0] == tag


# --- TLS in front ---------------------------------------------------------------------------------

LARGE = bytes(range(256)) * (24 << 12)
SCRIPT = "assets/index-D_6Ay_gG.js"
SEEN = "^HTTP|^(etag|vary|cache-control|content-(encoding|length|range|type)):"


def caddy(reader: Follower, plain: int, tls: int) -> Path:
    """Start Caddy with the page's configuration; return the certificate of its authority.

    The options in front of it keep Caddy on loopback, with an authority of its own.
    """
    written = (reader.directory / "Caddyfile").read_text()
    ports = f"default_bind 127.0.0.1\nhttp_port {plain}\nhttps_port {tls}\n"
    options = f"{{\nadmin off\n{ports}local_certs\nskip_install_trust\n}}\n"
    reader.write("Caddyfile", options + written)
    reader.start(["caddy", "run", "--adapter", "caddyfile", "--config", "Caddyfile"], tls)
    return reader.directory / ".local/share/caddy/pki/authorities/local/root.crt"


def nginx(reader: Follower, plain: int, tls: int) -> Path:
    """Start nginx with the page's configuration, beside defaults like those of Debian."""
    reader.write("temp/empty", "")
    temp = " ".join(
        f"{kind}_temp_path temp/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    own = "access_log off; gzip on; gzip_types *; include etc/nginx/conf.d/*.conf;"
    main = "daemon off; master_process off; pid nginx.pid; error_log error.log warn;"
    reader.write("nginx.conf", f"{main}\nevents {{}}\nhttp {{ {temp} {own} }}\n")
    prefix = str(reader.directory)
    reader.start(["nginx", "-p", prefix, "-e", "error.log", "-c", f"{prefix}/nginx.conf"], tls)
    return reader.directory / "authority.pem"


def haproxy(reader: Follower, plain: int, tls: int) -> Path:
    """Start HAProxy with the page's configuration."""
    reader.start(["haproxy", "-db", "-f", "etc/haproxy/haproxy.cfg"], tls)
    return reader.directory / "authority.pem"


@pytest.mark.parametrize("proxy", [caddy, nginx, haproxy], ids=lambda each: each.__name__)
def test_tls_in_front(
    following: Following, registry: DockerRegistry, proxy: Callable[[Follower, int, int], Path]
) -> None:
    """A server in front passes on names, addresses, codings and large files as the page says."""
    plain, tls = free_port(), free_port()
    on_loopback = {
        "listen 80;": f"listen 127.0.0.1:{plain};",
        "listen 443 ": f"listen 127.0.0.1:{tls} ",
        "bind :80": f"bind 127.0.0.1:{plain}",
        "bind :443": f"bind 127.0.0.1:{tls}",
        "/etc/ssl/app.example.com/": "",
        "    user haproxy\n    group haproxy\n": "",  # it runs as the ordinary user already
    }
    reader = following("tls-in-front.md", {"team/shop": "team/shop-tls", **on_loopback})
    files = {name: content.encode() for name, content in BUILT.items()}
    registry.push(Image.of({**files, "large.bin": LARGE}), "team/shop-tls:v1")
    authority = Authority.make(reader.directory)
    pem = authority.pem("app.example.com").read_text()
    for name in ("fullchain.pem", "privkey.pem", "haproxy.pem"):
        reader.write(name, pem)
        reader.write(f"etc/nginx/conf.d/{name}", pem)  # nginx looks beside its configuration
    authority.write(reader.directory / "authority.pem")

    for block in reader.blocks:
        if block.language == "console":
            trusted = proxy(reader, plain, tls)
            to = "connect-to = app.example.com:{}:127.0.0.1:{}\n"
            lines = to.format(80, plain) + to.format(443, tls)
            reader.write(".curlrc", f"{CURL_OPTIONS}cacert = {trusted}\n{lines}")
            # Caddy makes its certificates after it has begun to listen.
            reader.shell("until curl -s -o /dev/null https://app.example.com/; do sleep 0.1; done")
        reader.do(block)

    def seen(url: str, path: str, coding: str) -> list[str]:
        field = f"-H 'Accept-Encoding: {coding}'" if coding else ""
        curl = f"curl -s -D - -o /dev/null -H 'Host: app.example.com' {field}"
        lines = reader.shell(f"{curl} {url}/{path} | grep -iE '{SEEN}'").lower().splitlines()
        return sorted(re.sub(r"^http/\S+ (\d+).*", r"\1", line) for line in lines)

    direct = f"http://127.0.0.1:{reader.port}"
    for coding in ("gzip", "zstd"):  # are made in the background
        compressed = (
            f"curl -s -D - -o /dev/null -H 'Host: app.example.com' -H 'Accept-Encoding: {coding}'"
        )
        reader.shell(
            f"until {compressed} {direct}/{SCRIPT} | grep -qi content-enc; do sleep 0.1; done"
        )
    for path in (SCRIPT, "index.html"):
        for coding in ("", "identity", "gzip", "zstd, gzip"):
            in_front = seen("https://app.example.com", path, coding)
            assert in_front == seen(direct, path, coding), (path, coding)

    read = "curl -s --limit-rate 48M https://app.example.com/large.bin | sha256sum"
    assert reader.shell(read).split()[0] == hashlib.sha256(LARGE).hexdigest()
    if proxy is nginx:
        assert "temporary file" not in (reader.directory / "error.log").read_text()

    forged = "-H 'X-Forwarded-For: 203.0.113.9' -H 'X-Forwarded-Host: other.example.com'"
    curl = f"curl -s --interface 127.0.0.2 {forged}"
    assert "<title>shop</title>" in reader.shell(f"{curl} https://app.example.com/?forged")
    reader.stop()
    [line] = [line for line in reader.output.read_text().splitlines() if "?forged" in line]
    assert line.startswith("127.0.0.2 ")


# --- Hosting rules --------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["headers-and-csp.md", "from-netlify-or-cloudflare-pages.md"])
def test_hosting_rules(following: Following, page: str) -> None:
    """The files with rules have the effects and the reports that the pages show."""
    program("podman")
    reader = following(page, {"team/shop": f"team/{page.partition('.')[0]}"})
    reader.write("Containerfile", "FROM scratch\nCOPY dist/ /\n")
    reader.follow()
    for block in reader.blocks:
        if "headers: {Referrer-Policy: no-referrer}" in block.text:
            text = f"blobserve:\n  sites:\n{block.text}"
            reader.do(attrs.evolve(block, name="blobserve.yaml", text=text))
            reader.restart()
            policy = reader.shell(
                f"curl -sI -H 'Host: app.example.com' http://localhost:{reader.port}/ |"
                " grep -i ^referrer"
            )
            assert policy.strip() == "Referrer-Policy: no-referrer"


# --- Deploys --------------------------------------------------------------------------------------

BUILDS = {
    "v1": ("D_6Ay_gG", "shop"),
    "v2": ("BHxg-xhJ", "shop 2"),
    "v3": ("Bq81_kZx", "shop 3"),
}
"""The hash in the name of the script, and the title, of each version of the page on deploys."""


def test_deploy(following: Following) -> None:
    """Pushes, rollbacks, pins and purges have the effects that the page shows.

    The reader waits after each push until the new version is live.
    """
    program("podman")
    with own_directory() as directory, ExitStack() as stack:
        hooks, registry = str(free_port()), DockerRegistry(directory)
        stack.callback(registry.stop)
        names = {"registry.example.com": registry.host, "9400": hooks}
        reader = following("deploy.md", names, registry)
        steps = [block for block in reader.blocks if block.language in ("sh", "console")]
        for block in reader.blocks:
            live = re.search(r"deploy\.sh (v\d)$|:(v\d) docker://", block.text, re.MULTILINE)
            if block.name == "registry-notifications.yaml":
                secret = (reader.directory / "webhook-secret").read_text().strip()
                config = directory / "registry.yml"
                settings = yaml.safe_load(block.text.replace("SECRET", secret))
                config.write_text(json.dumps({**yaml.safe_load(config.read_text()), **settings}))
                registry.start()
            elif live is None or block.language != "sh":
                reader.do(block)
            else:
                version = live[1] or live[2]
                if "npm run build\n" in block.text:
                    built(reader, version)
                reader.do(attrs.evolve(block, text=block.text.replace("npm run build\n", "")))
                title = f"<title>{BUILDS[version][1]}</title>"
                page = f"curl -s -H 'Host: app.example.com' http://localhost:{reader.port}/"
                reader.shell(f"until {page} | grep -q '{title}'; do sleep 0.1; done")
        # The last block is an entry that drops the earlier versions.
        first = f"http://localhost:{reader.port}/assets/index-{BUILDS['v1'][0]}.js"
        status = f"curl -s -o /dev/null -w '%{{http_code}}' -H 'Host: app.example.com' {first}"
        assert reader.shell(status) == "200"
        text = f"blobserve:\n  sites:\n{reader.blocks[-1].text}"
        reader.do(attrs.evolve(reader.blocks[-1], name="blobserve.yaml", text=text))
        [server] = [block for block in steps if block.text.startswith("twist")]
        reader.do(server)
        assert reader.shell(status) == "404"


def built(reader: Follower, version: str) -> None:
    """Put a version into `dist` in place of the one that is there."""
    shutil.rmtree(reader.directory / "dist")
    for name, content in BUILT.items():
        digest, title = BUILDS[version]
        name, content = (each.replace("D_6Ay_gG", digest) for each in (name, content))
        reader.write(f"dist/{name}", content.replace("<title>shop", f"<title>{title}"))
