"""Configuration files: `load` returns a `Config`. This module lists all keys.

It reads YAML, the JSON of the original, or a mapping of an embedding application. An error has all
problems, each with its file, line and path. Defaults are in `blobserve.config`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import attrs

from blobserve import config
from blobserve.config import Config, Limits, RepositoryRules
from blobserve.configfile import image_names, scalars, sites, webhooks
from blobserve.configfile.schema import (
    ConfigDocument,
    ConfigValue,
    InvalidValue,
    Keys,
    Parser,
    attributes,
    by_name,
    each,
    made,
)
from blobserve.configfile.syntax import SyntaxNode, Unreadable, from_json, from_python, from_yaml
from blobserve.errors import ConfigError

_NOTHING_SERVED = (
    "repos: no repository is listed and allowAnyRepo is false, so every request gets 403"
)

ConfigSource = Config | Mapping[str, Any] | str | os.PathLike[str]


def load(source: ConfigSource) -> Config:
    """Read a configuration from a file or from a mapping of the same form; return a `Config` as is.

    A file that begins with ``{`` has the JSON form of the original. Relative paths start at the
    directory of the file; those of a mapping start at the working directory.

    :raises ConfigError: with all problems.
    """
    if isinstance(source, Config):
        return source
    if isinstance(source, Mapping):
        return _build(ConfigDocument("configuration", Path.cwd()), lambda: from_python(source))
    path = Path(source)
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise ConfigError((f"{path}: {error.strerror}",)) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError((f"{path}:{line}: not UTF-8",)) from error
    document = ConfigDocument(str(path), path.absolute().parent, text.startswith("{"))
    return _build(document, lambda: (from_json if document.is_original else from_yaml)(text))


def _build(document: ConfigDocument, read: Callable[[], SyntaxNode]) -> Config:
    try:
        found = attributes(ConfigValue(document, read()), _TOP, ("blobserve",))
        own = found.pop("blobserve")
        found.pop("pprof", None)
        if document.is_original:
            own.setdefault("timeout", math.inf)
        if not (own.get("repos") or own.get("sites") or own.get("allow_any_repo")):
            document.warnings.append(document.at(None, _NOTHING_SERVED))
        return Config(**own, **found, warnings=tuple(document.warnings))
    except Unreadable as error:
        raise ConfigError((document.at(error.line, error.problem),)) from error
    except InvalidValue as wrong:
        in_order = sorted(wrong.problems, key=lambda problem: problem[0])
        raise ConfigError(tuple(text for _, text in in_order)) from wrong


@attrs.frozen
class _Repository:
    """An entry of ``repos``."""

    rules: RepositoryRules
    has_immutable_paths: bool
    """Whether it has the key ``immutablePaths``, maybe with an empty list."""


def _repository(value: ConfigValue, key: str) -> _Repository:
    own = attributes(value, _REPOSITORY)
    rules = RepositoryRules(key=key, **own)
    if rules.versions is None:
        for name in ("versionHeader", "versionCookie"):
            member = value.members().get(name)
            if member is not None and scalars.flag(member):
                problem = "has no effect on URLs of this repository without keepVersions"
                value.document.warnings.append(member.message(problem))
    if rules.pre_pull and key.endswith("/*"):
        raise value.wrong("prePull needs a single repository, but this key matches many")
    return _Repository(rules, "immutable_paths" in own)


def _headers(value: ConfigValue) -> tuple[tuple[str, str], ...]:
    return tuple(by_name(image_names.header_name, image_names.header_value)(value).items())


def _keep_versions(value: ConfigValue) -> config.KeepVersions:
    """Return the earlier versions to keep; false keeps none."""
    if value.node.kind == "boolean" and not value.node.value:
        return config.KeepVersions(count=0)
    if value.node.kind != "mapping":
        raise value.expected("mapping such as {count: 10, for: 7d}, or false")
    return config.KeepVersions(**attributes(value, _KEEP_VERSIONS))


def _version_count(value: ConfigValue) -> int:
    """Return the number of versions to keep; 0 keeps none."""
    number = value.node.value
    is_whole = value.node.kind == "number" and isinstance(number, int)
    if not is_whole or not 0 <= number <= config.MOST_VERSIONS:
        raise value.expected(f"whole number from 0 to {config.MOST_VERSIONS}")
    return int(number)


def _types(value: ConfigValue) -> tuple[config.FileType, ...]:
    return tuple(by_name(image_names.file_pattern, _file_type)(value).values())


def _file_type(value: ConfigValue, pattern: str) -> config.FileType:
    """Return the type of a pattern: text, or a mapping for files that are coded."""
    if value.node.kind != "mapping":
        return config.FileType(pattern, image_names.media_type(value))
    return config.FileType(pattern, **attributes(value, _FILE_TYPE, ("type",)))


def _blobserve(value: ConfigValue) -> dict[str, Any]:
    """Read the keys under ``blobserve``. Paths in messages begin below that key."""
    if value.node.kind != "mapping":
        raise value.expected("mapping")
    value = attrs.evolve(value, path="")
    own = attributes(value, _BELOW_BLOBSERVE)
    repos: dict[str, _Repository] = own.get("repos", {})
    if repos:
        own["repos"] = {key: each.rules for key, each in repos.items()}
    if "sites" in own:
        named = frozenset(key for key, each in repos.items() if each.has_immutable_paths)
        own["sites"] = sites.complete(own["sites"], own.get("repos", {}), named)
    if not own.get("allow_any_repo"):
        value.document.warnings.extend(_without_effect(value))
    return own


def _without_effect(value: ConfigValue) -> tuple[str, ...]:
    """Return warnings of registries with ``allowAnyRepo`` while ``blobserve`` does not have it."""
    problem = "has no effect unless allowAnyRepo under blobserve is true"
    registries = value.members().get("registries")
    keys = [each.members().get("allowAnyRepo") for each in _values(registries)]
    return tuple(key.message(problem) for key in keys if key is not None and scalars.flag(key))


def _values(value: ConfigValue | None) -> list[ConfigValue]:
    return [] if value is None else list(value.members().values())


def _pprof(value: ConfigValue) -> str:
    address = scalars.text(value)
    if address:
        problem = "pprof is not supported; this key has no effect"
        value.document.warnings.append(value.message(problem))
    return address


def _camel_case(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.capitalize, rest))


def _limit(name: str) -> Parser[Any]:
    if name.endswith("_per_address"):
        return lambda value: None if value.node.value == 0 else scalars.count(value)
    if name.endswith(("_size", "_rate")):
        return scalars.positive_size
    return scalars.positive_duration if name.endswith("_timeout") else scalars.count


_LIMITS: Keys = {
    _camel_case(field.name): (field.name, _limit(field.name)) for field in attrs.fields(Limits)
}

_REPLACEMENT: Keys = {
    "path": ("path", image_names.image_path),
    "search": ("search", scalars.filled),
    "replacement": ("replacement", scalars.text),
}

_INLINE_VARIABLE: Keys = {
    "search": ("search", scalars.filled),
    "replacement": ("replacement", scalars.text),
}

_FILE_TYPE: Keys = {
    "type": ("media_type", image_names.media_type),
    "coding": ("coding", scalars.one_of("br", "gzip", "zstd")),
}

_KEEP_VERSIONS: Keys = {
    "count": ("count", _version_count),
    "for": ("seconds", scalars.positive_duration),
    "paths": ("paths", each(image_names.path_glob)),
}

_REPOSITORY: Keys = {
    "prePull": ("pre_pull", each(image_names.tag)),
    "workdir": ("workdir", image_names.workdir),
    "replacements": (
        "replacements",
        each(made(config.Replacement, _REPLACEMENT, tuple(_REPLACEMENT))),
    ),
    "inlineStatic": (
        "inline_static",
        each(made(config.InlineVariable, _INLINE_VARIABLE, tuple(_INLINE_VARIABLE))),
    ),
    "layers": ("layers", scalars.one_of("first", "all")),
    "platform": ("platform", image_names.platform),
    "tagMaxAge": ("tag_max_age", scalars.duration),
    "immutableTags": ("immutable_tags", each(image_names.tag_glob)),
    "immutablePaths": ("immutable_paths", each(image_names.path_glob)),
    "headers": ("headers", _headers),
    "types": ("types", _types),
    "listing": ("listing", scalars.flag),
    "contentLocation": ("content_location", scalars.flag),
    "fallback": ("fallback", image_names.page),
    "notFound": ("not_found", image_names.page),
    "earlyServe": ("early_serve", scalars.flag),
    "codings": ("codings", each(scalars.one_of("zstd", "gzip"))),
    "precompressed": ("precompressed", scalars.flag),
    "source": ("source", scalars.source),
    "keepVersions": ("keep_versions", _keep_versions),
    "versionHeader": ("version_header", scalars.flag),
    "versionCookie": ("version_cookie", scalars.flag),
}

_REGISTRY: Keys = {
    "insecure": ("insecure", scalars.flag),
    "ca": ("ca", scalars.file),
    "allowHosts": ("allow_hosts", lambda value: frozenset(each(image_names.upstream_host)(value))),
    "allowAnyRepo": ("allow_any_repo", scalars.flag),
    "proxy": ("proxy", scalars.proxy),
}

_BLOB_SPACE: Keys = {
    "location": ("location", scalars.path),
    "maxSizeBytes": ("max_size", scalars.bound),
    "gcInterval": ("gc_interval", scalars.positive_duration),
    "verifyOnRead": ("verify_on_read", scalars.flag),
}

_WEBHOOKS: Keys = {
    "listen": ("listen", scalars.endpoints),
    "path": ("path", webhooks.place),
    "secretFile": ("secret_file", webhooks.secret_file),
}

_ACCESS_LOG: Keys = {
    "format": ("format", scalars.one_of("text", "json", "off")),
    "file": ("file", scalars.log_file),
}

_OWN: Keys = {
    "port": ("listen", scalars.port),
    "listen": ("listen", scalars.endpoints),
    "timeout": ("timeout", scalars.timeout),
    "drainTimeout": ("drain_timeout", scalars.duration),
    "allowAnyRepo": ("allow_any_repo", scalars.flag),
    "hotPath": ("hot_path", scalars.flag),
    "repos": ("repos", by_name(image_names.repository_key, _repository)),
    "sites": ("sites", sites.entries(_REPOSITORY)),
    "registries": (
        "registries",
        by_name(
            image_names.registry_key, lambda value, _: made(config.RegistryRules, _REGISTRY)(value)
        ),
    ),
    "blobSpace": ("blob_space", made(config.BlobSpaceRules, _BLOB_SPACE)),
    "limits": ("limits", made(Limits, _LIMITS)),
    "webhooks": ("webhooks", webhooks.rules(_WEBHOOKS)),
    "trustedProxies": ("trusted_proxies", each(scalars.network)),
}

_BESIDE: Keys = {
    "blobserve": ("blobserve", _blobserve),
    "accessLog": ("access_log", made(config.AccessLogRules, _ACCESS_LOG)),
    "dockerAuth": ("docker_auth", scalars.optional_file),
    "pprofAddr": ("pprof", _pprof),
    "prometheusAddr": ("prometheus_addr", scalars.address),
    "readinessProbeAddr": ("readiness_addr", scalars.address),
}


def _misplaced(keys: Keys, where: str) -> Keys:
    """Return keys that belong elsewhere, with parsers that refuse them and name the right place."""

    def refuse(value: ConfigValue) -> NoReturn:
        raise value.unknown(f"this key belongs {where}")

    return {key: (key, refuse) for key in keys}


_BELOW_BLOBSERVE = {**_OWN, **_misplaced(_BESIDE, "beside blobserve, not under it")}
_TOP = {**_BESIDE, **_misplaced(_OWN, "under blobserve")}
