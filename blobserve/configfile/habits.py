"""Habits of other tools that mean something else in our configuration: what to write instead.

Pure text functions. Parsers call them to say the remedy in a message. Each returns None if a text
shows no such habit.
"""

from __future__ import annotations

import re
from collections.abc import Container

_VARIABLE = re.compile(r"\$(?:\{[^}]*\}|[A-Za-z_]\w*|\([^)]*\))")
_ENVIRONMENT = re.compile(r"\$(?:\{[A-Za-z_]\w*[^}]*\}|[A-Z_][A-Z0-9_]+\b)")

_REGEXP = re.compile(
    r"^\^|(?<!\\)\$$|\\[./dDwWsSbB\-+*?()\[\]|$^]|\.\+|\]\+|\)[*+?{]|\{\d+(?:,\d*)?\}"
    r"|\(\?|\([^()/]*\|[^()/]*\)|\[\^"
)
"""Parts that globs do not have, and that hardly any file name has."""
_DOT_STAR = re.compile(r"(?<![0-9])\.\*")
_TAG_GLOB = re.compile(r"(?:[0-9A-Za-z_.*?-]|\[!?\]?[^\]]*\])*")

_REPEATED = re.compile(r"(?:[*+?]|\{\d+(?:,\d*)?\})")
_CLASSES = {"d": "[0-9]", "w": "[0-9A-Za-z_]", "D": "[!0-9]"}


def expands_variable(text: str) -> str | None:
    """Return a remedy for a path of this host with a variable of a shell."""
    found = _VARIABLE.search(text)
    return f"{found[0]} is not expanded: write the path itself" if found else None


def names_variable(text: str) -> str | None:
    """Return a warning for a path in an image that looks like a variable of a shell."""
    found = _ENVIRONMENT.search(text)
    return f"{found[0]} is not expanded: it stands for a file of this name" if found else None


def is_regexp(glob: str) -> str | None:
    """Return a remedy for a glob of files that is a regular expression."""
    if not _REGEXP.search(glob):
        return None
    return _write(glob) + "; put a character in [] to mean itself"


def is_no_tag_glob(glob: str) -> str | None:
    """Return a remedy for a glob of tags that no tag can match, as regular expressions are."""
    if _REGEXP.search(glob) or glob.startswith((".*", "/^")):
        return _write(glob)
    if _TAG_GLOB.fullmatch(glob) and not glob.startswith((".", "-")):
        return None
    if any(each in glob for each in "{(|,"):
        return "no tag matches, since a glob has no alternatives: write one glob for each"
    return "no tag matches: a tag has letters, digits, _ . and -, and begins with no . or -"


def is_doubtful_glob(glob: str) -> str | None:
    """Return a warning for a glob of tags that may be meant as a regular expression."""
    if not _DOT_STAR.search(glob):
        return None
    return (
        f"matches only tags with a dot there; if it is a regular expression,"
        f" write {re.sub(_DOT_STAR, '*', glob)}"
    )


def glob_of(regexp: str) -> str | None:
    """Return a glob that matches at least what a simple regular expression does."""
    text = regexp.removeprefix("/").removesuffix("/") if regexp.startswith("/^") else regexp
    text = text.removeprefix("^").removesuffix("$")
    glob, at = "", 0
    while at < len(text):
        piece, end = _piece(text, at)
        if piece is None:
            return None
        repeated = _REPEATED.match(text, end)
        if repeated:
            piece, end = _repeated(piece, repeated[0]), repeated.end()
        glob, at = glob + piece, end
    return re.sub(r"\*+", "*", glob) or None


def _piece(text: str, at: int) -> tuple[str | None, int]:
    """Return the glob of one piece of a regular expression, and its end."""
    character = text[at]
    if character == "\\" and at + 1 < len(text):
        escaped = text[at + 1]
        literal = escaped if not escaped.isalnum() else None
        return _CLASSES.get(escaped, literal), at + 2
    if character == ".":
        return "?", at + 1
    if character == "[":
        end = text.find("]", at + 2)
        if end < 0:
            return None, at
        inside = text[at + 1 : end].replace("\\d", "0-9").replace("\\w", "0-9A-Za-z_")
        inside = f"!{inside[1:]}" if inside.startswith("^") else inside
        return (None if "\\" in inside else f"[{inside}]"), end + 1
    return (None if character in "()|{}+*?^$\\" else character), at + 1


