"""Content types by file name, the same on every Python and every host.

Pure. `mimetypes` is not used: it reads files of the system, and treats ``.gz`` as a coding and not
as a type.
"""

from __future__ import annotations

from functools import lru_cache

from blobserve.config import RepositoryRules

UNKNOWN = b"application/octet-stream"
_TEXT = b"text/plain; charset=utf-8"
_TYPESCRIPT = b"ts"

_TYPES = {
    "application/atom+xml": "atom",
    "application/cbor": "cbor",
    "application/dash+xml": "mpd",
    "application/epub+zip": "epub",
    "application/geo+json": "geojson",
    "application/gpx+xml": "gpx",
    "application/gzip": "gz tgz",
    "application/java-archive": "jar",
    "application/json": "json map",
    "application/ld+json": "jsonld",
    "application/manifest+json": "webmanifest",
    "application/mathml+xml": "mathml",
    "application/msword": "doc",
    "application/n-quads": "nq",
    "application/n-triples": "nt",
    "application/octet-stream": "bin dmg img iso msi",
    "application/ogg": "ogx",
    "application/pdf": "pdf",
    "application/pkix-cert": "cer",
    "application/postscript": "ai eps ps",
    "application/rdf+xml": "owl rdf",
    "application/rss+xml": "rss",
    "application/rtf": "rtf",
    "application/schema+json": "schema",
    "application/smil+xml": "smil",
    "application/sql": "sql",
    "application/toml": "toml",
    "application/trig": "trig",
    "application/ttml+xml": "ttml",
    "application/vnd.android.package-archive": "apk",
    "application/vnd.apache.arrow.file": "arrow",
    "application/vnd.apache.parquet": "parquet",
    "application/vnd.apple.mpegurl": "m3u8",
    "application/vnd.debian.binary-package": "deb",
    "application/vnd.google-earth.kml+xml": "kml",
    "application/vnd.google-earth.kmz": "kmz",
    "application/vnd.mapbox-vector-tile": "mvt",
    "application/vnd.microsoft.portable-executable": "dll exe",
    "application/vnd.ms-excel": "xls",
    "application/vnd.ms-fontobject": "eot",
    "application/vnd.ms-powerpoint": "ppt",
    "application/vnd.oasis.opendocument.graphics": "odg",
    "application/vnd.oasis.opendocument.presentation": "odp",
    "application/vnd.oasis.opendocument.spreadsheet": "ods",
    "application/vnd.oasis.opendocument.text": "odt",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": "pptx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.rar": "rar",
    "application/vnd.sqlite3": "sqlite sqlite3",
    "application/wasm": "wasm",
    "application/wsdl+xml": "wsdl",
    "application/x-7z-compressed": "7z",
    "application/x-bittorrent": "torrent",
    "application/x-bzip2": "bz2",
    "application/x-ipynb+json": "ipynb",
    "application/x-ndjson": "ndjson",
    "application/x-subrip": "srt",
    "application/x-tar": "tar",
    "application/x-x509-ca-cert": "crt",
    "application/x-xpinstall": "xpi",
    "application/x-xz": "xz",
    "application/xhtml+xml": "xhtml",
    "application/xml": "xml xsd xsl",
    "application/xml-dtd": "dtd",
    "application/xslt+xml": "xslt",
    "application/yaml": "yaml yml",
    "application/zip": "vsix zip",
    "application/zstd": "zst",
    "audio/aac": "aac",
    "audio/aiff": "aif aiff",
    "audio/amr": "amr",
    "audio/flac": "flac",
    "audio/midi": "mid midi",
    "audio/mp4": "m4a m4b",
    "audio/mpeg": "mp3",
    "audio/mpegurl": "m3u",
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
    "image/heif": "heif",
    "image/jp2": "jp2",
    "image/jpeg": "jfif jpe jpeg jpg pjp pjpeg",
    "image/jxl": "jxl",
    "image/ktx": "ktx",
    "image/ktx2": "ktx2",
    "image/png": "png",
    "image/svg+xml": "svg",
    "image/tiff": "tif tiff",
    "image/vnd.adobe.photoshop": "psd",
    "image/vnd.microsoft.icon": "cur ico",
    "image/vnd.ms-dds": "dds",
    "image/webp": "webp",
    "message/rfc822": "eml",
    "model/3mf": "3mf",
    "model/gltf+json": "gltf",
    "model/gltf-binary": "glb",
    "model/mtl": "mtl",
    "model/obj": "obj",
    "model/step": "step stp",
    "model/stl": "stl",
    "model/vnd.collada+xml": "dae",
    "model/vnd.usda": "usda",
    "model/vnd.usdz+zip": "usdz",
    "text/cache-manifest": "appcache",
    "text/calendar": "ics",
    "text/css": "css",
    "text/csv": "csv",
    "text/html": "htm html",
    "text/javascript": "cjs js mjs",
    "text/markdown": "markdown md",
    "text/n3": "n3",
    "text/plain": "conf ini log text txt",
    "text/tab-separated-values": "tsv",
    "text/turtle": "ttl",
    "text/vcard": "vcf",
    "text/vtt": "vtt",
    "video/3gpp": "3gp",
    "video/3gpp2": "3g2",
    "video/iso.segment": "m4s",
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


# Formats without compression of their own, in addition to text, JSON and XML.
_COMPRESSIBLE = {
    "application/n-quads",
    "application/n-triples",
    "application/postscript",
    "application/rtf",
    "application/sql",
    "application/toml",
    "application/trig",
    "application/vnd.apple.mpegurl",
    "application/vnd.ms-fontobject",
    "application/wasm",
    "application/x-ndjson",
    "application/x-subrip",
    "application/x-tar",
    "application/xml-dtd",
    "application/yaml",
    "audio/mpegurl",
    "font/collection",
    "font/otf",
    "font/ttf",
    "image/bmp",
    "image/vnd.microsoft.icon",
    "message/rfc822",
    "model/mtl",
    "model/obj",
    "model/step",
    "model/stl",
    "model/vnd.usda",
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


def content_type(name: bytes, is_text: int | None = None) -> bytes:
    """Return the ``Content-Type`` of a file of this name; directories before it do not count.

    `is_text` says whether the file starts as text does, None if that is unknown. It decides for
    files without a known ending, and between the two meanings of ``.ts``. Nothing else about the
    content is looked at, so no file becomes HTML by its bytes.
    """
    stem, dot, extension = name.rpartition(b"/")[2].rpartition(b".")
    # A name that begins with its only dot, such as .html, has no extension.
    extension = extension.lower() if stem and dot else b""
    if is_text and (extension not in _BY_EXTENSION or extension == _TYPESCRIPT):
        return _TEXT
    return _BY_EXTENSION.get(extension, UNKNOWN)


def served_type(name: bytes, is_text: int | None, rules: RepositoryRules) -> bytes:
    """Return the ``Content-Type`` of a file: that of the rules, else `content_type`."""
    found = rules.file_type(name)
    return found.media_type.encode() if found else content_type(name, is_text)


def is_known(name: bytes) -> bool:
    """Return whether a file name has an ending that gives its type."""
    stem, _, extension = name.rpartition(b".")
    return bool(stem) and extension.lower() in _BY_EXTENSION


@lru_cache(maxsize=256)
def is_compressible(content_type: bytes) -> bool:
    """Return whether files of this type usually become smaller by a content coding."""
    return _is_compressible(content_type.partition(b";")[0].strip().decode("latin-1").lower())


def is_html(content_type: bytes) -> bool:
    """Return whether this is the type of an HTML page."""
    return content_type[:9].lower() == b"text/html"
