"""Pull requests as clients see them: the only kind of discussion there is here."""

from __future__ import annotations

from typing import cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubmerge.server.access import visible, writable
from hubmerge.server.http_errors import BadRequest, EntryMissing
from hubmerge.server.info import stamp
from hubmerge.server.messages import REPO, Json, origin, with_json
from hubmerge.server.pulls import Pull, Status
from hubmerge.server.repository import Repository

_PAGE = 50


def listing(request: Request) -> Response:
    """The pull requests that fit the query, the youngest first, a page at a time."""
    repository, query = visible(request), request.query_params
    author, status = query.get("author"), query.get("status", "all")
    found = [
        pull
        for pull in reversed(repository.pulls())
        if query.get("type") != "discussion"
        and author in (None, pull.author)
        and status in ("all", "open" if pull.status == "open" else "closed")
    ]
    page = query.get("p", "0")
    start = _PAGE * int(page) if page.isdecimal() and len(page) < 10 else 0
    told = [_told(repository, pull) for pull in found[start : start + _PAGE]]
    return JSONResponse({"discussions": told, "start": start, "count": len(found)})


def details(request: Request) -> Response:
    """One pull request with its newest commit."""
    repository = visible(request)
    pull = _pull(request, repository)
    head = repository.at(pull.ref).version
    commit = {
        "id": head.id,
        "type": "commit",
        "createdAt": stamp(head.date),
        "author": {"name": head.author},
        "data": {"subject": head.title, "oid": head.id},
    }
    merged = {"mergeCommitId": head.id} if pull.status == "merged" else {}
    return JSONResponse(
        {
            **_told(repository, pull),
            "events": [commit],
            "changes": {"base": "refs/heads/main", **merged},
            "filesWithConflicts": [],
        }
    )


def merge(request: Request, body: Json) -> Response:
    """Make main what the pull request holds."""
    repository = writable(request)
    repository.accept(_pull(request, repository).number)
    return JSONResponse({})


def change_status(request: Request, body: Json) -> Response:
    """Close a pull request, or open it again."""
    repository, status = writable(request), str(body.get("status"))
    if status not in ("open", "closed"):
        raise BadRequest('"status" must be "open" or "closed".')
    pull = repository.mark(_pull(request, repository).number, cast(Status, status))
    event = {
        "id": f"{pull.number}-{status}",
        "type": "status-change",
        "createdAt": stamp(pull.opened),
        "author": {"name": pull.author},
        "data": {"status": status},
    }
    return JSONResponse({"newStatus": event})


def web_address(request: Request, repository: Repository, number: int) -> str:
    """Where people would read it; clients take the number from there."""
    return f"{origin(request)}/{repository.id.web_path}/discussions/{number}"


def _pull(request: Request, repository: Repository) -> Pull:
    number = request.path_params["number"]
    for pull in repository.pulls():
        if str(pull.number) == number:
            return pull
    raise EntryMissing(f"{repository.id} has no pull request {number[:20]!r}.")


def _told(repository: Repository, pull: Pull) -> Json:
    return {
        "num": pull.number,
        "title": pull.title,
        "author": {"name": pull.author},
        "createdAt": stamp(pull.opened),
        "status": pull.status,
        "isPullRequest": True,
        "repo": {"name": str(repository.id), "type": repository.id.kind.removesuffix("s")},
    }


_ALL = REPO + "/discussions"
_ONE = _ALL + "/{number:quoted}"

routes = [
    Route(_ALL, listing),
    Route(_ONE, details),
    Route(_ONE + "/merge", with_json(merge), methods=["POST"]),
    Route(_ONE + "/status", with_json(change_status), methods=["POST"]),
]
