"""All errors that blobserve raises on purpose.

There is one class per decision that a caller can take, with fields instead of formatted strings.
The base classes give the kind of failure; `blobserve.web.http.status` alone maps errors to HTTP
statuses. An error's text is written by blobserve. It never quotes an upstream, a path of the host's
file system or a credential, so it may be shown to a client, unless its class says otherwise.
"""

from __future__ import annotations

import attrs


class BlobserveError(Exception):
    """The base of all errors that blobserve raises on purpose."""


# --- The requested thing does not exist ----------------------------------------------------------


class NotFound(BlobserveError):
    """The requested thing does not exist, or is not cached and may not be pulled."""


@attrs.define(slots=False)
class MalformedReference(NotFound):
    """Text that is not an image reference; `problem` names the fault."""

    text: str
    problem: str

    def __str__(self) -> str:
        return f"not an image reference: {self.text!r}: {self.problem}"


@attrs.define(slots=False)
class ImageNotFound(NotFound):
    """The registry has no such repository, tag or manifest.

    A local source also gives a few `names` of images that it has, and how many `more` there are.
    """

    reference: str
    names: tuple[str, ...] = ()
    more: int = 0

    def __str__(self) -> str:
        text = f"no such image: {self.reference}"
        if self.names:
            text += f"; its source has {', '.join(self.names)}"
            text += f" and {self.more} more" if self.more else ""
        elif self.more:
            text += f"; its source has {self.more} other names"
        return text


@attrs.define(slots=False)
class NoLayers(NotFound):
    """The image exists but has no layer with files."""

    reference: str

    def __str__(self) -> str:
        return f"the image has no layers: {self.reference}"


@attrs.define(slots=False)
class PlatformNotFound(NotFound):
    """The reference names an index without an image for the wanted platform.

    If the index has no image at all, `kind` describes it.
    """

    platform: str
    kind: str = ""

    def __str__(self) -> str:
        text = f"the index has no image for {self.platform}"
        return f"{text}: {self.kind}" if self.kind else text


@attrs.define(slots=False)
class VersionPurged(ImageNotFound):
    """The operator has purged this image: it is not served from its repository any more."""

    def __str__(self) -> str:
        return f"purged: {self.reference}"


@attrs.define(slots=False)
class BlobNotFound(NotFound):
    """The manifest names a layer that the registry does not have."""

    digest: str

    def __str__(self) -> str:
        return f"the registry does not have the layer {self.digest}"


@attrs.define(slots=False)
class NotCached(NotFound):
    """A read-only request for an image that is not cached."""

    reference: str

    def __str__(self) -> str:
        return f"not cached, and this request may not pull it: {self.reference}"


class NoWebSocket(NotFound):
    """A request to speak WebSocket, where there is nothing but files."""

    def __str__(self) -> str:
        return "no WebSocket here, only files"


@attrs.define(slots=False)
class PathNotFound(NotFound):
    """The image has no such file or directory, or a link in the path is broken."""

    path: str
    layers: int = 1
    """The number of the image's layers, if only the first was searched."""

    def __str__(self) -> str:
        if self.layers == 1:
            return f"no such file: {self.path}"
        return (
            f"no such file in the first of the image's {self.layers} layers, "
            f"the only one that is served (layers: first): {self.path}"
        )


@attrs.define(slots=False)
class Forbidden(BlobserveError):
    """The configuration does not allow this repository."""

    repository: str

    def __str__(self) -> str:
        return f'forbidden repo: "{self.repository}"'


# --- The registry or its content is at fault -----------------------------------------------------


class UpstreamError(BlobserveError):
    """The registry, or an image in it, cannot be used."""


@attrs.define(slots=False)
class RegistryRefused(UpstreamError):
    """The registry answered 401 or 403; `reason` explains it by the credentials."""

    repository: str
    reason: str = ""

    def __str__(self) -> str:
        text = f"registry refused access to {self.repository}"
        return f"{text}: {self.reason}" if self.reason else text


@attrs.define(slots=False)
class RegistryFailed(UpstreamError):
    """The registry could not be reached, or its response makes no sense."""

    registry: str
    problem: str

    def __str__(self) -> str:
        return f"registry {self.registry} failed: {self.problem}"


@attrs.define(slots=False)
class AddressRefused(UpstreamError):
    """A host with an address that we refuse to connect to; `key` is the setting that allows it."""

    host: str
    key: str

    def __str__(self) -> str:
        return (
            f"refused to connect to {self.host}: its address is not public; to allow it, {self.key}"
        )


@attrs.define(slots=False)
class ContentMismatch(UpstreamError):
    """Bytes that do not match their digest or size."""

    digest: str
    problem: str

    def __str__(self) -> str:
        return f"the registry sent wrong content for {self.digest}: {self.problem}"


@attrs.define(slots=False)
class BadImage(UpstreamError):
    """An image that cannot be served: schema 1, not a tar, unknown compression, over a limit."""

    subject: str
    problem: str

    def __str__(self) -> str:
        return f"cannot serve {self.subject}: {self.problem}"


class BadLayer(Exception):
    """A fault in a layer, raised by code that does not know its name; becomes a `BadImage`."""


class BadToc(Exception):
    """A fault in a layer's table of contents: it is not used; the layer is still served."""


@attrs.define(slots=False)
class RuleTooLarge(UpstreamError):
    """A file that is too large for its rewriting rule; `limit` in bytes."""

    path: str
    rule: str
    limit: int

    def __str__(self) -> str:
        return f"{self.path} is larger than {self.limit} bytes, the limit of its {self.rule} rule"


