"""The pages by the names that the routes use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from hubmerge.server.http_errors import EntryMissing
from hubmerge.server.pages import file_pages, history_pages, rendering, repositories
from hubmerge.server.pages.repository_page import repository
from hubmerge.server.sessions import cookie_name, get_sessions

_USED_LINK = (
    "This link was used before, or is older than ten minutes: `hubmerge hub open` prints a new one."
)


def tokens(request: Request) -> Response:
    """How tokens are made here: on the command line."""
    return rendering.render_page(request, "tokens.html")


def sign_in(request: Request) -> Response:
    """Sign the browser in by the key in a link that works once; a look at its head uses none."""
    key = request.query_params.get("key", "") if request.method == "GET" else ""
    session = get_sessions(request).redeem(key)
    if session is None:
        raise EntryMissing(_USED_LINK)
    response = RedirectResponse("/", 303, rendering.HEADERS)
    response.set_cookie(cookie_name(request), session, httponly=True, samesite="strict")
    return response


VIEWS: Mapping[str, Callable[[Request], Response]] = {
    "repositories": repositories.repositories,
    "kind": repositories.kind,
    "owner": repositories.owner,
    "repository": repository,
    "go_to_revision": file_pages.go_to_revision,
    "folder": file_pages.folder,
    "file": file_pages.file,
    "commits": history_pages.commits,
    "commit": history_pages.commit,
    "discussions": history_pages.discussions,
    "discussion": history_pages.discussion,
    "tokens": tokens,
    "sign_in": sign_in,
    "icon": rendering.icon,
    "asset": rendering.asset,
}
