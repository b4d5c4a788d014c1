"""Content hashes in file names, as bundlers write them.

A file with a hash of its content in its name may be cached for a year. A missed hash costs a
revalidation, but a wrong one costs a stale file, so in doubt a name has none.
"""

from __future__ import annotations

import re

_WHOLLY_IMMUTABLE = (b"_next/static/", b"_astro/", b"_nuxt/", b"_app/immutable/")
_IMMUTABLE_IF_HASHED = (b"assets/", b"static/")

BUNDLER_FOLDERS = _WHOLLY_IMMUTABLE + _IMMUTABLE_IF_HASHED
"""The folders at the root of a site into which bundlers write their files."""

_LONGEST_NAME = 255
_ENDING = re.compile(rb"\.[A-Za-z0-9]*[A-Za-z][A-Za-z0-9]*")
# VitePress, and webpack with its usual names for chunks.
_LEAN = re.compile(rb"\.lean\.js\Z")
_CHUNK = re.compile(rb"\.(?:async|bundle|chunk|lean|min)\.(?:js|css)\Z")

_HEX = re.compile(rb"(?=[a-f]*[0-9])(?=[0-9]*[a-f])[0-9a-f]{8,64}", re.IGNORECASE)
_HEX_WORD = re.compile(
    rb"[a-f]{4,}(?:19|20)[0-9]{2}|(?:19|20)[0-9]{2}[a-f]{4,}"  # facade2024
    rb"|[a-f]{4,}[0-9][a-f]{4,}"  # face2face
    rb"|(?:19|20)[0-9]{6}[a-f]"  # 20240131b
)
_UUID = re.compile(rb"(?:.*[-.])?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

_SHORT = re.compile(rb"[A-Za-z0-9_-]{8}")
_MIXED = re.compile(rb".*(?:[0-9]|[a-z].*[A-Z]|[A-Z].*[a-z])")
_PLAIN = re.compile(
    rb"(?:[A-Z]?[a-z]*|[A-Z]*)[0-9]*|[0-9]+(?:[A-Z]?[a-z]*|[A-Z]*)"
    rb"|[A-Za-z][a-z]{2,}[A-Z][a-z]{2,}"
)
"""A word, a number or both; or two words in camel case."""

_NUMERIC = re.compile(rb".*(?:[0-9]x[0-9]|[vV][0-9]+$|(?:[0-9].*){5})")
"""A size such as 16x9, a version at the end, or mostly digits."""

# The most frequent pairs of letters in English and technical words, then the next ones.
_COMMON = frozenset(
    b"ab ac ad al am an ap ar as at bl ca ce ch ck co ct da de di ea ec ed el em en er es "
    b"et ex fi ge ha he ia ic ie ig il im in io is it la le li ll lo ma me mi mo mp na nc "
    b"nd ne ng ni no ns nt od ol om on op or os ou pa pe po pr ra re ri ro rs rt sc se sh "
    b"si so ss st ta te th ti to tr ts un ur us ut ve".split()
)
_USUAL = frozenset(
    b"ag ai ak au av ay ba be bi bo br bu ci cl cr cs cu dd dl do dr ds du eb ee ef eg ei "
    b"ep ev ey fa fe ff fl fo fr ft ga gi go gr gs gu hi ho ib id if ip ir iv iz ka ke ki "
    b"ld ls lt lu ly mm ms mu nf nn nu nv ob oc of og oi oo ot ov ow pi pl pp ps pt pu qu "
    b"rc rd rg rl rm rn rr ru ry sa sl sp su tc tf tl tp tt tu ty ua ub ue ui ul um up va "
    b"vi wa we wi xt yp ys ze".split()
)


def is_immutable_name(path: bytes) -> bool:
    """Return whether a site's file never changes under this path, judged by the path alone.

    `path` is decoded and relative to the root of the site, where bundlers put their folders.
    A directory of that name deeper down may be anything.
    """
    if path.startswith(_WHOLLY_IMMUTABLE):
        return not path.endswith(b"/")
    return path.startswith(_IMMUTABLE_IF_HASHED) and has_content_hash(path.rpartition(b"/")[2])


def has_content_hash(name: bytes) -> bool:
    """Return whether a file name, without its folders, holds a hash of the content.

    That is eight characters of base64url before the ending, as of Vite, or at least eight
    hexadecimal digits, as of webpack.
    """
    return len(name) <= _LONGEST_NAME and (_has_short_hash(name) or _has_hex_hash(name))


def _has_short_hash(name: bytes) -> bool:
    """Return whether the last eight characters before the ending are a hash, as of Vite.

    The place comes from the end, because the hash itself may contain ``-``.
    """
    stem = _stem(name, _LEAN)
    last = stem[-8:]
    if stem[-9:-8] not in (b"-", b".") or _SHORT.fullmatch(last) is None:
        return False
    return _MIXED.match(last) is not None and not _is_readable(last)


def _has_hex_hash(name: bytes) -> bool:
    """Return whether the last part of a name is a hash in hexadecimal digits."""
    stem = _stem(name, _CHUNK)
    last = re.split(rb"[-.]", stem)[-1] if stem else name
    if _HEX.fullmatch(last) is None or not (last.islower() or last.isupper()):
        return False
    return _HEX_WORD.fullmatch(last.lower()) is None and _UUID.fullmatch(stem) is None


def _stem(name: bytes, double: re.Pattern[bytes]) -> bytes:
    """Return a name without its ending, which may be `double`; empty if it has no ending."""
    last = name.rfind(b".")
    found = double.search(name)
    if found is not None:
        return name[: found.start()]
    return name[:last] if last > 0 and _ENDING.fullmatch(name, last) else b""


def _is_readable(text: bytes) -> bool:
    """Return whether text consists of words, camel-case words and numbers, as far as one can tell.

    Pairs of letters that are frequent in words count for that. Changes between cases and digits,
    which a hash has everywhere, count against it. Text in lower case is taken for words, because
    bundlers write such hashes in hexadecimal digits only.
    """
    if (
        text.islower()
        or all(map(_PLAIN.fullmatch, re.split(rb"[-_]", text)))
        or _NUMERIC.match(text)
    ):
        return True
    digits = len(re.findall(rb"[0-9]", text))
    points = sum(_points(text[at : at + 2]) for at in range(len(text) - 1)) + max(0, digits - 1)
    # A separator at an end separates nothing.
    points -= 2 * sum(end in b"-_" for end in (text[:1], text[-1:]))
    return points > 0


def _points(pair: bytes) -> int:
    """Return how much two neighbours speak for a word; negative for a hash."""
    first, second = pair[:1], pair[1:]
    if second.islower() and first.isalpha():
        lower = pair.lower()
        return 2 if lower in _COMMON else 1 if lower in _USUAL else -1
    if second.isupper():
        return 0 if first.isupper() or not first.isalnum() else -2
    is_change = (first.isdigit() and second.islower()) or (first.islower() and second.isdigit())
    return -1 if is_change else 0
