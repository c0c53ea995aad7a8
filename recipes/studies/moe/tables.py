"""The tables and the figure of docs/moe.md, from results.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hubmerge.seed_statistics import mean, stderr
from recipes.studies.pages import format_mean, insert_table, markdown_table

PAGE = Path(__file__).parents[3] / "docs" / "moe.md"
PICTURE = PAGE.parent / "moe" / "accuracy-per-start.png"
RESULTS = Path(__file__).with_name("results.json")
EARLY = "early stop"
ARROW = {
    "untrained": "not trained", "start": "300 steps", "longer": "1200 steps",
    "the paper's rate": "4000 steps at 1e-5",
}  # fmt: skip
CENTROIDS = {"centroid untrained": "centroids, not trained", "centroid": "centroids, 300 steps"}
Row = Mapping[str, Any]


def write_page(results: Path) -> None:
    """Collect all rows in results.json, write the tables of the page and draw its figure."""
    rows = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    lines = ",\n".join(json.dumps(row, sort_keys=True) for row in rows)
    RESULTS.write_text(f"[\n{lines}\n]\n")
    PAGE.write_text(render_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    draw_figure(rows)


def render_page(page: str) -> str:
    """The page with its tables replaced by those of results.json."""
    rows = json.loads(RESULTS.read_text())
    page = insert_table(page, "starts", _starts(rows, ARROW))
    page = insert_table(page, "centroids", _starts(rows, CENTROIDS))
    page = insert_table(page, "verdicts", _verdicts(rows))
    page = insert_table(page, "routers", _routers(rows))
    return insert_table(page, "tasks", _tasks(rows))


def draw_figure(rows: Sequence[Row]) -> None:
    """Test accuracy against the step of the experts that a mixture starts from."""
    from hubmerge.cards.figures import draw_curves

    names = {
        "start": "mixture, 300 steps", "longer": "mixture, 1200 steps",
        "centroid": "mixture, 300 steps from centroids", "untrained": "mixture, not trained",
    }  # fmt: skip
    curves = {}
    for group, name in names.items():
        own = [row for row in rows if row["group"] == group and row["start"] != EARLY]
        starts = sorted({int(row["start"]) for row in own})
        tests = {start: _values(own, start=str(start)) for start in starts}
        curves[name] = {s: (mean(values), stderr(values)) for s, values in tests.items()}
    shown = {name: curve for name, curve in curves.items() if curve}
    draw_curves(shown, "Mixtures by the step they start from", PICTURE)


def _starts(rows: Sequence[Row], groups: Mapping[str, str]) -> str:
    """Starts by budgets: validation and test, mean over seeds with standard error."""
    starts = {row["start"] for row in rows if row["group"] in groups}
    order = [*sorted(starts - {EARLY}, key=int), EARLY]
    splits = ("val.", "test")
    head = ["start", *(f"{name}, {split}" for name in groups.values() for split in splits)]
    lines = []
    for start in order:
        cells = [
            format_mean(_values(rows, split, group=group, start=start))
            for group in groups
            for split in ("validation", "test")
        ]
        lines.append([start, *cells])
    return markdown_table(head, lines)


def _verdicts(rows: Sequence[Row]) -> str:
    """The gain on test of early starts over starts from the last step, paired by seed."""
    lines = []
    for group, name in {**ARROW, **CENTROIDS}.items():
        own = [row for row in rows if row["group"] == group]
        best = _best(own)
        if best is None:
            continue
        gains = [_gains(own, best), _gains(own, EARLY), _gains(own, "8")]
        lines.append([name, best, *(format_mean(gain, sign=True) for gain in gains)])
    head = ["training", "best on validation", "its gain over 2048", "early stop's", "step 8's"]
    return markdown_table(head, lines)


def _routers(rows: Sequence[Row]) -> str:
    """Routers at one start: without and with training, and the weight of the task's own expert."""
    trained = [row for row in rows if row["group"] == "router"]
    raw = [row for row in rows if row["group"] == "router untrained"]
    lines = []
    for what in dict.fromkeys(row["what"] for row in sorted(trained, key=_rank)):
        lines.append([
            what,
            format_mean(_values(raw, what=what)),
            format_mean(_values(trained, "validation", what=what)),
            format_mean(_values(trained, what=what)),
            format_mean(_values(trained, "own", what=what)),
        ])  # fmt: skip
    head = ["router", "not trained, test", "validation", "test", "own expert's weight"]
    return markdown_table(head, lines)


def _tasks(rows: Sequence[Row]) -> str:
    """Test accuracy of each task at four starts."""
    own = [row for row in rows if row["group"] == "start"]
    names = list(own[0]["tasks"]) if own else []
    lines = []
    for start in ("8", "256", "2048", EARLY):
        values = [row["tasks"] for row in own if row["start"] == start]
        lines.append([start, *(format_mean([row[name] for row in values]) for name in names)])
    return markdown_table(["start", *names], lines)


def _values(rows: Sequence[Row], what_of: str = "test", **where: str) -> list[float]:
    return [row[what_of] for row in rows if all(row[key] == value for key, value in where.items())]


def _best(rows: Sequence[Row]) -> str | None:
    """The common step with the best mean validation accuracy as a start."""
    starts = {row["start"] for row in rows} - {EARLY}
    if not starts:
        return None
    return max(starts, key=lambda start: mean(_values(rows, "validation", start=start)))


def _gains(rows: Sequence[Row], start: str) -> list[float]:
    tests = {(row["start"], row["seed"]): row["test"] for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    pairs = [((start, seed), ("2048", seed)) for seed in seeds]
    return [tests[a] - tests[b] for a, b in pairs if a in tests and b in tests]


def _rank(row: Row) -> int:
    from recipes.studies.moe.run import ROUTERS

    return list(ROUTERS).index(row["what"])
