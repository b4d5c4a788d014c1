"""Host names in canonical form."""

from __future__ import annotations

import pytest

from blobserve.names.host import canonical_host, folded_host


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("App.Example.COM.", "app.example.com"),
        ("localhost", "localhost"),
        ("my_app.example", "my_app.example"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER。example", "xn--bcher-kva.example"),
        ("straße.example", "xn--strae-oqa.example"),
        ("\uff41pp.example", "app.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("xn--i-7iq.example", "xn--i-7iq.example"),
        ("my_app.bücher.example", "my_app.xn--bcher-kva.example"),
        ("a.1.example", "a.1.example"),
    ],
)
def test_canonical_hosts(written: str, canonical: str) -> None:
    """A host has one canonical form, which stays as it is."""
    assert canonical_host(written) == folded_host(written) == canonical
    assert canonical_host(canonical) == canonical


@pytest.mark.parametrize(
    "written",
    [
        "",
        ".",
        "a..b",
        "-a.b",
        "a-.b",
        "a b",
        "a/b",
        "a:1",
        "1.2.3.4",
        "0x1",
        "[::1]",
        "☃.b",
        "a\u202e.b",
    ],
)
def test_other_text(written: str) -> None:
    """Text that is no host name is refused."""
    with pytest.raises(ValueError, match=r"."):
        canonical_host(written)
