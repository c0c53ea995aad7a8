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
    upkeep,
    xet,
)
from hubmerge.server.access import HubState, current_user, get_hub, may_see
from hubmerge.server.disk import is_disk_full
from hubmerge.server.http_errors import DiskFull, HttpError, NotBuilt, RepoMissing
from hubmerge.server.messages import RawPathMiddleware, http_error_response, not_unicode_response
from hubmerge.server.multipart_store import remove_old_parts
from hubmerge.server.names import RepoId
from hubmerge.server.pages import routes as pages
from hubmerge.server.request_ids import RequestIds
from hubmerge.server.sessions import Sessions
from hubmerge.server.store import RepositoryStore, seed
from hubmerge.server.tokens import FIRST_USER, Signer, Tokens
from hubmerge.server.xorbs import Xorbs

_DAY_S = 24 * 3600
_log = logging.getLogger("uvicorn.error")

_REPO_NAME = re.compile(r"/api/(models|datasets|spaces)/([^/]+)/([^/]+)")
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
    *upkeep.routes,
    *pages.routes,
]


def build_app(data: Path, seed_from: Path | None) -> ASGIApp:
    """The application for a data folder; the caller must hold the lock of the folder."""
    store = RepositoryStore(data)
    store.clean_up()
    # Their upload URLs have expired.
    remove_old_parts(store.parts, _DAY_S)
    store.uploads.remove_old(_DAY_S)
    xorbs = Xorbs(data / "xorbs", store.blobs, store.uploads)
    if xorbs.age_s() > _DAY_S:
        # The files of which they were parts exist without them.
        xorbs.clear()
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
            OSError: _disk_error,
            DiskFull: _disk_full_response,
            404: pages.page_for_browsers(_no_route),
            405: _wrong_method,
            500: _internal_error,
        },
    )
    app.state.sessions = Sessions()
    app.state.hub = HubState(store, tokens, Signer(data), xorbs)
    return RequestIds(app)


def _no_route(request: Request, error: Exception) -> Response:
    path = request.url.path
    if path.startswith("/api/") and not _REPO_PATH.fullmatch(path):
        message = f"This Hub has no {path[:200]}: it serves only what curating checkpoints needs."
        return http_error_response(request, NotBuilt(message))
    # Clients report a 404 without a code as a broken endpoint, but a repository is missing.
    return http_error_response(request, RepoMissing(f"This Hub has nothing at {path[:200]}"))


def _wrong_method(request: Request, error: Exception) -> Response:
    """A method that a path does not have is not built, unless the path is of no repository."""
    path = request.url.path
    if not path.startswith("/api/"):
        return JSONResponse({"error": "Method Not Allowed"}, 405)
    if match := _REPO_NAME.fullmatch(path):
        user, store = current_user(request), get_hub(request).store
        name = store.existing_name(RepoId(*match.groups()))
        if name is None or not may_see(request, user, store.find(name)):
            return http_error_response(request, RepoMissing("Repository not found"))
    message = f"This Hub has no {request.method} of {path[:200]}."
    return http_error_response(request, NotBuilt(message))


def _disk_error(request: Request, error: Exception) -> Response:
    """A full disk is said so, with a status that clients do not retry."""
    if not is_disk_full(error):
        raise error
    message = "The disk of this Hub is full: delete repositories, then run `hubmerge hub gc`."
    return _disk_full_response(request, DiskFull(message))


def _disk_full_response(request: Request, error: Exception) -> Response:
    response = http_error_response(request, error)
    if request.url.path.startswith("/cas/"):
        # Xet clients retry any 5xx for minutes.
        response.status_code = 413
    return response


def _internal_error(request: Request, error: Exception) -> Response:
    id = request.state.request_id
    _log.error("Request %s failed: %s %s", id, request.method, request.url.path)
    return JSONResponse({"error": f"The Hub failed on request {id}; its log says why."}, 500)
