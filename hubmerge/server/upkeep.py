"""Endpoints for who runs the Hub: how much disk is used, and to delete what is not needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubmerge.errors import HubmergeError
from hubmerge.server.access import current_user, get_hub
from hubmerge.server.garbage import collect_garbage, measure_usage
from hubmerge.server.http_errors import Conflict, Forbidden
from hubmerge.server.messages import Json, with_json
from hubmerge.server.tokens import FIRST_USER, User

T = TypeVar("T")


def usage(request: Request) -> Response:
    """Bytes on disk, for each repository and in total."""
    _check_operator(request)
    hub = get_hub(request)
    return JSONResponse(_or_conflict(lambda: measure_usage(hub.store, hub.xorbs)))


def gc(request: Request, body: Json) -> Response:
    """Delete what no ref and no published lock reaches, or with "dryRun" only count it."""
    _check_operator(request)
    hub, dry_run = get_hub(request), body.get("dryRun") is True
    garbage = _or_conflict(lambda: collect_garbage(hub.store, hub.xorbs, dry_run))
    return JSONResponse({**asdict(garbage), "total_bytes": garbage.total_bytes})


def _check_operator(request: Request) -> None:
    if current_user(request) != User(FIRST_USER, "write"):
        raise Forbidden(f"Only the user {FIRST_USER}, who runs this Hub, may do this.")


def _or_conflict(work: Callable[[], T]) -> T:
    """The result; a damaged repository is reported to the client."""
    try:
        return work()
    except HubmergeError as error:
        raise Conflict(f"{error.message} {error.hint}") from error


routes = [
    Route("/api/hubmerge/usage", usage),
    Route("/api/hubmerge/gc", with_json(gc), methods=["POST"]),
]
