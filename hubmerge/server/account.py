"""Endpoints for the user, the status of the server, and small requests of clients."""

from __future__ import annotations

import importlib.metadata
import sys

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from hubmerge.front_matter import card_data
from hubmerge.server.access import current_user, get_hub
from hubmerge.server.card_rules import card_problems
from hubmerge.server.http_errors import NotSignedIn
from hubmerge.server.messages import Json, query_flag, with_json
from hubmerge.server.names import KINDS

_NO_METADATA = "The card has no metadata: a licence, tags and a base let others find the model."
_PACKAGES = ("hubmerge", "starlette", "uvicorn", "dulwich")


def whoami(request: Request) -> Response:
    """The user of the token."""
    user = current_user(request)
    if user is None:
        raise NotSignedIn("Invalid username or password.")
    token = {"displayName": f"{user.name} ({user.role})", "role": user.role}
    hub = get_hub(request)
    owners = {repo.id.owner for kind in KINDS for repo in hub.store.all(kind)}
    owners = {owner for owner in owners if hub.tokens.is_member(user, owner)}
    account: Json = {
        "type": "user",
        **dict.fromkeys(("id", "name", "fullname"), user.name),
        **dict.fromkeys(("canPay", "isPro"), False),
        "orgs": [{"type": "org", "name": owner} for owner in sorted(owners - {user.name})],
        "auth": {"type": "access_token", "accessToken": token},
    }
    return JSONResponse(account)


def status(request: Request) -> Response:
    """The data folder, for `read_state`; with `full`, also versions and a count of repositories."""
    store = get_hub(request).store
    fields: Json = {"data": str(store.data)}
    if query_flag(request, "full"):
        versions = {name: _version(name) for name in _PACKAGES}
        versions["python"] = sys.version.split()[0]
        fields |= {"repos": store.count(), "versions": versions}
    return JSONResponse(fields)


def validate_yaml(request: Request, body: Json) -> Response:
    """Whether the front matter of a card is valid; clients call this before they send README.md.

    A client that accepts plain text shows the answer as it is.
    """
    content = str(body.get("content", ""))
    errors = [{"message": problem} for problem in card_problems(content)]
    warnings = [] if errors or card_data(content) else [{"message": _NO_METADATA}]
    status = 400 if errors else 200
    if request.headers.get("accept") == "text/plain":
        lines = [f"- Error: {error['message']}" for error in errors]
        lines += [f"- Warning: {warning['message']}" for warning in warnings]
        return PlainTextResponse("\n".join(lines), status)
    return JSONResponse({"errors": errors, "warnings": warnings}, status)


def empty_response(request: Request) -> Response:
    """The response to telemetry and other requests that need no answer."""
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
    Route("/api/telemetry/{topic:path}", empty_response, methods=["GET", "POST"]),
    Route("/api/agent-harnesses", empty_response),
    Route("/api/models-tags-by-type", empty_response),
    Route("/api/datasets-tags-by-type", empty_response),
    Route("/v1/telemetry", empty_response, methods=["GET", "POST"]),
]
