"""Host names: their canonical form, and those that mean this machine. Pure."""

from __future__ import annotations

import ipaddress
import re

import idna

_LABEL = re.compile(r"[0-9a-z_](?:[0-9a-z_-]{0,61}[0-9a-z_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_LENGTH = 253  # RFC 1035 §2.3.4, written as text

_LOOPBACK = (ipaddress.IPv4Network("127.0.0.0/8"), ipaddress.IPv6Network("::1/128"))


def is_loopback_name(host: str) -> bool:
    """Return whether this host, as written, can only be this machine: RFC 6761 §6.3."""
    host = host.removesuffix(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    if address.version == 6 and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in _LOOPBACK)


def canonical_host(text: str) -> str:
    """Return a host name in lower case, with A-labels (RFC 5890) and without a dot at its end.

    :raises ValueError: for text that is no host name, such as an IP address.
    """
    name = folded_host(text)
    if not name:
        raise ValueError("the host is missing")
    labels = name.split(".")
    if "" in labels:
        raise ValueError("a host has no empty label, so no two dots side by side")
    if _NUMBER.fullmatch(labels[-1]) or ":" in name or name.startswith("["):
        raise ValueError("an IP address is not a host name")
    for label in labels:
        if len(label) > 63:
            raise ValueError("a label of a host has at most 63 characters")
        if not _LABEL.fullmatch(label):
            raise ValueError(
                "a host has letters, digits, - and _, and no label begins or ends with -"
            )
        if label.startswith("xn--") and not _is_punycode(label[4:]):
            raise ValueError(f"{label} is not a valid A-label")
    if len(name) > _LENGTH:
        raise ValueError(f"a host has at most {_LENGTH} characters")
    return name


def folded_host(text: str) -> str:
    """Return any text as hosts are compared: in lower case, with A-labels, without the last dot.

    :raises ValueError: when a label cannot be written as an A-label.
    """
    if text.isascii():
        return text.lower().removesuffix(".")
    try:
        # UTS 46, as browsers apply it: full-width letters and dots become ordinary ones.
        labels = idna.uts46_remap(text, std3_rules=False).split(".")
        found = (label if label.isascii() else idna.alabel(label).decode() for label in labels)
        return ".".join(found).removesuffix(".")
    except UnicodeError as error:
        raise ValueError("it has a character that host names do not have") from error


def _is_punycode(text: str) -> bool:
    try:
        return bool(text.encode("ascii").decode("punycode"))
    except UnicodeError:
        return False
