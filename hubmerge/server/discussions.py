"""Endpoints for discussions and pull requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubmerge.server.access import (
    check_owner,
    contributable_repo,
    require_writer,
    visible_repo,
    writable_repo,
)
from hubmerge.server.discussion_store import Discussion, Event, Status
from hubmerge.server.http_errors import BadRequest, Conflict, EntryMissing
from hubmerge.server.info import format_time
from hubmerge.server.messages import REPO_PATH, Json, base_url, with_json
from hubmerge.server.repository import Repository

_PAGE_SIZE = 50
_MAX_TITLE_CHARS, _MAX_COMMENT_CHARS = 200, 64 << 10


def listing(request: Request) -> Response:
    """One page of the discussions that match the query, newest first."""
    repository, query = visible_repo(request), request.query_params
    matches = [
        item
        for item in reversed(repository.discussions())
        if query.get("type", "all") in ("all", _type_of(item))
        and query.get("author") in (None, item.author)
        and query.get("status", "all") in ("all", "open" if item.is_open else "closed")
    ]
    page = query.get("p", "0")
    start = _PAGE_SIZE * int(page) if page.isdecimal() and len(page) < 10 else 0
    shown = [_to_json(repository, item) for item in matches[start : start + _PAGE_SIZE]]
    return JSONResponse({"discussions": shown, "start": start, "count": len(matches)})


def create(request: Request, body: Json) -> Response:
    """Open a discussion or, with "pullRequest", a draft that commits to its ref will fill."""
    repository, author = contributable_repo(request), require_writer(request).name
    title = _read_title(body.get("title"))
    description = _read_text(body.get("description"))
    discussion = repository.open_discussion(
        title, description, author, is_pull_request=body.get("pullRequest") is True
    )
    return JSONResponse({"num": discussion.number, **_to_json(repository, discussion)})


def details(request: Request) -> Response:
    """One discussion with its comments and, for a pull request, its commits."""
    repository = visible_repo(request)
    item = _find_discussion(request, repository)
    fields = _to_json(repository, item)
    events = [_event_to_json(event) for event in item.events]
    if item.is_pull_request:
        events += _commits(repository, item)
        head = repository.snapshot(item.ref).sha
        merged = {"mergeCommitId": head} if item.status == "merged" else {}
        fields |= {"changes": {"base": "refs/heads/main", **merged}, "filesWithConflicts": []}
    return JSONResponse({**fields, "events": sorted(events, key=lambda e: str(e["createdAt"]))})


def merge(request: Request, body: Json) -> Response:
    """Merge a pull request: main becomes its newest commit."""
    repository, author = writable_repo(request), require_writer(request).name
    number = _find_discussion(request, repository).number
    repository.merge_pull(number, author)
    if comment := _read_text(body.get("comment")):
        repository.change_discussion(number, lambda item: item.with_comment(author, comment))
    return JSONResponse({})


def change_status(request: Request, body: Json) -> Response:
    """Close or reopen a discussion."""
    author, status = require_writer(request).name, str(body.get("status"))
    if status not in ("open", "closed"):
        raise BadRequest('"status" must be "open" or "closed".')
    comment = _read_text(body.get("comment"))

    def change(item: Discussion) -> Discussion:
        if item.status == "merged":
            raise Conflict(f"Pull request {item.number} is merged.")
        item = item.with_comment(author, comment) if comment else item
        changed = replace(item, status=cast(Status, status))
        return changed.with_event("status-change", author, status=status)

    return JSONResponse({"newStatus": _event_to_json(_change(request, change).events[-1])})


def comment(request: Request, body: Json) -> Response:
    author, text = require_writer(request).name, _read_text(body.get("comment"))
    if not text:
        raise BadRequest("A comment needs a text.")
    item = _change(request, lambda item: item.with_comment(author, text), by_anyone=True)
    return JSONResponse({"newMessage": _event_to_json(item.events[-1])})


def rename(request: Request, body: Json) -> Response:
    """Change the title of a discussion."""
    author, title = require_writer(request).name, _read_title(body.get("title"))

    def change(item: Discussion) -> Discussion:
        names = {"from": item.title, "to": title}
        return replace(item, title=title).with_event("title-change", author, **names)

    return JSONResponse({"newTitle": _event_to_json(_change(request, change).events[-1])})


def change_comment(request: Request, body: Json) -> Response:
    """Edit or hide a comment; the text of a hidden one is deleted."""
    id = request.path_params["id"]
    if request.url.path.endswith("/hide"):
        changes: Json = {"hidden": True, "text": "This comment has been hidden"}
    else:
        changes = {"edited": True, "text": _read_text(body.get("content"))}
    item = _change(request, lambda item: item.with_changed_comment(id, **changes))
    return JSONResponse(
        {"updatedComment": next(_event_to_json(e) for e in item.events if e.id == id)}
    )


def pull_request_url(request: Request, repository: Repository, number: int) -> str:
    """The URL of a pull request; clients read its number from it."""
    return f"{base_url(request)}/{repository.id.web_path}/discussions/{number}"


def _find_discussion(request: Request, repository: Repository) -> Discussion:
    number = request.path_params["number"]
    for item in repository.discussions():
        if str(item.number) == number:
            return item
    raise EntryMissing(f"{repository.id} has no discussion or pull request {number[:20]!r}.")


def _change(
    request: Request, change: Callable[[Discussion], Discussion], by_anyone: bool = False
) -> Discussion:
    """Change a discussion, if the user opened it or may change the repository."""
    repository, user = contributable_repo(request), require_writer(request)
    item = _find_discussion(request, repository)
    if not by_anyone and item.author != user.name:
        check_owner(request, user, repository.id)
    return repository.change_discussion(item.number, change)


def _read_title(value: object) -> str:
    title = str(value or "").strip()
    if not 3 <= len(title) <= _MAX_TITLE_CHARS:
        raise BadRequest(f"A title needs 3 to {_MAX_TITLE_CHARS} characters.")
    return title


def _read_text(value: object) -> str:
    text = str(value or "").strip()
    if len(text) > _MAX_COMMENT_CHARS:
        raise BadRequest(f"A comment may have {_MAX_COMMENT_CHARS} characters.")
    return text


def _type_of(item: Discussion) -> str:
    return "pull_request" if item.is_pull_request else "discussion"


def _commits(repository: Repository, item: Discussion) -> list[Json]:
    """The commits of a pull request as events; only the newest if its base is not known."""
    return [
        {
            "id": commit.id,
            "type": "commit",
            "createdAt": format_time(commit.date),
            "author": {"name": commit.author},
            "data": {"subject": commit.title, "oid": commit.id},
        }
        for commit in repository.pull_commits(item)
    ]


def _event_to_json(event: Event) -> Json:
    data = event.data
    if event.kind == "comment":
        latest = {"raw": data["text"], "updatedAt": format_time(event.time)}
        data = {"edited": data["edited"], "hidden": data["hidden"], "latest": latest}
    return {
        "id": event.id,
        "type": event.kind,
        "createdAt": format_time(event.time),
        "author": {"name": event.author},
        "data": data,
    }


def _to_json(repository: Repository, item: Discussion) -> Json:
    return {
        "num": item.number,
        "title": item.title,
        "author": {"name": item.author},
        "createdAt": format_time(item.opened),
        "status": item.status,
        "isPullRequest": item.is_pull_request,
        "repo": {"name": str(repository.id), "type": repository.id.kind.removesuffix("s")},
    }


_LIST_PATH = REPO_PATH + "/discussions"
_ITEM_PATH = _LIST_PATH + "/{number:quoted}"
_COMMENT_PATH = _ITEM_PATH + "/comment/{id:quoted}"

routes = [
    Route(_LIST_PATH, listing),
    Route(_LIST_PATH, with_json(create), methods=["POST"]),
    Route(_ITEM_PATH, details),
    Route(_ITEM_PATH + "/merge", with_json(merge), methods=["POST"]),
    Route(_ITEM_PATH + "/status", with_json(change_status), methods=["POST"]),
    Route(_ITEM_PATH + "/title", with_json(rename), methods=["POST"]),
    Route(_ITEM_PATH + "/comment", with_json(comment), methods=["POST"]),
    Route(_COMMENT_PATH + "/edit", with_json(change_comment), methods=["POST"]),
    Route(_COMMENT_PATH + "/hide", with_json(change_comment), methods=["POST"]),
]
