"""Branches, tags and commits."""

from __future__ import annotations

from functools import partial
from html import escape

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubmerge.server.access import readable, repo_id, visible, writable, writer
from hubmerge.server.git import Version
from hubmerge.server.info import stamp
from hubmerge.server.messages import REPO, Json, link_to, number, with_json
from hubmerge.server.pulls import PULL
from hubmerge.server.repository import BRANCH, TAG, Repository

_PAGE = 50
_LARGEST_PAGE = 1000


def refs(request: Request) -> Response:
    """All branches and tags, pull requests if so wished, and the commits that they mean."""
    repository = visible(request)
    told: Json = {"branches": _named(repository, BRANCH), "tags": _named(repository, TAG)}
    if request.query_params.get("include_prs"):
        told["pullRequests"] = _named(repository, PULL)
    return JSONResponse({**told, "converts": []})


def commits(request: Request) -> Response:
    """Commits from a revision back; the next page starts at a commit, so it cannot shift."""
    snapshot, id = readable(request).at(request.path_params["revision"]), repo_id(request)
    limit = number(request, "limit", _PAGE, most=_LARGEST_PAGE)
    found = snapshot.history(limit + 1)
    more = f"/api/{id.kind}/{id}/commits/{found[limit].id}" if len(found) > limit else ""
    formatted = "formatted" in request.query_params.getlist("expand[]")
    told = [_told(version, formatted) for version in found[:limit]]
    return JSONResponse(told, headers=link_to(request, more) if more else {})


def create_branch(request: Request, body: Json) -> Response:
    """Start a branch, at main unless told otherwise."""
    start = str(body.get("startingPoint") or "main")
    writable(request).create_ref(BRANCH, request.path_params["ref"], start)
    return JSONResponse({})


def create_tag(request: Request, body: Json) -> Response:
    name, message = str(body.get("tag") or ""), str(body.get("message") or "")
    revision, author = request.path_params["ref"], writer(request).name
    writable(request).create_ref(TAG, name, revision, message, author)
    return JSONResponse({})


def delete_ref(prefix: str, request: Request) -> Response:
    writable(request).delete_ref(prefix, request.path_params["ref"])
    return JSONResponse({})


def _named(repository: Repository, prefix: str) -> list[Json]:
    return [
        {"name": name, "ref": prefix + name, "targetCommit": sha}
        for name, sha in repository.refs(prefix).items()
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


_BRANCH_PATH, _TAG_PATH = REPO + "/branch/{ref:quoted}", REPO + "/tag/{ref:quoted}"

routes = [
    Route(REPO + "/refs", refs),
    Route(REPO + "/commits/{revision:quoted}", commits),
    Route(_BRANCH_PATH, with_json(create_branch), methods=["POST"]),
    Route(_BRANCH_PATH, partial(delete_ref, BRANCH), methods=["DELETE"]),
    Route(_TAG_PATH, with_json(create_tag), methods=["POST"]),
    Route(_TAG_PATH, partial(delete_ref, TAG), methods=["DELETE"]),
]
