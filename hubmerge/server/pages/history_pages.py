"""Pages of commits, and of discussions and pull requests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from hubmerge.server import discussions as discussions_api
from hubmerge.server.access import readable_repo, visible_repo
from hubmerge.server.pages.links import commit_url, commits_url, discussions_url
from hubmerge.server.pages.paging import take_page
from hubmerge.server.pages.rendering import render_page
from hubmerge.server.repository import Repository
from hubmerge.server.snapshot import File, Snapshot

_COMMITS_PER_PAGE = 50
_FILES_PER_PAGE = 200


@dataclass(frozen=True)
class FileChange:
    """A file that a commit added, changed or removed; the sizes are None where it is not."""

    path: str
    before: int | None
    after: int | None

    @property
    def word(self) -> str:
        if self.before is None:
            return "added"
        return "removed" if self.after is None else "changed"


def commits(request: Request) -> Response:
    """The history of a revision; the next page starts at a commit, so it cannot shift."""
    repo, revision = readable_repo(request), request.path_params["revision"]
    history = repo.snapshot(revision).history(_COMMITS_PER_PAGE + 1)
    older = history[_COMMITS_PER_PAGE:]
    return render_page(
        request, "commits.html", repo=repo, revision=revision,
        history=history[:_COMMITS_PER_PAGE],
        older_url=commits_url(repo.id, older[0].id) if older else "",
    )  # fmt: skip


def commit(request: Request) -> Response:
    """One commit: its message, and the files that it changed."""
    repo, revision = readable_repo(request), request.path_params["revision"]
    snapshot = repo.snapshot(revision)
    changes = list_changes(repo, snapshot)
    page = take_page(request, changes, _FILES_PER_PAGE, commit_url(repo.id, snapshot.sha))
    return render_page(
        request, "commit.html", repo=repo, commit=snapshot.commit, page=page, revision=snapshot.sha
    )


def list_changes(repo: Repository, snapshot: Snapshot) -> list[FileChange]:
    """The files in which a commit differs from its first parent."""
    parent = snapshot.commit.parent
    old = _files(repo.snapshot(parent)) if parent else {}
    new = _files(snapshot)
    return [
        FileChange(path, _size(old.get(path)), _size(new.get(path)))
        for path in sorted(old.keys() | new.keys())
        if _etag(old.get(path)) != _etag(new.get(path))
    ]


def discussions(request: Request) -> Response:
    """One page of the discussions and pull requests, as the API lists them."""
    repo = visible_repo(request)
    items = _read_json(discussions_api.listing(request))
    start, shown = items["start"], items["discussions"]
    has_more = start + len(shown) < items["count"]
    number = int(request.query_params.get("p", "0")) if start else 0
    next_url = f"{discussions_url(repo.id)}?p={number + 1}" if has_more and shown else ""
    return render_page(
        request, "discussions.html", repo=repo, items=shown, total=items["count"],
        next_url=next_url, revision="main",
    )  # fmt: skip


def discussion(request: Request) -> Response:
    """One discussion or pull request with its events, as the API describes it."""
    repo = visible_repo(request)
    details = _read_json(discussions_api.details(request))
    return render_page(
        request, "discussion.html", repo=repo, item=details,
        events=[_describe_event(event) for event in details["events"]], revision="main",
    )  # fmt: skip


def _describe_event(event: dict[str, Any]) -> dict[str, str]:
    """An event as text: who did what, when."""
    data = event.get("data") or {}
    words = {
        "commit": f"committed {str(data.get('oid', ''))[:8]}: {data.get('subject', '')}",
        "comment": "wrote",
        "status-change": f"changed the status to {data.get('status', '')}",
        "title-change": f"changed the title to {data.get('to', '')}",
    }
    latest = data.get("latest") or {}
    kind = str(event.get("type", ""))
    return {
        "author": str((event.get("author") or {}).get("name", "")),
        "day": str(event.get("createdAt", ""))[:10],
        "words": words.get(kind, kind),
        "text": str(latest.get("raw", "")) if kind == "comment" else "",
        "sha": str(data.get("oid", "")) if kind == "commit" else "",
    }


def _read_json(response: Response) -> dict[str, Any]:
    value = json.loads(bytes(response.body))
    assert isinstance(value, dict)
    return value


def _files(snapshot: Snapshot) -> dict[str, File]:
    return {file.path: file for file in snapshot.files()}


def _etag(file: File | None) -> str:
    return file.etag if file else ""


def _size(file: File | None) -> int | None:
    return file.size if file else None
