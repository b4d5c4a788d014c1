"""A request that is refused before any image is looked at, counted and logged as others are."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from blobserve.errors import BlobserveError
from blobserve.web.asked import Asked
from blobserve.web.resource import ImageResource, head_of
from blobserve.web.response import send
from blobserve.web.status import refusal


class Refused(Resource):
    """In the place of `images` for one request, which is refused for `reason`."""

    isLeaf = True  # noqa: N815

    def __init__(self, images: ImageResource, reason: BlobserveError) -> None:
        super().__init__()
        self._images = images
        self._reason = reason

    def render(self, request: Request) -> int:
        """See `IResource.render`."""
        asked = Asked(head_of(request))
        account = self._images.accounts.begin(request, asked)
        answer = refusal(self._reason, account.request_id, asked.head.is_navigation)
        dressed = self._images.files.dressed(answer, asked)
        sending = Deferred.fromCoroutine(send(request, dressed, self._images.pace))
        request.notifyFinish().addErrback(lambda _: sending.cancel())
        sending.addCallbacks(lambda _: request.finish(), _left)
        return NOT_DONE_YET


def _left(why: Failure) -> None:
    why.trap(CancelledError)