@attrs.define(slots=False)
class ListingTooLarge(UpstreamError):
    """A directory that is too large to be listed; `limit` in words."""

    path: str
    limit: str

    def __str__(self) -> str:
        return f"{self.path} cannot be listed: it exceeds {self.limit}"


# --- A retry may succeed -------------------------------------------------------------------------


class TemporarilyUnavailable(BlobserveError):
    """A passing failure: the same request may succeed later."""

    retry_after: float = 1.0
    """Seconds until a retry makes sense."""


class PullTimeout(TemporarilyUnavailable):
    """The image was not READY in time; its pull continues."""

    def __str__(self) -> str:
        return "the image is still being pulled"


class QueueFull(TemporarilyUnavailable):
    """The queue of layers that wait for a download is full."""

    retry_after = 5.0

    def __str__(self) -> str:
        return "too many layers are waiting to be pulled"


class SpaceContended(TemporarilyUnavailable):
    """Older pulls need the space; this one is the youngest and gave up."""

    retry_after = 5.0

    def __str__(self) -> str:
        return "pulls that began earlier need the blob space"


class StoreClosed(TemporarilyUnavailable):
    """The store is closed or closing: the server is draining."""

    retry_after = 5.0

    def __str__(self) -> str:
        return "the server is shutting down"


class TooManyConnections(TemporarilyUnavailable):
    """One client, or all together, have as many connections as allowed."""

    def __str__(self) -> str:
        return "too many connections"


@attrs.define(slots=False)
class RegistryBusy(TemporarilyUnavailable):
    """The registry answered 429 or 503.

    `retry_after` comes from its response, if that has one.
    """

    registry: str
    retry_after: float = 5.0

    def __str__(self) -> str:
        return f"registry {self.registry} is busy; try again later"


# --- The disk ------------------------------------------------------------------------------------


class NoSpace(BlobserveError):
    """There is no space for this, and waiting will not help."""


@attrs.define(slots=False)
class ImageTooLarge(NoSpace):
    """This image alone exceeds the quota; `bound` is the quota in bytes."""

    digest: str
    bound: int

    def __str__(self) -> str:
        return f"{self.digest} alone is larger than the blob space may be ({self.bound} bytes)"


class DiskFull(NoSpace):
    """The disk or the quota is full, and nothing more can be evicted."""

    def __str__(self) -> str:
        return "no space left for this image, and nothing more can be evicted"


@attrs.define(slots=False)
class DiskFailed(TemporarilyUnavailable):
    """The disk fails, is read-only, or no file descriptors are left.

    `problem` is the system's text. Cached images are still served.
    """

    problem: str
    retry_after: float = 5.0

    def __str__(self) -> str:
        return f"the blob space cannot be used at the moment: {self.problem}"


@attrs.define(slots=False)
class BlobDamaged(TemporarilyUnavailable):
    """A damaged blob on disk; it is set aside and pulled again."""

    digest: str
    problem: str

    def __str__(self) -> str:
        return f"the stored layer {self.digest} is damaged: {self.problem}"


class IndexDamaged(BlobDamaged):
    """A blob with a damaged index, which can be rebuilt without a pull."""


class IndexOutdated(IndexDamaged):
    """A blob with an index of another version of blobserve, which is made again without a pull."""


@attrs.define(slots=False)
class CodingDamaged(BlobDamaged):
    """A damaged coding of a file in a blob; the file itself is intact."""

    coding: bytes
    offset: int
    """The offset of the coded bytes; it identifies the coding."""


# --- The request, the configuration, the start ---------------------------------------------------


@attrs.define(slots=False)
class BadRequest(BlobserveError):
    """A malformed request; `problem` says how to correct it."""

    problem: str

    def __str__(self) -> str:
        return self.problem


class TargetTooLong(BadRequest):
    """A request line that is longer than the limit."""


class HeadTooLarge(BadRequest):
    """A request head with too many fields or bytes."""


class HeadTooSlow(BadRequest):
    """A request head that was not complete in time."""


class VersionNotSupported(BadRequest):
    """A request of another major version of HTTP than 1."""


class MethodNotAllowed(BadRequest):
    """A method that files do not support."""


class PostOnly(MethodNotAllowed):
    """A method other than POST at the place of webhooks."""


class NotAuthorized(BadRequest):
    """A notification without a valid secret."""


class LengthRequired(BadRequest):
    """A request body without ``Content-Length``."""


class BodyTooLarge(BadRequest):
    """A request body that is longer than the limit."""


class BodyTooSlow(HeadTooSlow):
    """A request body that was not complete in time."""


@attrs.define(slots=False)
class ConfigError(BlobserveError):
    """A configuration that cannot be used; each problem has its file, line and key."""

    problems: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.problems)


@attrs.define(slots=False)
class CannotOpen(BlobserveError):
    """An address or a file that cannot be opened; `key` is the configuration key that names it.

    For the operator alone: the text may name a path of the host.
    """

    key: str
    subject: str
    problem: str

    def __str__(self) -> str:
        return f"{self.key}: cannot open {self.subject}: {self.problem}"


@attrs.define(slots=False)
class SpaceUnusable(BlobserveError):
    """The blob space cannot be opened: not writable, another format, used by another process.

    For the operator alone: the text names paths of the host.
    """

    location: str
    problem: str

    def __str__(self) -> str:
        return f"blob space {self.location}: {self.problem}"
