"""Every way this fails, on one page.

One class per decision a caller can take, fields instead of formatted strings. The bases say what
kind of failure it is; which HTTP status that becomes is written in one table, in `blobserve.web`,
and known nowhere else. The text of an error is ours alone: it never repeats what an upstream said,
a path of the host's file system or a credential, so it may be shown to a client.
"""

from __future__ import annotations

import attrs


class BlobserveError(Exception):
    """Base of everything blobserve raises on purpose."""


# --- What was asked for does not exist -----------------------------------------------------------


class NotFound(BlobserveError):
    """What was asked for does not exist, or is not here and may not be fetched."""


@attrs.define(slots=False)
class MalformedReference(NotFound):
    """Text that is no image reference; `problem` says what is wrong or missing."""

    text: str
    problem: str

    def __str__(self) -> str:
        return f"not an image reference: {self.text!r}: {self.problem}"


@attrs.define(slots=False)
class ImageNotFound(NotFound):
    """The registry knows no such repository, tag or manifest.

    Of a local source, a few `names` that it has instead, and how many `more` there are.
    """

    reference: str
    names: tuple[str, ...] = ()
    more: int = 0

    def __str__(self) -> str:
        text = f"no such image: {self.reference}"
        if self.names:
            text += f"; its source has {', '.join(self.names)}"
        if self.names and self.more:
            text += f" and {self.more} more"
        return text


@attrs.define(slots=False)
class NoLayers(NotFound):
    """The image exists and has no layer to serve files from."""

    reference: str

    def __str__(self) -> str:
        return f"the image has no layers: {self.reference}"


@attrs.define(slots=False)
class PlatformNotFound(NotFound):
    """The reference names an index that has no image for the platform asked for."""

    platform: str

    def __str__(self) -> str:
        return f"the index has no image for {self.platform}"


@attrs.define(slots=False)
class BlobNotFound(NotFound):
    """The manifest names a layer that the registry does not have."""

    digest: str

    def __str__(self) -> str:
        return f"the registry does not have the layer {self.digest}"


@attrs.define(slots=False)
class NotCached(NotFound):
    """A read-only request for an image that is not in the blob space."""

    reference: str

    def __str__(self) -> str:
        return f"not in the blob space, and this request may not pull it: {self.reference}"


class NoWebSocket(NotFound):
    """A request to speak WebSocket, where there is nothing but files."""

    def __str__(self) -> str:
        return "no WebSocket here, only files"


@attrs.define(slots=False)
class PathNotFound(NotFound):
    """The image has no such file or directory, or a link on the way leads nowhere."""

    path: str
    layers: int = 1
    """How many layers the image has, when only the first of them was searched."""

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


# --- The registry, or what it sent, is at fault --------------------------------------------------


class UpstreamError(BlobserveError):
    """The registry, or the image it holds, cannot be used."""


@attrs.define(slots=False)
class RegistryRefused(UpstreamError):
    """The registry answered 401 or 403; `reason` says what that means for the credentials."""

    repository: str
    reason: str = ""

    def __str__(self) -> str:
        text = f"registry refused access to {self.repository}"
        return f"{text}: {self.reason}" if self.reason else text


@attrs.define(slots=False)
class RegistryFailed(UpstreamError):
    """The registry could not be reached, or answered what no registry should."""

    registry: str
    problem: str

    def __str__(self) -> str:
        return f"registry {self.registry} failed: {self.problem}"


@attrs.define(slots=False)
class AddressRefused(UpstreamError):
    """A host that resolves to an address we do not connect to; `key` is the setting that would."""

    host: str
    key: str

    def __str__(self) -> str:
        return (
            f"refused to connect to {self.host}: its address is not public; to allow it, {self.key}"
        )


@attrs.define(slots=False)
class ContentMismatch(UpstreamError):
    """Bytes that do not match the digest or the size they were promised under."""

    digest: str
    problem: str

    def __str__(self) -> str:
        return f"the registry sent wrong content for {self.digest}: {self.problem}"


@attrs.define(slots=False)
class BadImage(UpstreamError):
    """An image that cannot be served: schema 1, no tar, unknown compression, over a limit."""

    subject: str
    problem: str

    def __str__(self) -> str:
        return f"cannot serve {self.subject}: {self.problem}"


class BadLayer(Exception):
    """What is wrong with a layer, said where its name is not known; goes out as a `BadImage`."""


class BadToc(Exception):
    """What is wrong with a layer's published index: a reason not to use it, and no more."""


@attrs.define(slots=False)
class RuleTooLarge(UpstreamError):
    """A file too large for the rewriting rule that applies to it; sizes in bytes."""

    path: str
    rule: str
    limit: int

    def __str__(self) -> str:
        return f"{self.path} is larger than {self.limit} bytes, too large for its {self.rule} rule"


