"""Content types by file name: the same on every Python and every host.

Pure. Unlike `mimetypes` nothing is read from the system, and ``.gz`` is a type of its own, not a
coding of another.
"""

from __future__ import annotations

UNKNOWN = b"application/octet-stream"

_TYPES = {
    "application/atom+xml": "atom",
    "application/epub+zip": "epub",
    "application/gzip": "gz tgz",
    "application/java-archive": "jar",
    "application/json": "json map",
    "application/ld+json": "jsonld",
    "application/manifest+json": "webmanifest",
    "application/msword": "doc",
    "application/ogg": "ogx",
    "application/pdf": "pdf",
    "application/rss+xml": "rss",
    "application/rtf": "rtf",
    "application/schema+json": "schema",
    "application/vnd.ms-excel": "xls",
    "application/vnd.ms-fontobject": "eot",
    "application/vnd.ms-powerpoint": "ppt",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": "pptx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/wasm": "wasm",
    "application/x-7z-compressed": "7z",
    "application/x-bzip2": "bz2",
    "application/x-tar": "tar",
    "application/x-xz": "xz",
    "application/xhtml+xml": "xhtml",
    "application/xml": "xml xsd xsl",
    "application/yaml": "yaml yml",
    "application/zip": "vsix zip",
    "application/zstd": "zst",
    "audio/aac": "aac",
    "audio/flac": "flac",
    "audio/midi": "mid midi",
    "audio/mp4": "m4a",
    "audio/mpeg": "mp3",
    "audio/ogg": "oga ogg opus",
    "audio/wav": "wav",
    "audio/webm": "weba",
    "font/collection": "ttc",
    "font/otf": "otf",
    "font/ttf": "ttf",
    "font/woff": "woff",
    "font/woff2": "woff2",
    "image/apng": "apng",
    "image/avif": "avif",
    "image/bmp": "bmp",
    "image/gif": "gif",
    "image/heic": "heic",
    "image/jpeg": "jpe jpeg jpg",
    "image/jxl": "jxl",
    "image/png": "png",
    "image/svg+xml": "svg",
    "image/tiff": "tif tiff",
    "image/vnd.microsoft.icon": "cur ico",
    "image/webp": "webp",
    "model/gltf+json": "gltf",
    "model/gltf-binary": "glb",
    "text/cache-manifest": "appcache",
    "text/calendar": "ics",
    "text/css": "css",
    "text/csv": "csv",
    "text/html": "htm html",
    "text/javascript": "cjs js mjs",
    "text/markdown": "markdown md",
    "text/plain": "conf ini log text txt",
    "text/vcard": "vcf",
    "text/vtt": "vtt",
    "video/mp2t": "ts",
    "video/mp4": "m4v mp4",
    "video/mpeg": "mpeg mpg",
    "video/ogg": "ogv",
    "video/quicktime": "mov",
    "video/webm": "webm",
    "video/x-matroska": "mkv",
    "video/x-msvideo": "avi",
}


def _written(media_type: str) -> bytes:
    return media_type.encode() + (b"; charset=utf-8" if media_type.startswith("text/") else b"")


# Beside text, JSON and XML: what is not compressed in itself, and gains by it.
_COMPRESSIBLE = {
    "application/rtf",
    "application/vnd.ms-fontobject",
    "application/wasm",
    "application/x-tar",
    "application/yaml",
    "font/collection",
    "font/otf",
    "font/ttf",
    "image/bmp",
    "image/vnd.microsoft.icon",
}


def _is_compressible(media_type: str) -> bool:
    kind, _, name = media_type.partition("/")
    is_structured = name in ("json", "xml") or name.endswith(("+json", "+xml"))
    return kind == "text" or is_structured or media_type in _COMPRESSIBLE


_BY_EXTENSION = {
    extension.encode(): _written(media_type)
    for media_type, extensions in _TYPES.items()
    for extension in extensions.split()
}

_CODED = {_written(media_type) for media_type in _TYPES if _is_compressible(media_type)}


def content_type(name: bytes) -> bytes:
    """The value of ``Content-Type`` for a file of this name; directories before it do not count."""
    stem, dot, extension = name.rpartition(b"/")[2].rpartition(b".")
    # A name that begins with its only dot, such as .html, has no extension.
    return _BY_EXTENSION.get(extension.lower(), UNKNOWN) if stem and dot else UNKNOWN


def is_compressible(content_type: bytes) -> bool:
    """Whether what is said to be of one of our types is worth a content coding, if it is large."""
    return content_type in _CODED


def is_html(content_type: bytes) -> bool:
    """Whether this is a page: what browsers navigate to, and may have moved on a moment later."""
    return content_type.startswith(b"text/html")
