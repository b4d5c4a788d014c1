"""The responses for errors."""

from __future__ import annotations

import pytest

from blobserve import errors
from blobserve.web.http.response import Answer
from blobserve.web.http.status import is_unexpected, refusal


def text(answer: Answer) -> str:
    """Return the body of an error response."""
    return bytes(answer.body.read_cached(0, answer.body.size) or b"").decode()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.MalformedReference("x", "no tag"), 404),
        (errors.ImageNotFound("r/x:1"), 404),
        (errors.NoLayers("r/x:1"), 404),
        (errors.BlobNotFound("sha256:00"), 404),
        (errors.NotCached("r/x:1"), 404),
        (errors.PathNotFound("/x"), 404),
        (errors.Forbidden("r/x"), 403),
        (errors.RegistryRefused("r/x"), 502),
        (errors.RegistryFailed("r", "it is down"), 502),
        (errors.ContentMismatch("sha256:00", "wrong size"), 502),
        (errors.BadImage("r/x:1", "no tar"), 502),
        (errors.RuleTooLarge("/x", "replacements", 8), 502),
        (errors.PullTimeout(), 503),
        (errors.QueueFull(), 503),
        (errors.SpaceContended(), 503),
        (errors.StoreClosed(), 503),
        (errors.RegistryBusy("r"), 503),
        (errors.TooManyConnections(), 503),
        (errors.ImageTooLarge("sha256:00", 8), 507),
        (errors.DiskFull(), 507),
        (errors.BadRequest("what?"), 400),
        (errors.TargetTooLong("too long"), 414),
        (errors.HeadTooLarge("too large"), 431),
        (errors.MethodNotAllowed("no"), 405),
        (errors.HeadTooSlow("too slow"), 408),
        (errors.BlobDamaged("sha256:00", "cut short"), 503),
        (ZeroDivisionError("secret"), 500),
    ],
)
def test_statuses(error: Exception, status: int) -> None:
    """Every error has its status, as plain text with no-store and nosniff."""
    answer = refusal(error, "the-id")
    headers = dict(answer.headers)
    assert answer.status == status
    assert headers[b"Content-Type"] == b"text/plain; charset=utf-8"
    assert headers[b"X-Content-Type-Options"] == b"nosniff"
    assert headers[b"Cache-Control"] == b"no-store"
    assert is_unexpected(error) == (status == 500)


def test_forbidden() -> None:
    """The response for a forbidden repository names it."""
    assert text(refusal(errors.Forbidden("r.example/x"), "id")) == (
        'forbidden repo: "r.example/x"\n'
    )


def test_come_again() -> None:
    """All retryable errors have the same body and a Retry-After."""
    answer = refusal(errors.RegistryBusy("r", 2.2), "id")
    assert text(answer) == "timeout"
    assert dict(answer.headers)[b"Retry-After"] == b"3"
    assert dict(refusal(errors.PullTimeout(), "id").headers)[b"Retry-After"] == b"1"


def test_navigation() -> None:
    """A page that is not ready reloads itself, and a script does not."""
    assert dict(refusal(errors.PullTimeout(), "id", True).headers)[b"Refresh"] == b"2"
    assert b"Refresh" not in dict(refusal(errors.PullTimeout(), "id").headers)
    assert b"Refresh" not in dict(refusal(errors.Forbidden("r"), "id", True).headers)


def test_allow() -> None:
    """A refused method gets the list of allowed ones."""
    answer = refusal(errors.MethodNotAllowed("no"), "id")
    assert dict(answer.headers)[b"Allow"] == b"GET, HEAD, OPTIONS"


def test_unexpected() -> None:
    """An unexpected error has an id for the log and no details."""
    assert text(refusal(ZeroDivisionError("secret"), "the-id")) == (
        "internal error; see request the-id in the server log\n"
    )


@pytest.mark.parametrize(
    ("names", "more", "said"),
    [
        ((), 0, ""),
        (("v1",), 0, "; its source has v1"),
        (("v1", "v2"), 3, "; its source has v1, v2 and 3 more"),
        ((), 3, "; its source has 3 other names"),
    ],
)
def test_names_of_a_local_source(names: tuple[str, ...], more: int, said: str) -> None:
    """A 404 of a local source says which names it has, or how many if they cannot be shown."""
    error = errors.ImageNotFound("a.example/b:v9", names, more)
    assert str(error) == f"no such image: a.example/b:v9{said}"
