"""The page of a repository: its card, its steps, how to load it, where it comes from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from hubmerge.front_matter import card_body
from hubmerge.manifest import Manifest
from hubmerge.server.access import get_hub, readable_repo
from hubmerge.server.http_errors import HttpError, RepoMissing, RevisionMissing
from hubmerge.server.names import RepoId
from hubmerge.server.pages.card_html import CardPlace, is_cut, render_markdown
from hubmerge.server.pages.cards import Card, read_card, read_summary
from hubmerge.server.pages.charts import LineChart, Sparkline, draw_chart, draw_sparkline
from hubmerge.server.pages.comparison import comparison
from hubmerge.server.pages.lineage import Parent, find_children, parents_of
from hubmerge.server.pages.links import repo_url, tree_url
from hubmerge.server.pages.loading import loading_snippets
from hubmerge.server.pages.numbers import format_norm, formatter_of
from hubmerge.server.pages.paging import Page, take_page
from hubmerge.server.pages.rendering import render_page
from hubmerge.server.pages.repositories import is_visible, visible_repositories
from hubmerge.server.pages.steps import (
    StepFacts,
    TaggedStep,
    curves_of,
    list_steps,
    read_facts,
    read_manifest,
)
from hubmerge.server.repository import Repository
from hubmerge.server.snapshot import Snapshot

_STEPS_PER_PAGE = 50
_MAX_COLUMNS = 3
_MAX_CHIPS = 12
_MAX_FIELD_CHARS = 400


@dataclass(frozen=True)
class StepTableRow:
    """A step in the table: its numbers as text, one for each column."""

    tag: TaggedStep
    numbers: list[str]
    norm: str
    problem: str


@dataclass(frozen=True)
class StepTable:
    """A page of the steps, the curve of their run, and how it went in one word's space."""

    page: Page[TaggedStep]
    columns: list[str]
    rows: list[StepTableRow]
    chart: LineChart | None
    chart_name: str
    sparkline: Sparkline | None


def repository(request: Request) -> Response:
    """A repository, or two of its steps side by side if the query compares them."""
    repo = readable_repo(request)
    if {"compare", "from", "to"} & request.query_params.keys():
        return comparison(request, repo)
    snapshot = repo.snapshot("main")
    card, (manifest, problem) = read_card(snapshot), read_manifest(snapshot)
    steps = list_steps(repo)
    newest = steps[-1].name if steps else "main"
    return render_page(
        request,
        "repository.html",
        repo=repo,
        sha=snapshot.sha,
        updated=snapshot.commit.date,
        chips=read_summary(snapshot).chips[:_MAX_CHIPS],
        card=card,
        card_html=_card_html(card, repo.id),
        card_is_cut=is_cut(card.text),
        fields=describe_fields(card),
        manifest=manifest,
        manifest_problem="" if "has no" in problem else problem,
        steps=_step_table(request, repo, steps, manifest) if steps else None,
        newest=newest,
        snippets=loading_snippets(repo.id, newest, repo.snapshot(newest), manifest),
        size=sum({file.etag: file.size for file in snapshot.files()}.values()),
        parents=_linked_parents(request, manifest, snapshot),
        children=find_children(repo, visible_repositories(request, "models")),
    )


def describe_fields(card: Card) -> list[tuple[str, str]]:
    """The front matter as rows of text; long values are cut."""
    return [(key[:60], _field_text(value)) for key, value in card.fields.items()]


def _field_text(value: Any) -> str:
    is_list_of_words = isinstance(value, list) and all(isinstance(v, str | int) for v in value)
    if is_list_of_words:
        text = ", ".join(map(str, value))
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_FIELD_CHARS else f"{text[:_MAX_FIELD_CHARS]}…"


def _card_html(card: Card, id: RepoId) -> str:
    return render_markdown(card_body(card.text), CardPlace(id, "main"))


def _step_table(
    request: Request, repo: Repository, steps: Sequence[TaggedStep], manifest: Manifest | None
) -> StepTable:
    page = take_page(request, steps, _STEPS_PER_PAGE, repo_url(repo.id), "steps", "#steps")
    facts = [(tag, _read_facts(repo, tag)) for tag in page.items]
    names = list(dict.fromkeys(name for _, fact in facts for name in fact.numbers))[:_MAX_COLUMNS]
    curve = next(iter(curves_of(manifest)), None) if manifest else None
    name = curve.name if curve else (names[0] if names else "")
    own = [(tag.step, fact.numbers[name]) for tag, fact in facts if name in fact.numbers]
    points = list(curve.points) if curve else own
    return StepTable(
        page,
        names,
        [_step_row(tag, fact, names) for tag, fact in facts],
        draw_chart(name, points, own),
        name,
        draw_sparkline(name, points),
    )


def _step_row(tag: TaggedStep, facts: StepFacts, names: Sequence[str]) -> StepTableRow:
    numbers = [_format(facts.numbers.get(name), formatter_of(name)) for name in names]
    return StepTableRow(tag, numbers, _format(facts.norm, format_norm), facts.problem)


def _format(value: float | None, format_value: Callable[[float], str]) -> str:
    return "" if value is None else format_value(value)


def _read_facts(repo: Repository, tag: TaggedStep) -> StepFacts:
    try:
        return read_facts(repo.snapshot(tag.sha))
    except HttpError as error:
        return StepFacts(problem=error.message)


def _linked_parents(
    request: Request, manifest: Manifest | None, snapshot: Snapshot
) -> list[tuple[Parent, str]]:
    """What it was made from, each with its page, empty if this Hub does not show it."""
    parents = parents_of(manifest, read_summary(snapshot).bases)
    return [(parent, _url_of(request, parent)) for parent in parents]


def _url_of(request: Request, parent: Parent) -> str:
    """The page of the commit, or of the repository if it does not have that commit any more."""
    if parent.id is None:
        return ""
    try:
        repo = get_hub(request).store.find(parent.id)
        if not is_visible(request, repo):
            return ""
        repo.snapshot(parent.revision)
    except RepoMissing:
        return ""
    except RevisionMissing:
        return repo_url(parent.id)
    return tree_url(parent.id, parent.revision)
