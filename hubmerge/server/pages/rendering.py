"""Templates as responses. Everything is escaped, and the policy of a page allows no script."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import Response

from hubmerge.byte_sizes import format_bytes
from hubmerge.redaction import redact_tokens
from hubmerge.server.http_errors import EntryMissing
from hubmerge.server.pages import links

_ASSETS = files("hubmerge") / "server" / "pages" / "assets"
_MEDIA_TYPES = {"page.css": "text/css", "icon.svg": "image/svg+xml"}
_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # What is shown depends on who asks, and on which branch is where.
    "Cache-Control": "no-store",
    "Vary": "Accept, Cookie",
}


def render_page(request: Request, template: str, status: int = 200, **values: object) -> Response:
    """A template as a page; tokens in it are replaced, wherever they come from."""
    search = request.query_params.get("search", "")
    html = _environment().get_template(template).render(search=search, **values)
    # JSON and YAML can hold lone surrogates, which UTF-8 cannot.
    body = redact_tokens(html).encode(errors="replace")
    return Response(body, status, HEADERS, "text/html")


def asset(request: Request) -> Response:
    """The style sheet or the icon of all pages."""
    return _send_asset(request.path_params["name"])


def icon(request: Request) -> Response:
    """The icon, which browsers also ask for at an address of their own."""
    return _send_asset("icon.svg")


def _send_asset(name: str) -> Response:
    if name not in _MEDIA_TYPES:
        raise EntryMissing(f"This Hub has nothing at /-/{name[:80]}")
    # Its address holds a digest, so a new version is never hidden by an old one.
    headers = {**HEADERS, "Cache-Control": "public, max-age=31536000, immutable"}
    return Response(_read_asset(name), headers=headers, media_type=_MEDIA_TYPES[name])


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_read_asset),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": format_bytes, "day": format_day, "short": short_sha}
    environment.globals |= {"links": links, "asset_url": _asset_url}
    return environment


def format_day(time: datetime) -> str:
    return time.strftime("%Y-%m-%d")


def short_sha(sha: str) -> str:
    """The first digits of a commit id."""
    return sha[:8]


@cache
def _asset_url(name: str) -> str:
    return f"/-/{name}?{hashlib.sha256(_read_asset(name).encode()).hexdigest()[:12]}"


@cache
def _read_asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
