"""The registry of the images: a real docker-registry, filled from files."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, urlsplit

from benchmarks.cold.layers import Blob
from tests.support.parts.images import digest_of
from tests.support.parts.registry import DockerRegistry

_CONFIG = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


class Origin(DockerRegistry):
    """A docker-registry that accepts layers from files."""

    def publish(self, repository: str, tag: str, layers: Sequence[Blob]) -> None:
        """Publish an image of these layers, the lowest first, under `tag`."""
        for blob in layers:
            self._upload(repository, blob.path, blob.digest)
        config = self.directory / "config.json"
        config.write_bytes(_CONFIG)
        self._upload(repository, config, digest_of(_CONFIG))
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST_TYPE,
            "config": _descriptor(_CONFIG_TYPE, digest_of(_CONFIG), len(_CONFIG)),
            "layers": [
                {
                    **_descriptor(each.media_type, each.digest, each.size),
                    "annotations": each.annotations,
                }
                for each in layers
            ],
        }
        target = f"/v2/{repository}/manifests/{tag}"
        self._send("PUT", target, json.dumps(manifest).encode(), _MANIFEST_TYPE)

    def _upload(self, repository: str, path: Path, digest: str) -> None:
        begun = self._send("POST", f"/v2/{repository}/blobs/uploads/", b"")
        where = urlsplit(begun["Location"])
        target = f"{where.path}?{where.query}&digest={quote(digest)}"
        with path.open("rb") as body:
            self._send("PUT", target, body, "application/octet-stream", path.stat().st_size)

    def _send(
        self, method: str, target: str, body: object, kind: str = "", size: int | None = None
    ) -> Mapping[str, str]:
        headers = {"Content-Type": kind} if kind else {}
        if size is not None:
            headers["Content-Length"] = str(size)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, target, body, headers)  # type: ignore[arg-type]
            answer = connection.getresponse()
            text = answer.read()
            if answer.status >= 300:
                raise RuntimeError(f"{method} {target}: {answer.status} {text!r}")
            return dict(answer.headers.items())
        finally:
            connection.close()


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest, "size": size}
