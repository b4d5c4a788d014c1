"""The reasons why a request got no response.

Pure. Reads the nested errors of Twisted's client and of its TLS.
"""

from __future__ import annotations

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectError, ConnectingCancelledError, DNSLookupError
from twisted.web._newclient import RequestNotSent
from twisted.web.client import RequestTransmissionFailed, ResponseFailed

from blobserve.oci.http.connection_pool import HungUpOnTls, SpeaksTls
from blobserve.oci.http.name_lookup import NameTooSlow, TooManyNames
from blobserve.oci.http.tunnel import TunnelError

NO_ANSWER = (
    CancelledError,
    ConnectError,
    ConnectingCancelledError,
    DNSLookupError,
    RequestNotSent,
    RequestTransmissionFailed,
    ResponseFailed,
)
"""The errors that Twisted raises instead of a response."""

_NOT_CONNECTED = (ConnectError, ConnectingCancelledError, DNSLookupError, RequestNotSent)


def is_untrusted(error: BaseException) -> bool:
    """Return whether no trusted authority signed the peer's certificate, or it is not valid now."""
    if isinstance(error, SSL.Error):
        return "certificate" in str(error)
    return any(map(is_untrusted, _reasons(error)))


def is_misnamed(error: BaseException) -> bool:
    """Return whether the peer's certificate is for another name."""
    return isinstance(error, VerificationError) or any(map(is_misnamed, _reasons(error)))


def is_hung_up(error: BaseException) -> bool:
    """Return whether the peer closed the connection during the TLS handshake."""
    return isinstance(error, HungUpOnTls) or any(map(is_hung_up, _reasons(error)))


def is_tls(error: BaseException) -> bool:
    """Return whether the peer answered plain HTTP with TLS."""
    return isinstance(error, SpeaksTls) or any(map(is_tls, _reasons(error)))


def is_no_tls(error: BaseException) -> bool:
    """Return whether the peer does not speak TLS. A peer that sends an alert does: RFC 8446 §6."""
    if isinstance(error, SSL.Error):
        return "alert" not in str(error) and not is_untrusted(error)
    return any(map(is_no_tls, _reasons(error)))


def is_cancelled(error: BaseException) -> bool:
    """Return whether the request was cancelled."""
    if isinstance(error, CancelledError | ConnectingCancelledError):
        return True
    return any(map(is_cancelled, _reasons(error)))


def was_asked(error: BaseException) -> bool:
    """Return whether the request may have reached the peer, since there was a connection."""
    if isinstance(error, (*_NOT_CONNECTED, SSL.Error, HungUpOnTls)):
        return False
    return all(map(was_asked, _reasons(error)))


def problem_of(error: BaseException) -> str:
    """Return the text of an error."""
    if isinstance(error, TunnelError):
        return error.problem
    if isinstance(error, NameTooSlow):
        return f"its name was not resolved within {error.within:g} s"
    if isinstance(error, TooManyNames):
        return "too many names are being looked up"
    if isinstance(error, DNSLookupError):
        return "its name does not resolve"
    if isinstance(error, ConnectError):
        return "it does not accept connections"
    return "it closed the connection without a response"


def _reasons(error: BaseException) -> list[BaseException]:
    """Return the errors inside one of Twisted's client, such as `ResponseFailed`."""
    return [each.value for each in getattr(error, "reasons", ())]
