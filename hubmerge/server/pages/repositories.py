"""The list of the repositories, with search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from hubmerge.server.access import current_user, get_hub, may_see
from hubmerge.server.http_errors import HttpError
from hubmerge.server.names import KINDS, RepoId
from hubmerge.server.pages.cards import CardSummary, read_summary
from hubmerge.server.pages.charts import Sparkline, draw_sparkline
from hubmerge.server.pages.links import query_url
from hubmerge.server.pages.paging import take_page
from hubmerge.server.pages.rendering import render_page
from hubmerge.server.pages.steps import curves_of, read_manifest
from hubmerge.server.repository import Repository
from hubmerge.server.snapshot import Snapshot

_PAGE_SIZE = 50


@dataclass(frozen=True)
class RepoRow:
    """A repository in the list; `summary` is None if its main branch cannot be read."""

    id: RepoId
    private: bool
    updated: datetime | None = None
    summary: CardSummary | None = None
    about: str = ""
    sparkline: Sparkline | None = None


def repositories(request: Request) -> Response:
    """The repositories that the reader may see and that match the query, by name."""
    kind, owner = request.query_params.get("kind", ""), request.query_params.get("owner", "")
    search = request.query_params.get("search", "")
    visible = [
        repository
        for repository in visible_repositories(request, kind)
        if search.lower() in str(repository.id).lower() and owner in ("", repository.id.owner)
    ]
    page = take_page(request, visible, _PAGE_SIZE, "/")
    return render_page(
        request, "repositories.html", page=page, rows=[_row(r) for r in page.items],
        kind=kind, owner=owner, kinds=KINDS, reader=current_user(request),
    )  # fmt: skip


def kind(request: Request) -> Response:
    """`/datasets` and its like lead to the list of that kind."""
    return RedirectResponse(query_url("/", kind=request.path_params["kind"]), 307)


def owner(request: Request) -> Response:
    """`/owner` leads to the list of their repositories."""
    return RedirectResponse(query_url("/", owner=request.path_params["owner"]), 307)


def visible_repositories(request: Request, kind: str = "") -> Iterator[Repository]:
    """The repositories of a kind, or of all, that the reader may know of, by kind and name."""
    for each in (kind,) if kind in KINDS else KINDS:
        for repository in get_hub(request).store.all(each):
            if is_visible(request, repository):
                yield repository


def is_visible(request: Request, repository: Repository) -> bool:
    """Whether the reader may know that a repository exists."""
    return may_see(request, current_user(request), repository)


def _row(repository: Repository) -> RepoRow:
    private = repository.settings.private
    try:
        snapshot = repository.snapshot("main")
    except HttpError:
        return RepoRow(repository.id, private)
    about, sparkline = _describe_model(snapshot) if repository.id.kind == "models" else ("", None)
    updated, summary = snapshot.commit.date, read_summary(snapshot)
    return RepoRow(repository.id, private, updated, summary, about, sparkline)


# A manifest may have megabytes, and the list shows a line of it.
@lru_cache(maxsize=4096)
def _describe_model(snapshot: Snapshot) -> tuple[str, Sparkline | None]:
    """What the model at a commit is, and how its training went, as its manifest says."""
    manifest, _ = read_manifest(snapshot)
    if manifest is None:
        return "", None
    curves = curves_of(manifest)
    sparkline = draw_sparkline(curves[0].name, curves[0].points) if curves else None
    return f"expert, step {manifest.step}" if manifest.is_expert else manifest.noun, sparkline
