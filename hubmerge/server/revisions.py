"""Branches, tags and commits."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubmerge.server.access import readable, repo_id, visible, writable, writer
from hubmerge.server.convertors import REPO
from hubmerge.server.exchange import Json, link_to, number, with_json
from hubmerge.server.git import Version
from hubmerge.server.info import stamp

_PAGE = 50
_LARGEST_PAGE = 1000


def refs(request: Request) -> Response:
    """All branches and tags, and the commits that they mean."""
    repository = visible(request)
    told: Json = {
        "branches": _named("refs/heads/", repository.branches()),
        "tags": _named("refs/tags/", repository.tags()),
        "converts": [],
    }
    if request.query_params.get("include_prs"):
        told["pullRequests"] = []
    return JSONResponse(told)


def commits(request: Request) -> Response:
    """Commits from a revision back; the next page starts at a commit, so it cannot shift."""
    snapshot = readable(request).at(request.path_params["revision"])
    limit = number(request, "limit", _PAGE, most=_LARGEST_PAGE)
    found = snapshot.history(limit + 1)
    headers = _next(request, found[limit]) if len(found) > limit else {}
    formatted = "formatted" in request.query_params.getlist("expand[]")
    return JSONResponse([_told(v, formatted) for v in found[:limit]], headers=headers)


def create_branch(request: Request, body: Json) -> Response:
    """Start a branch, at main unless told otherwise."""
    start = str(body.get("startingPoint") or "main")
    writable(request).create_branch(request.path_params["branch"], start)
    return JSONResponse({})


def delete_branch(request: Request) -> Response:
    """Remove a branch."""
    writable(request).delete_branch(request.path_params["branch"])
    return JSONResponse({})


def create_tag(request: Request, body: Json) -> Response:
    """Tag a revision."""
    name, message = str(body.get("tag") or ""), str(body.get("message") or "")
    revision, author = request.path_params["revision"], writer(request).name
    writable(request).create_tag(name, revision, message, author)
    return JSONResponse({})


def delete_tag(request: Request) -> Response:
    """Remove a tag."""
    writable(request).delete_tag(request.path_params["revision"])
    return JSONResponse({})


def _next(request: Request, version: Version) -> Mapping[str, str]:
    id = repo_id(request)
    return link_to(request, f"/api/{id.kind}/{id}/commits/{version.id}")


def _named(prefix: str, found: dict[str, str]) -> list[Json]:
    return [
        {"name": name, "ref": prefix + name, "targetCommit": sha} for name, sha in found.items()
    ]


def _told(version: Version, formatted: bool) -> Json:
    told: Json = {
        "id": version.id,
        "title": version.title,
        "message": version.body,
        "date": stamp(version.date),
        "authors": [{"user": version.author}],
        "parents": [version.parent] if version.parent else [],
    }
    if formatted:
        told["formatted"] = {"title": escape(version.title), "message": escape(version.body)}
    return told


routes = [
    Route(REPO + "/refs", refs),
    Route(REPO + "/commits/{revision:quoted}", commits),
    Route(REPO + "/branch/{branch:quoted}", with_json(create_branch), methods=["POST"]),
    Route(REPO + "/branch/{branch:quoted}", delete_branch, methods=["DELETE"]),
    Route(REPO + "/tag/{revision:quoted}", with_json(create_tag), methods=["POST"]),
    Route(REPO + "/tag/{revision:quoted}", delete_tag, methods=["DELETE"]),
]
