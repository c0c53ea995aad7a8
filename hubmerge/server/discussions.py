"""Endpoints for pull requests, the only discussions of this Hub."""

from __future__ import annotations

from typing import cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubmerge.server.access import visible_repo, writable_repo
from hubmerge.server.http_errors import BadRequest, EntryMissing
from hubmerge.server.info import format_time
from hubmerge.server.messages import REPO_PATH, Json, base_url, with_json
from hubmerge.server.pulls import Pull, Status
from hubmerge.server.repository import Repository

_PAGE_SIZE = 50


def listing(request: Request) -> Response:
    """One page of the pull requests that match the query, newest first."""
    repository, query = visible_repo(request), request.query_params
    author, status = query.get("author"), query.get("status", "all")
    pulls = [
        pull
        for pull in reversed(repository.pulls())
        if query.get("type") != "discussion"
        and author in (None, pull.author)
        and status in ("all", "open" if pull.status == "open" else "closed")
    ]
    page = query.get("p", "0")
    start = _PAGE_SIZE * int(page) if page.isdecimal() and len(page) < 10 else 0
    shown = [_to_json(repository, pull) for pull in pulls[start : start + _PAGE_SIZE]]
    return JSONResponse({"discussions": shown, "start": start, "count": len(pulls)})


def details(request: Request) -> Response:
    """One pull request with its newest commit."""
    repository = visible_repo(request)
    pull = _find_pull(request, repository)
    head = repository.snapshot(pull.ref).commit
    commit = {
        "id": head.id,
        "type": "commit",
        "createdAt": format_time(head.date),
        "author": {"name": head.author},
        "data": {"subject": head.title, "oid": head.id},
    }
    merged = {"mergeCommitId": head.id} if pull.status == "merged" else {}
    return JSONResponse(
        {
            **_to_json(repository, pull),
            "events": [commit],
            "changes": {"base": "refs/heads/main", **merged},
            "filesWithConflicts": [],
        }
    )


def merge(request: Request, body: Json) -> Response:
    """Merge a pull request: main becomes its newest commit."""
    repository = writable_repo(request)
    repository.merge_pull(_find_pull(request, repository).number)
    return JSONResponse({})


def change_status(request: Request, body: Json) -> Response:
    """Close or reopen a pull request."""
    repository, status = writable_repo(request), str(body.get("status"))
    if status not in ("open", "closed"):
        raise BadRequest('"status" must be "open" or "closed".')
    pull = repository.set_pull_status(_find_pull(request, repository).number, cast(Status, status))
    event = {
        "id": f"{pull.number}-{status}",
        "type": "status-change",
        "createdAt": format_time(pull.opened),
        "author": {"name": pull.author},
        "data": {"status": status},
    }
    return JSONResponse({"newStatus": event})


def pull_request_url(request: Request, repository: Repository, number: int) -> str:
    """The URL of a pull request; clients read its number from it."""
    return f"{base_url(request)}/{repository.id.web_path}/discussions/{number}"


def _find_pull(request: Request, repository: Repository) -> Pull:
    number = request.path_params["number"]
    for pull in repository.pulls():
        if str(pull.number) == number:
            return pull
    raise EntryMissing(f"{repository.id} has no pull request {number[:20]!r}.")


def _to_json(repository: Repository, pull: Pull) -> Json:
    return {
        "num": pull.number,
        "title": pull.title,
        "author": {"name": pull.author},
        "createdAt": format_time(pull.opened),
        "status": pull.status,
        "isPullRequest": True,
        "repo": {"name": str(repository.id), "type": repository.id.kind.removesuffix("s")},
    }


_LIST_PATH = REPO_PATH + "/discussions"
_PULL_PATH = _LIST_PATH + "/{number:quoted}"

routes = [
    Route(_LIST_PATH, listing),
    Route(_PULL_PATH, details),
    Route(_PULL_PATH + "/merge", with_json(merge), methods=["POST"]),
    Route(_PULL_PATH + "/status", with_json(change_status), methods=["POST"]),
]
