"""Who am I, what is this Hub, and the small questions that clients ask in passing."""

from __future__ import annotations

import importlib.metadata
import sys

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubmerge.front_matter import card_problem
from hubmerge.server.access import asker, hub
from hubmerge.server.http_errors import NotSignedIn
from hubmerge.server.messages import Json, flag, with_json
from hubmerge.server.names import KINDS

_PACKAGES = ("hubmerge", "starlette", "uvicorn", "dulwich")


def whoami(request: Request) -> Response:
    """The bearer of the token."""
    user = asker(request)
    if user is None:
        raise NotSignedIn("Invalid username or password.")
    token = {"displayName": f"{user.name} ({user.role})", "role": user.role}
    owners = {repo.id.owner for kind in KINDS for repo in hub(request).store.all(kind)}
    told: Json = {
        "type": "user",
        **dict.fromkeys(("id", "name", "fullname"), user.name),
        **dict.fromkeys(("canPay", "isPro"), False),
        "orgs": [{"type": "org", "name": owner} for owner in sorted(owners - {user.name})],
        "auth": {"type": "access_token", "accessToken": token},
    }
    return JSONResponse(told)


def status(request: Request) -> Response:
    """Which folder this Hub serves, asked by `read_state`; in full, also what it is and holds."""
    store = hub(request).store
    told: Json = {"data": str(store.data)}
    if flag(request, "full"):
        versions = {name: _version(name) for name in _PACKAGES}
        versions["python"] = sys.version.split()[0]
        told |= {"repos": store.count(), "versions": versions}
    return JSONResponse(told)


def validate_yaml(request: Request, body: Json) -> Response:
    """Whether a card's front matter can be read; asked before each README.md is sent."""
    problem = card_problem(str(body.get("content", "")))
    errors = [{"message": problem}] if problem else []
    return JSONResponse({"errors": errors, "warnings": []}, 400 if errors else 200)


def nothing(request: Request) -> Response:
    """The answer to telemetry and other hits in passing."""
    return JSONResponse({})


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


routes = [
    Route("/api/whoami-v2", whoami),
    Route("/api/hubmerge/status", status),
    Route("/api/validate-yaml", with_json(validate_yaml), methods=["POST"]),
    Route("/api/telemetry/{topic:path}", nothing, methods=["GET", "POST"]),
    Route("/api/agent-harnesses", nothing),
    Route("/api/models-tags-by-type", nothing),
    Route("/api/datasets-tags-by-type", nothing),
    Route("/v1/telemetry", nothing, methods=["GET", "POST"]),
]
