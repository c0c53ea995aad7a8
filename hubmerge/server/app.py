"""The Hub as an ASGI application: a store behind the routes."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hubmerge.server import account, commits, discussions, files, lfs, repos, revisions, storage
from hubmerge.server.access import Hub
from hubmerge.server.http_errors import Refusal
from hubmerge.server.messages import RawPaths, not_unicode, refused
from hubmerge.server.store import Store, seed
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
]


def build(data: Path, seed_from: Path | None) -> Starlette:
    """Open a data folder, which the caller holds alone, and put the routes before it."""
    store = Store(data)
    store.sweep()
    tokens = Tokens(data)
    tokens.ensure_writer(FIRST_USER)
    if seed_from:
        seed(store, seed_from)
    app = Starlette(
        routes=_ROUTES,
        middleware=[
            # A web page must not reach the Hub through a name of its own that means 127.0.0.1.
            Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"]),
            Middleware(RawPaths),
        ],
        exception_handlers={
            Refusal: refused,
            UnicodeEncodeError: not_unicode,
            404: _no_route,
            500: _broken,
        },
    )
    app.state.hub = Hub(store, tokens, Signer(data))
    return app


def _no_route(request: Request, error: Exception) -> Response:
    # Clients take a 404 without a code for a broken endpoint; what they miss is a repository.
    message = f"This Hub has nothing at {request.url.path}"
    return JSONResponse({"error": message}, 404, {"X-Error-Code": "RepoNotFound"})


def _broken(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "The Hub failed; its log says why."}, 500)
