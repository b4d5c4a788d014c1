"""Builders from Go modules and from Maven, each run by a few lines of shell."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.interop.builders import DOCKER, OCI, Build, Builder, Workshop
from tests.interop.modules import version_of
from tests.interop.site import EMPTY_FOLDER, LINKED_FILE, LINKED_FOLDER

JIB = "3.5.2"
"""The version of jib's plugin for Maven."""

_FILES_ALONE = {EMPTY_FOLDER: "an artifact lists files, and has no folders"}

_CRANE = """
tar --create --directory=site --file=site.tar .
crane append --insecure $OPTIONS --new_layer=site.tar --new_tag=$REF
"""
_ORAS_FILES = """
cd site
find -L . -type f -printf '%P\\0' | xargs -0 oras push --plain-http $REF
"""
_ORAS_DOT = "cd site && oras push --plain-http $REF ."
_ORAS_FOLDER = "oras push --plain-http $REF site"
_REGCTL = "regctl --host reg=$HOST,tls=disabled"
_REGCTL_FILES = f"""
cd site
find -L . -type f -printf '-f\\0%P\\0-m\\0application/octet-stream\\0' |
    xargs -0 {_REGCTL} artifact put --artifact-type application/vnd.example.site --file-title $REF
"""
_REGCTL_LAYER = f"""
{_REGCTL} image create ocidir://image:empty
{_REGCTL} image mod ocidir://image:empty --layer-add dir=site --create ocidir://image:v1
{_REGCTL} image copy ocidir://image:v1 $REF
"""
_KO = f"""
{_REGCTL} image create --platform linux/amd64 $HOST/base:empty
mkdir program
mv site program/kodata
cd program
cat > go.mod <<END
module example.com/program
END
cat > main.go <<END
package main

func main() {{}}
END
export KO_DOCKER_REPO=${{REF%:*}} KO_DEFAULTBASEIMAGE=$HOST/base:empty GOTOOLCHAIN=local
ko build --bare --insecure-registry --sbom=none --tags=v1 --platform=linux/amd64 .
"""
_JIB = f"""
mkdir --parents target/classes src/main/jib
mv site src/main/jib/site
cat > pom.xml <<END
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>example</groupId><artifactId>site</artifactId><version>1</version>
  <build><plugins><plugin>
    <groupId>com.google.cloud.tools</groupId>
    <artifactId>jib-maven-plugin</artifactId>
    <version>{JIB}</version>
    <configuration>
      <from><image>scratch</image></from>
      <to><image>$REF</image></to>
      <container><mainClass>none</mainClass></container>
    </configuration>
  </plugin></plugins></build>
</project>
END
mvn --batch-mode --quiet -Duser.home=$HOME -Dmaven.repo.local=$HOME/.m2 \\
    -Djib.allowInsecureRegistries=true -DsendCredentialsOverHttp=true jib:build
"""
_BUILDKIT = """
printf 'FROM scratch\\nCOPY site/ /\\n' > Dockerfile
at="--addr=unix://$PWD/socket"
buildkitd $at --root=$PWD/state --containerd-worker=false --oci-worker=true \\
    --oci-worker-binary=crun --oci-worker-snapshotter=native --oci-worker-net=host 2> log &
trap 'kill $!; wait $! || true' EXIT
until buildctl $at debug workers > /dev/null 2>&1; do
    kill -0 $! || { cat log >&2; exit 1; }
    sleep 0.2
done
buildctl $at build --frontend=dockerfile.v0 --local=context=. --local=dockerfile=. --output=$OUTPUT
"""

_PROGRAM = {"BuildKit": "buildkitd"}
"""Programs with another name than their tool."""


def _shell(script: str, rules: Mapping[str, object] = {}, **variables: str) -> Build:
    """Return a build by shell, with the site in ``site``, and the variables HOST and REF."""

    def build(shop: Workshop) -> Mapping[str, object]:
        names = {"HOST": shop.host, "REF": shop.name, **variables}
        shop.run("bash", "-euo", "pipefail", "-c", script, environment=names)
        return rules

    return build


def _exported(form: str, source: str = "") -> Build:
    """Return a build by BuildKit with this output, pushed or read as a local source.

    The daemon mounts file systems, and so runs as the user of this process, which must be root.
    """

    def build(shop: Workshop) -> Mapping[str, object]:
        archive = shop.directory / "site.tar"
        place = f"dest={archive}" if source else "push=true,registry.insecure=true"
        output = f"{form},name={shop.name},{place}"
        script = ["bash", "-euo", "pipefail", "-c", _BUILDKIT]
        shop.run(*script, environment={"OUTPUT": output}, user={})
        return {"source": f"{source}:{archive}"} if source else {}

    return build


def _layers(compression: str) -> Build:
    """Return a build by BuildKit that pushes an OCI image with this compression."""
    return _exported(f"type=image,oci-mediatypes=true,compression={compression}")


def _pinned(
    tool: str,
    way: str,
    build: Build,
    layer: str = "",
    omits: Mapping[str, str] = {},
    version: Callable[[], str] | None = None,
) -> Builder:
    return Builder(tool, way, version or version_of(_PROGRAM.get(tool, tool)), build, layer, omits)


PINNED = (
    _pinned("crane", "`append`, Docker format", _shell(_CRANE, OPTIONS=""), f"{DOCKER}.gzip"),
    _pinned("crane", "`append`, OCI", _shell(_CRANE, OPTIONS="--oci-empty-base"), f"{OCI}+gzip"),
    _pinned("oras", "files", _shell(_ORAS_FILES), OCI, _FILES_ALONE),
    _pinned("oras", "a folder", _shell(_ORAS_FOLDER, {"workdir": "/site"}), f"{OCI}+gzip"),
    _pinned("oras", "the current folder", _shell(_ORAS_DOT), f"{OCI}+gzip"),
    _pinned("regctl", "files", _shell(_REGCTL_FILES), "application/octet-stream", _FILES_ALONE),
    _pinned(
        "regctl",
        "a layer",
        _shell(_REGCTL_LAYER),
        f"{OCI}+gzip",
        dict.fromkeys(
            (LINKED_FILE, LINKED_FOLDER), "regctl writes each link with itself as its target"
        ),
    ),
    _pinned("BuildKit", "gzip", _layers("gzip"), f"{OCI}+gzip"),
    _pinned("BuildKit", "zstd", _layers("zstd"), f"{OCI}+zstd"),
    _pinned("BuildKit", "eStargz", _layers("estargz"), f"{OCI}+gzip"),
    _pinned("BuildKit", "uncompressed", _layers("uncompressed"), OCI),
    _pinned(
        "BuildKit",
        "Docker format",
        _exported("type=image,oci-mediatypes=false"),
        f"{DOCKER}.gzip",
    ),
    _pinned("BuildKit", "`type=oci`", _exported("type=oci", "oci-archive")),
    _pinned("BuildKit", "`type=docker`", _exported("type=docker", "docker-archive")),
    _pinned(
        "ko", "`kodata`", _shell(_KO, {"workdir": "/var/run/ko", "layers": "all"}), f"{OCI}+gzip"
    ),
    _pinned(
        "jib",
        "`src/main/jib`",
        _shell(_JIB, {"layers": "all", "workdir": "/site"}),
        f"{DOCKER}.gzip",
        {LINKED_FOLDER: "jib writes an empty folder in place of the link"},
        lambda: JIB,
    ),
)
"""Builders of pinned versions."""
