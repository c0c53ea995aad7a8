"""Two steps of a repository side by side, by their manifests and lists of files alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from hubmerge.byte_sizes import format_bytes
from hubmerge.manifest import Manifest
from hubmerge.server.http_errors import BadRequest
from hubmerge.server.pages.charts import draw_chart
from hubmerge.server.pages.numbers import format_norm, formatter_of
from hubmerge.server.pages.rendering import render_page
from hubmerge.server.pages.steps import curves_of, read_facts, read_manifest
from hubmerge.server.repository import Repository
from hubmerge.server.snapshot import File, Snapshot

_MAX_VALUE_CHARS = 200
_MAX_ROWS = 200


@dataclass(frozen=True)
class Side:
    """One of the two revisions."""

    name: str
    snapshot: Snapshot
    manifest: Manifest | None
    problem: str


@dataclass(frozen=True)
class ComparisonRow:
    """A value on both sides, empty where it is missing."""

    name: str
    left: str
    right: str

    @property
    def differs(self) -> bool:
        return self.left != self.right


@dataclass(frozen=True)
class ComparisonTable:
    """Rows about one subject; `note` counts what is not shown."""

    title: str
    rows: list[ComparisonRow]
    note: str = ""


def comparison(request: Request, repo: Repository) -> Response:
    """The page that compares the two revisions in the query."""
    left, right = (_side(repo, name) for name in _names(request))
    curves = [_curve(side) for side in (left, right)]
    charts = None
    if curves[0] and curves[1] and curves[0][0] == curves[1][0]:
        name, points = max(curves, key=lambda curve: len(curve[1]) if curve else 0) or ("", [])
        marked = [point for curve in curves if curve for point in curve[1][-1:]]
        charts = (name, draw_chart(name, points, marked))
    return render_page(
        request, "comparison.html", repo=repo, left=left, right=right,
        tables=[table for table in _tables(left, right) if table.rows], chart=charts,
    )  # fmt: skip


def _names(request: Request) -> tuple[str, str]:
    query = request.query_params
    if "compare" not in query:
        return query.get("from", "").strip() or "main", query.get("to", "").strip() or "main"
    left, dots, right = query["compare"].partition("..")
    if not dots:
        raise BadRequest("Write two revisions: ?compare=step64..step256")
    return left or "main", right or "main"


def _side(repo: Repository, name: str) -> Side:
    snapshot = repo.snapshot(name)
    return Side(name, snapshot, *read_manifest(snapshot))


def _curve(side: Side) -> tuple[str, list[tuple[int, float]]] | None:
    curves = curves_of(side.manifest) if side.manifest else []
    return (curves[0].name, list(curves[0].points)) if curves else None


def _tables(left: Side, right: Side) -> Iterator[ComparisonTable]:
    yield ComparisonTable("Numbers", list(_numbers(left, right)))
    yield ComparisonTable("Norms of the task vector", list(_norms(left, right)))
    yield _changed("Training", _training(left), _training(right))
    yield _files(left.snapshot, right.snapshot)
    yield _changed("config.json", _config(left.snapshot), _config(right.snapshot))


def _numbers(left: Side, right: Side) -> Iterator[ComparisonRow]:
    facts = read_facts(left.snapshot), read_facts(right.snapshot)
    for name in dict.fromkeys([*facts[0].numbers, *facts[1].numbers]):
        format_value = formatter_of(name)
        texts = [format_value(f.numbers[name]) if name in f.numbers else "" for f in facts]
        yield ComparisonRow(name, *texts)


def _norms(left: Side, right: Side) -> Iterator[ComparisonRow]:
    norms = [side.manifest.norms if side.manifest else None for side in (left, right)]
    if not any(norms):
        return
    layers = [n.layers if n else {} for n in norms]
    yield ComparisonRow("all tensors", *(format_norm(n.model) if n else "" for n in norms))
    yield ComparisonRow("layers that changed", *(str(len(each)) if each else "" for each in layers))
    for name in list(dict.fromkeys([*layers[0], *layers[1]]))[:_MAX_ROWS]:
        yield ComparisonRow(name, *(format_norm(e[name]) if name in e else "" for e in layers))


def _training(side: Side) -> dict[str, str]:
    if side.manifest is None:
        return {}
    fields = {k: v for k, v in side.manifest.training.items() if k != "evaluations"}
    own = {"command": side.manifest.command, "run": (side.manifest.run or "")[:12]}
    return _texts({**fields, **own, **side.manifest.params})


def _config(snapshot: Snapshot) -> dict[str, str]:
    try:
        config = json.loads(snapshot.read("config.json") or "{}")
    except (ValueError, RecursionError):
        return {}
    return _texts(config) if isinstance(config, dict) else {}


def _files(left: Snapshot, right: Snapshot) -> ComparisonTable:
    sides = [{file.path: file for file in snapshot.files()} for snapshot in (left, right)]
    names = sorted(sides[0].keys() | sides[1].keys())
    changed = [name for name in names if _etag(sides[0], name) != _etag(sides[1], name)]
    rows = [ComparisonRow(name, _size(sides[0], name), _size(sides[1], name)) for name in changed]
    # The manifest of every step differs: it holds the step.
    note = f"{len(names) - len(changed)} of {len(names)} files are the same."
    if len(rows) > _MAX_ROWS:
        note += f" The first {_MAX_ROWS} of {len(rows)} that differ are shown."
    return ComparisonTable("Files that differ", rows[:_MAX_ROWS], note)


def _etag(files: Mapping[str, File], name: str) -> str:
    return files[name].etag if name in files else ""


def _size(files: Mapping[str, File], name: str) -> str:
    return format_bytes(files[name].size) if name in files else ""


def _changed(title: str, left: Mapping[str, str], right: Mapping[str, str]) -> ComparisonTable:
    """The values that differ, and how many do not."""
    names = list(dict.fromkeys([*left, *right]))
    rows = [ComparisonRow(name, left.get(name, ""), right.get(name, "")) for name in names]
    changed = [row for row in rows if row.differs]
    same = len(rows) - len(changed)
    note = f"{same} of {len(rows)} values are the same." if changed else ""
    return ComparisonTable(title, changed[:_MAX_ROWS], note)


def _texts(fields: Mapping[str, Any]) -> dict[str, str]:
    texts = {
        str(key)[:100]: value if isinstance(value, str) else json.dumps(value)
        for key, value in fields.items()
    }
    return {key: text[:_MAX_VALUE_CHARS] for key, text in texts.items()}
