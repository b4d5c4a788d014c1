"""Registries as processes, configured by the test, filled by skopeo or by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, urljoin
from urllib.request import Request, urlopen

import attrs

from tests.support.parts.images import Image, Index, digest_of, write_layout
from tests.support.parts.programs import Part, answers, free_port, run

_LINE = re.compile(r'^\S+ \S+ \S+ \[[^]]*\] "(\S+) (\S+) [^"]*" (\d+) ', re.MULTILINE)


@attrs.frozen
class Requested:
    """One line of an access log."""

    method: str
    target: str
    status: int
    authorization: str = ""
    """The Authorization header if the log has it (nginx), else ""."""


class Registry:
    """A running registry; `host` is its name in references, `user` is ``name:password``."""

    def __init__(
        self, directory: Path, port: int, arguments: Sequence[str | Path], user: str | None = None
    ) -> None:
        """Prepare the command with these `arguments`, which listens on `port`; `start` runs it."""
        self.directory, self.port, self.user = directory, port, user
        self.host = f"127.0.0.1:{port}"
        self.storage = directory / "storage"
        self._part = Part(arguments, directory)
        self._looked = 0

    def start(self) -> None:
        """Start it, again on the same port with the same content."""
        self._part.start(lambda: answers(self.port))

    def stop(self) -> None:
        """Stop it, so that its port refuses connections."""
        self._part.stop()

    def push(self, image: Image | Index, name: str) -> str:
        """Push `image` by skopeo as `name` (``team/site:v1``); return its digest.

        skopeo reads only OCI media types from a layout; use `put` for others.
        """
        layout = self.directory / "push" / image.digest.removeprefix("sha256:")
        write_layout(layout, {"pushed": image})
        self.copy(f"oci:{layout}:pushed", name)
        return image.digest

    def copy(self, source: str, name: str) -> None:
        """Copy `source`, in the notation of skopeo, to `name` in this registry."""
        options = ["--all", "--preserve-digests", "--dest-tls-verify=false"]
        if self.user:
            options.append(f"--dest-creds={self.user}")
        self._skopeo(*options, source, f"docker://{self.host}/{name}")
        self._looked = self._part.output.stat().st_size

    def pull(self, name: str, layout: Path) -> None:
        """Copy `name` by skopeo from this registry into a new OCI layout."""
        options = ["--src-tls-verify=false"]
        if self.user:
            options.append(f"--src-creds={self.user}")
        self._skopeo(*options, f"docker://{self.host}/{name}", f"oci:{layout}:pulled")

    def put(self, image: Image | Index, name: str) -> str:
        """Upload `image` unchanged, even one that no tool would push; return its digest.

        It sends no credentials, and so needs a registry without authentication.
        """
        repository, _, tag = name.partition(":")
        children = image.images if isinstance(image, Index) else ()
        for blob in image.blobs:
            self.put_blob(repository, blob)
        for each in children:
            self.put_manifest(repository, each.digest, each)
        self.put_manifest(repository, tag, image)
        self._looked = self._part.output.stat().st_size
        return image.digest

    def blob_file(self, digest: str) -> Path:
        """Return the file in which the registry has the blob `digest`."""
        raise NotImplementedError

    def requests(self) -> list[Requested]:
        """Return the requests since the last push; complete only after the registry has stopped.

        The registry logs a request after its answer, so that the client may be ahead of the log.
        """
        text = self._part.output.read_bytes()[self._looked :].decode()
        return [Requested(m[1], m[2], int(m[3])) for m in _LINE.finditer(text)]

    def _skopeo(self, *arguments: str) -> None:
        run(["skopeo", "--insecure-policy", "copy", "--quiet", *arguments], self.directory)

    def put_blob(self, repository: str, content: bytes) -> None:
        """Upload a blob, without credentials."""
        begin = Request(f"http://{self.host}/v2/{repository}/blobs/uploads/", method="POST")
        with urlopen(begin, timeout=30) as begun:
            location = begun.headers["Location"]
        target = urljoin(begin.full_url, location)
        target += f"{'&' if '?' in target else '?'}digest={quote(digest_of(content))}"
        upload = {"Content-Type": "application/octet-stream"}
        urlopen(Request(target, content, upload, method="PUT"), timeout=30).close()

    def put_manifest(self, repository: str, name: str, image: Image | Index) -> None:
        """Upload a manifest by tag or digest; return when the registry has answered 201."""
        target = f"http://{self.host}/v2/{repository}/manifests/{name}"
        kind = {"Content-Type": image.media_type}
        urlopen(Request(target, image.manifest, kind, method="PUT"), timeout=30).close()


class DockerRegistry(Registry):
    """A running registry of the distribution project, docker-registry of Debian by default.

    `settings` are merged into its configuration at the top level.
    """

    def __init__(
        self,
        directory: Path,
        settings: Mapping[str, object] | None = None,
        user: str | None = None,
        program: str = "docker-registry",
    ) -> None:
        port, config = free_port(), directory / "registry.yml"
        super().__init__(directory, port, [program, "serve", config], user)
        config.write_text(
            json.dumps(
                {
                    "version": "0.1",
                    "storage": {
                        "filesystem": {"rootdirectory": str(self.storage)},
                        "delete": {"enabled": True},
                    },
                    "http": {"addr": self.host},
                    **(settings or {}),
                }
            )
        )

    def blob_file(self, digest: str) -> Path:
        """Return the file in which the registry has the blob `digest`."""
        algorithm, _, name = digest.partition(":")
        return self.storage / "docker/registry/v2/blobs" / algorithm / name[:2] / name / "data"


def htpasswd(directory: Path, user: str) -> dict[str, object]:
    """Return the settings of a registry that only `user` (``name:password``) may use."""
    name, _, password = user.partition(":")
    passwords = directory / "htpasswd"
    passwords.write_text(run(["htpasswd", "-Bbn", name, password], directory))
    return {"auth": {"htpasswd": {"realm": "tests", "path": str(passwords)}}}


def redirect(base: str) -> dict[str, object]:
    """Return the settings of a registry that redirects each blob to its storage at `base`."""
    return {"middleware": {"storage": [{"name": "redirect", "options": {"baseurl": base}}]}}
