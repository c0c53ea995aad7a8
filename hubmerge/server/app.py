"""The Hub as an ASGI application: the routes and the store behind them."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hubmerge.server import account, commits, discussions, files, lfs, repos, revisions, storage
from hubmerge.server.access import HubState
from hubmerge.server.http_errors import HttpError
from hubmerge.server.messages import RawPathMiddleware, http_error_response, not_unicode_response
from hubmerge.server.pages import routes as pages
from hubmerge.server.sessions import Sessions
from hubmerge.server.store import RepositoryStore, seed
from hubmerge.server.tokens import Signer, Tokens

FIRST_USER = "local"

_ROUTES = [
    *account.routes,
    *repos.routes,
    *revisions.routes,
    *files.routes,
    *lfs.routes,
    *storage.routes,
    *commits.routes,
    *discussions.routes,
    *pages.routes,
]


def build_app(data: Path, seed_from: Path | None) -> Starlette:
    """The application for a data folder; the caller must hold the lock of the folder."""
    store = RepositoryStore(data)
    store.clean_up()
    tokens = Tokens(data)
    tokens.ensure_writer(FIRST_USER)
    if seed_from:
        seed(store, seed_from)
    app = Starlette(
        routes=_ROUTES,
        middleware=[
            # A web page must not reach the Hub through a domain that resolves to 127.0.0.1.
            Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"]),
            Middleware(RawPathMiddleware),
        ],
        exception_handlers={
            HttpError: pages.page_for_browsers(http_error_response),
            UnicodeEncodeError: not_unicode_response,
            404: pages.page_for_browsers(_no_route),
            500: _internal_error,
        },
    )
    app.state.sessions = Sessions()
    app.state.hub = HubState(store, tokens, Signer(data))
    return app


def _no_route(request: Request, error: Exception) -> Response:
    # Clients report a 404 without a code as a broken endpoint, but a repository is missing.
    message = f"This Hub has nothing at {request.url.path}"
    return JSONResponse({"error": message}, 404, {"X-Error-Code": "RepoNotFound"})


def _internal_error(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "The Hub failed; its log says why."}, 500)
