"""Error pages and texts of sites, and the page of a site that is being prepared.

They name the host of the site and never a registry, repository or image. The pages follow the
light or dark scheme of the browser, load nothing else, and stay readable if a policy of the site
forbids their style.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from html import escape

import attrs

_STYLE = """
body { font: 16px/1.6 system-ui, sans-serif; margin: 0; min-height: 100vh; display: grid;
  place-items: center; overflow-wrap: anywhere }
main { box-sizing: border-box; width: 100%; max-width: 36rem; padding: 2rem 1.5rem }
.site { opacity: .75; margin: 0; font-size: .875rem }
h1 { font-size: 1.75rem; line-height: 1.25; margin: .25rem 0 1rem; text-wrap: balance }
p { margin: 0 0 1rem }
progress { width: 100%; height: .5rem; accent-color: currentColor; margin-bottom: 1rem }
a { color: inherit; text-underline-offset: .2em }
a:focus-visible { outline: 2px solid; outline-offset: 3px }
code { font-size: .875rem }
"""

_POLICY = (
    "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
    f"style-src 'sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}'"
)

HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"Content-Type", b"text/html; charset=utf-8"),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Cache-Control", b"no-store"),
    (b"Content-Security-Policy", _POLICY.encode()),
)
"""The fields that each page is sent with, besides those of its status."""

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="robots" content="noindex">
<link rel="icon" href="data:,">
<title>{title} \u2013 {site}</title>
<style>{style}</style>
<main>
<p class="site">{site}</p>
<h1>{title}</h1>
{content}</main>
</html>
"""


@attrs.frozen
class _Words:
    """The title and the sentences of a status."""

    title: str
    text: str
    has_home: bool = False
    """True if the front page of the site is a way out."""
    has_retry: bool = False


_WORDS = {
    400: _Words("Bad request", "The server cannot understand this request.", has_home=True),
    403: _Words("No access", "This page is not open to you.", has_home=True),
    404: _Words("Page not found", "This site has no page at this address.", has_home=True),
    405: _Words("Method not allowed", "Pages of this site can only be read."),
    408: _Words("Request timeout", "The request took too long to arrive.", has_retry=True),
    410: _Words("Page removed", "This page was removed for good.", has_home=True),
    412: _Words("Condition not met", "The page does not meet the conditions of the request."),
    414: _Words("Address too long", "The address of this page is too long.", has_home=True),
    416: _Words("Range not available", "The file has no bytes in the requested range."),
    421: _Words("Wrong server", "This connection cannot be used for this site.", has_retry=True),
    431: _Words("Request too large", "The request has too many fields, or they are too long."),
    500: _Words("Internal error", "Something went wrong on the server.", has_retry=True),
    502: _Words("Bad gateway", "The server cannot get this page at the moment.", has_retry=True),
    503: _Words("Not available", "The server cannot show this page now.", has_retry=True),
    504: _Words("Gateway timeout", "The server waited too long for this page.", has_retry=True),
    505: _Words("Version not supported", "The server does not speak this version of HTTP."),
    507: _Words("No space", "The server has no space for this site.", has_retry=True),
}
_ANY_CLIENT_ERROR = _Words("Bad request", "The server cannot answer this request.", has_home=True)
_ANY_SERVER_ERROR = _Words("Server error", "The server cannot show this page.", has_retry=True)


def error_page(status: int, site: str, home: str = "/", request_id: str | None = None) -> bytes:
    """Return the page for an error status, as UTF-8.

    :param site: the host of the site, as the visitor sees it.
    :param home: the path of the site's front page; it ends with a slash.
    :param request_id: the id under which the server's log has this request, if it has.
    """
    words = _words(status)
    content = [f"<p>{words.text}</p>\n"]
    if request_id is not None:
        content.append(
            f"<p>The server log has the details under <code>{_text(request_id)}</code>.\n"
        )
    if words.has_retry:
        content.append('<p><a href="">Try again</a></p>\n')
    if words.has_home:
        content.append(f'<p><a href="{_text(home)}">Go to the front page</a></p>\n')
    return _page(words.title, site, "".join(content))


def error_text(status: int, request_id: str | None = None) -> bytes:
    """Return the plain text for an error status, for requests that are no navigations.

    The caller sends its own text with a 503, which clients depend on.
    """
    end = "" if request_id is None else f" See request {request_id} in the server log."
    return f"{_words(status).text}{end}\n".encode()


def preparing_page(site: str) -> bytes:
    """Return the page for a site while its image is pulled for the first time, as UTF-8.

    The caller sends it as 503 with ``Retry-After`` and with ``Refresh``, which loads it again.
    """
    name = _text(site)
    content = (
        f"<p>{name} will open here in a moment.</p>\n"
        '<progress aria-label="Preparing"></progress>\n'
        '<p>This page reloads by itself. <a href="">Reload it now</a></p>\n'
    )
    return _page("This site is being prepared", site, content)


def _words(status: int) -> _Words:
    return _WORDS.get(status, _ANY_CLIENT_ERROR if status < 500 else _ANY_SERVER_ERROR)


def _page(title: str, site: str, content: str) -> bytes:
    page = _PAGE.format(title=title, site=_text(site), style=_STYLE, content=content)
    return page.encode("utf-8", "backslashreplace")


def _text(value: str) -> str:
    """Return text for HTML, also for an attribute, without control characters."""
    shown = "".join(each if each.isprintable() else f"\\u{ord(each):04x}" for each in value)
    return escape(shown)