def _repeated(piece: str, how: str) -> str:
    if piece == "?" and how == "+":
        return "?*"
    if how == "+":
        return piece + "*"
    return "*"


def _write(regexp: str) -> str:
    glob = glob_of(regexp)
    instead = f"write {glob}" if glob else "use *, ? and [...], and one glob for each alternative"
    return f"this is a regular expression, but globs are expected: {instead}"


def is_no_key(key: str) -> str | None:
    """Return a remedy for a key of ``repos`` that is a glob, a regular expression or a variable."""
    if key.strip("/.*^$+") == "":
        return "* alone is not a key: allowAnyRepo: true serves repositories that are not listed"
    if found := _ENVIRONMENT.search(key):
        return f"{found[0]} is not expanded: write the repository itself"
    plain = key.removeprefix("^").removesuffix("$").replace("\\", "")
    registry, _, path = plain.partition("/")
    if "*" in registry or "?" in registry:
        return "a registry has no *: write one key for each registry"
    if not re.search(r"[*?^$\\()|+{}\[\]]", key):
        return None
    before = re.split(r"\.?[*?^$\\()|+{}\[\]]", path)[0]
    exact = before == path
    kept = path if exact else "/".join(filter(None, (before.rpartition("/")[0], "*")))
    instead = f"write {registry}/{kept}" + (
        "" if exact else ", which covers all repositories below"
    )
    if re.search(r"[\^$\\()|+{}\[\]]|\.\*", key):
        return f"this is a regular expression, and a key is a repository or ends with /*: {instead}"
    return f"* stands only at the end of a key, after /: {instead}"


_MEANT = {
    "file": ("path", "location"),
    "filename": ("path",),
    "files": ("path",),
    "name": ("path",),
    "target": ("path",),
    "dir": ("location", "workdir"),
    "directory": ("location", "workdir"),
    "path": ("location", "workdir"),
    "root": ("workdir", "location"),
    "docroot": ("workdir",),
    "subdir": ("workdir",),
    "prefix": ("workdir",),
    "find": ("search",),
    "from": ("search",),
    "match": ("search",),
    "pattern": ("search",),
    "regex": ("search",),
    "regexp": ("search",),
    "old": ("search",),
    "to": ("replacement",),
    "new": ("replacement",),
    "with": ("replacement",),
    "value": ("replacement",),
    "replace": ("replacement",),
    "replacewith": ("replacement",),
    "rewrite": ("replacements",),
    "substitutions": ("replacements",),
    "vars": ("inlineStatic",),
    "variables": ("inlineStatic",),
    "inlinevars": ("inlineStatic",),
    "spa": ("fallback",),
    "tryfiles": ("fallback",),
    "errorpage": ("notFound",),
    "404": ("notFound",),
    "autoindex": ("listing",),
    "browse": ("listing",),
    "mimetypes": ("types",),
    "contenttypes": ("types",),
    "tags": ("prePull",),
    "ttl": ("tagMaxAge",),
    "maxage": ("tagMaxAge",),
    "refresh": ("tagMaxAge",),
    "immutable": ("immutableTags",),
    "compression": ("codings",),
    "encodings": ("codings",),
    "arch": ("platform",),
    "architecture": ("platform",),
    "http": ("insecure",),
    "plainhttp": ("insecure",),
    "tls": ("insecure", "ca"),
    "cacert": ("ca",),
    "cafile": ("ca",),
    "skipverify": ("ca",),
    "insecureskipverify": ("ca",),
    "redirects": ("allowHosts",),
    "quota": ("maxSizeBytes",),
    "size": ("maxSizeBytes",),
    "limit": ("maxSizeBytes",),
    "cache": ("blobSpace",),
    "storage": ("blobSpace",),
    "repositories": ("repos",),
    "images": ("repos",),
    "address": ("listen",),
    "bind": ("listen",),
    "metrics": ("prometheusAddr",),
    "health": ("readinessProbeAddr",),
    "auth": ("dockerAuth",),
    "credentials": ("dockerAuth",),
    "username": ("dockerAuth",),
    "password": ("dockerAuth",),
    "logformat": ("accessLog",),
}
"""Words of other programs, each with the keys that it may mean, the most probable first."""


def meant(key: str, known: Container[str], used: Container[str]) -> str | None:
    """Return the known and unused key that another program's word for it means."""
    words = _MEANT.get(re.sub("[^a-z0-9]", "", key.lower()), ())
    return next((each for each in words if each in known and each not in used), None)