@attrs.define(slots=False)
class ListingTooLarge(UpstreamError):
    """A directory with more in it than is listed; `limit` in words."""

    path: str
    limit: str

    def __str__(self) -> str:
        return f"{self.path} cannot be listed: that would take more than {self.limit}"


# --- Coming again is right -----------------------------------------------------------------------


class TemporarilyUnavailable(BlobserveError):
    """Nothing is wrong; the same request may well succeed later."""

    retry_after: float = 1.0
    """Seconds after which trying again makes sense."""


class PullTimeout(TemporarilyUnavailable):
    """The image was not READY in time; its pull goes on."""

    def __str__(self) -> str:
        return "the image is still being pulled"


class QueueFull(TemporarilyUnavailable):
    """More layers wait for a download than the queue may hold."""

    retry_after = 5.0

    def __str__(self) -> str:
        return "too many layers are waiting to be pulled"


class SpaceContended(TemporarilyUnavailable):
    """Older pulls need the blob space; this one, the youngest, gave up."""

    retry_after = 5.0

    def __str__(self) -> str:
        return "the blob space is taken by pulls that began earlier"


class StoreClosed(TemporarilyUnavailable):
    """The store was closed, or is closing: the server is draining."""

    retry_after = 5.0

    def __str__(self) -> str:
        return "the server is shutting down"


class TooManyConnections(TemporarilyUnavailable):
    """As many connections as there may be, of one client or in all."""

    def __str__(self) -> str:
        return "too many connections"


@attrs.define(slots=False)
class RegistryBusy(TemporarilyUnavailable):
    """The registry answered 429 or 503; `retry_after` in seconds, its own word if it gave one."""

    registry: str
    retry_after: float = 5.0

    def __str__(self) -> str:
        return f"registry {self.registry} asks to come again later"


# --- The disk ------------------------------------------------------------------------------------


class NoSpace(BlobserveError):
    """There is no room for this, and there will be none by waiting."""


@attrs.define(slots=False)
class ImageTooLarge(NoSpace):
    """This image alone exceeds the bound of the blob space; `bound` in bytes."""

    digest: str
    bound: int

    def __str__(self) -> str:
        return f"{self.digest} alone is larger than the blob space ({self.bound} bytes)"


class DiskFull(NoSpace):
    """The disk, or the bound, is full after evicting all that may go."""

    def __str__(self) -> str:
        return "no space left for this image after removing all that may go"


@attrs.define(slots=False)
class DiskFailed(TemporarilyUnavailable):
    """The disk fails, is read-only, or we have no descriptors left; `problem` in its own words.

    Nothing is wrong with what was asked for, and what is here is served on.
    """

    problem: str
    retry_after: float = 5.0

    def __str__(self) -> str:
        return f"the blob space cannot be used at the moment: {self.problem}"


@attrs.define(slots=False)
class BlobDamaged(TemporarilyUnavailable):
    """A blob in the blob space that is no longer what it was: set aside, and pulled again."""

    digest: str
    problem: str

    def __str__(self) -> str:
        return f"the stored layer {self.digest} is damaged: {self.problem}"


class IndexDamaged(BlobDamaged):
    """A blob whose index alone is damaged: that can be made again, without a pull."""


@attrs.define(slots=False)
class CodingDamaged(BlobDamaged):
    """A coding of one of a blob's files that is damaged, of which the file itself is not."""

    coding: bytes
    offset: int
    """Of the coded bytes, which tells one from the others."""


# --- The request, the configuration, the start ---------------------------------------------------


@attrs.define(slots=False)
class BadRequest(BlobserveError):
    """A request that is itself wrong; `problem` says how to mend it."""

    problem: str

    def __str__(self) -> str:
        return self.problem


class TargetTooLong(BadRequest):
    """A request line longer than we read."""


class HeadTooLarge(BadRequest):
    """A request head with more fields, or more bytes, than we read."""


class HeadTooSlow(BadRequest):
    """A request head that did not come to its end in time."""


class VersionNotSupported(BadRequest):
    """A request of another major version of HTTP than 1."""


class MethodNotAllowed(BadRequest):
    """A method other than those that files have."""


@attrs.define(slots=False)
class ConfigError(BlobserveError):
    """A configuration that cannot be used: every problem at once, each with file, line and key."""

    problems: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.problems)


@attrs.define(slots=False)
class CannotOpen(BlobserveError):
    """An address or a file that cannot be opened; `key` is where the configuration names it.

    For the operator alone: the text may name a path of the host.
    """

    key: str
    subject: str
    problem: str

    def __str__(self) -> str:
        return f"{self.key}: cannot open {self.subject}: {self.problem}"


@attrs.define(slots=False)
class SpaceUnusable(BlobserveError):
    """The blob space cannot be opened: not writable, another format, another process's own.

    For the operator alone: the text names paths of the host.
    """

    location: str
    problem: str

    def __str__(self) -> str:
        return f"blob space {self.location}: {self.problem}"
