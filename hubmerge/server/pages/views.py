"""The pages by the names that the routes use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response

from hubmerge.server.pages import file_pages, history_pages, rendering, repositories
from hubmerge.server.pages.repository_page import repository


def tokens(request: Request) -> Response:
    """How tokens are made here: on the command line."""
    return rendering.render_page(request, "tokens.html")


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
    "asset": rendering.asset,
}
