"""The Hub as an ASGI application: the routes and the store behind them."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from hubmerge.server import (
    account,
    collections,
    commits,
    discussions,
    files,
    lfs,
    multipart,
    repos,
    revisions,
    smart_http,
    storage,
    xet,
)
from hubmerge.server.access import HubState
from hubmerge.server.http_errors import HttpError, NotBuilt, RepoMissing
from hubmerge.server.messages import RawPathMiddleware, http_error_response, not_unicode_response
from hubmerge.server.request_ids import RequestIds
from hubmerge.server.store import RepositoryStore, seed
from hubmerge.server.tokens import FIRST_USER, Signer, Tokens
from hubmerge.server.xorbs import Xorbs

_log = logging.getLogger("uvicorn.error")

# What else no route serves: old names without an owner, and paths that end early.
_REPO_PATH = re.compile(
    r"/api/(?:models|datasets|spaces)/[^/]+(?:/[^/]+)?"
    r"(?:/(?:revision|tree|refs|commits|paths-info|auth-check|preupload|commit)(?:/.*)?)?"
)

_ROUTES = [
    *account.routes,
    *repos.routes,
    *revisions.routes,
    *files.routes,
    *lfs.routes,
    *multipart.routes,
    *xet.routes,
    *storage.routes,
    *commits.routes,
    *discussions.routes,
    *smart_http.routes,
    *collections.routes,
]


def build_app(data: Path, seed_from: Path | None) -> ASGIApp:
    """The application for a data folder; the caller must hold the lock of the folder."""
    store = RepositoryStore(data)
    store.clean_up()
    multipart.remove_old_parts(data / "parts")
    xorbs = Xorbs(data / "xorbs", store.blobs)
    xorbs.clear_if_old()
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
            HttpError: http_error_response,
            UnicodeEncodeError: not_unicode_response,
            404: _no_route,
            500: _internal_error,
        },
    )
    app.state.hub = HubState(store, tokens, Signer(data), xorbs)
    return RequestIds(app)


def _no_route(request: Request, error: Exception) -> Response:
    path = request.url.path
    if path.startswith("/api/") and not _REPO_PATH.fullmatch(path):
        message = f"This Hub has no {path[:200]}: it serves only what curating checkpoints needs."
        return http_error_response(request, NotBuilt(message))
    # Clients report a 404 without a code as a broken endpoint, but a repository is missing.
    return http_error_response(request, RepoMissing(f"This Hub has nothing at {path[:200]}"))


def _internal_error(request: Request, error: Exception) -> Response:
    id = request.state.request_id
    _log.error("Request %s failed: %s %s", id, request.method, request.url.path)
    return JSONResponse({"error": f"The Hub failed on request {id}; its log says why."}, 500)
