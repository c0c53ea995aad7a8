"""Endpoints for branches, tags and commits."""

from __future__ import annotations

from functools import partial
from html import escape

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubmerge.server.access import (
    readable_repo,
    requested_repo_id,
    require_writer,
    visible_repo,
    writable_repo,
)
from hubmerge.server.discussion_store import PULL
from hubmerge.server.git import GitCommit
from hubmerge.server.info import format_time
from hubmerge.server.messages import REPO_PATH, Json, next_page_link, query_number, with_json
from hubmerge.server.pushes import BRANCH, TAG
from hubmerge.server.repository import Repository

_PAGE_SIZE = 50
_MAX_PAGE_SIZE = 1000


def refs(request: Request) -> Response:
    """All branches and tags with their commits; pull requests if requested."""
    repository = visible_repo(request)
    result: Json = {
        "branches": _refs_to_json(repository, BRANCH),
        "tags": _refs_to_json(repository, TAG),
    }
    if request.query_params.get("include_prs"):
        result["pullRequests"] = _refs_to_json(repository, PULL)
    return JSONResponse({**result, "converts": []})


def commits(request: Request) -> Response:
    """The history of a revision; the next page starts at a commit, so it cannot shift."""
    snapshot, id = (
        readable_repo(request).snapshot(request.path_params["revision"]),
        requested_repo_id(request),
    )
    limit = query_number(request, "limit", _PAGE_SIZE, maximum=_MAX_PAGE_SIZE)
    history = snapshot.history(limit + 1)
    next_page = f"/api/{id.kind}/{id}/commits/{history[limit].id}" if len(history) > limit else ""
    formatted = "formatted" in request.query_params.getlist("expand[]")
    items = [_commit_to_json(commit, formatted) for commit in history[:limit]]
    return JSONResponse(items, headers=next_page_link(request, next_page) if next_page else {})


def create_branch(request: Request, body: Json) -> Response:
    """Create a branch, by default at main."""
    start = str(body.get("startingPoint") or "main")
    writable_repo(request).create_ref(BRANCH, request.path_params["ref"], start)
    return JSONResponse({})


def create_tag(request: Request, body: Json) -> Response:
    name, message = str(body.get("tag") or ""), str(body.get("message") or "")
    revision, author = request.path_params["ref"], require_writer(request).name
    writable_repo(request).create_ref(TAG, name, revision, message, author)
    return JSONResponse({})


def squash(request: Request, body: Json) -> Response:
    """Replace the history of a branch by one commit."""
    branch, author = request.path_params["revision"], require_writer(request).name
    message = str(body.get("message") or "").strip() or f"Super-squash branch {branch!r}"
    writable_repo(request).squash(branch, message, author)
    return JSONResponse({})


def delete_ref(prefix: str, request: Request) -> Response:
    writable_repo(request).delete_ref(prefix, request.path_params["ref"])
    return JSONResponse({})


def _refs_to_json(repository: Repository, prefix: str) -> list[Json]:
    return [
        {"name": name, "ref": prefix + name, "targetCommit": sha}
        for name, sha in repository.refs(prefix).items()
    ]


def _commit_to_json(commit: GitCommit, formatted: bool) -> Json:
    fields: Json = {
        "id": commit.id,
        "title": commit.title,
        "message": commit.body,
        "date": format_time(commit.date),
        "authors": [{"user": commit.author}],
        "parents": [commit.parent] if commit.parent else [],
    }
    if formatted:
        fields["formatted"] = {"title": escape(commit.title), "message": escape(commit.body)}
    return fields


_BRANCH_PATH, _TAG_PATH = REPO_PATH + "/branch/{ref:quoted}", REPO_PATH + "/tag/{ref:quoted}"

routes = [
    Route(REPO_PATH + "/refs", refs),
    Route(REPO_PATH + "/commits/{revision:quoted}", commits),
    Route(REPO_PATH + "/super-squash/{revision:quoted}", with_json(squash), methods=["POST"]),
    Route(_BRANCH_PATH, with_json(create_branch), methods=["POST"]),
    Route(_BRANCH_PATH, partial(delete_ref, BRANCH), methods=["DELETE"]),
    Route(_TAG_PATH, with_json(create_tag), methods=["POST"]),
    Route(_TAG_PATH, partial(delete_ref, TAG), methods=["DELETE"]),
]
