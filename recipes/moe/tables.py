"""The tables and the figure of docs/moe.md, told from what was measured and from nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.pages import markdown, mean, placed, spread, standard_error

PAGE = Path(__file__).parents[2] / "docs" / "moe.md"
PICTURE = PAGE.parent / "moe" / "accuracy-per-start.png"
RESULTS = Path(__file__).with_name("results.json")
EARLY = "early stop"
ARROW = {
    "untrained": "not trained", "start": "300 steps", "longer": "1200 steps",
    "the paper's rate": "4000 steps at 1e-5",
}  # fmt: skip
CENTROIDS = {"centroid untrained": "centroids, not trained", "centroid": "centroids, 300 steps"}
Row = Mapping[str, Any]


def tell(results: Path) -> None:
    """Gather every row into one file, write the page's tables anew, draw its figure."""
    rows = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    lines = ",\n".join(json.dumps(row, sort_keys=True) for row in rows)
    RESULTS.write_text(f"[\n{lines}\n]\n")
    PAGE.write_text(told(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    draw(rows)


def told(page: str) -> str:
    """The page with its tables as the results have them."""
    rows = json.loads(RESULTS.read_text())
    page = placed(page, "starts", _starts(rows, ARROW))
    page = placed(page, "centroids", _starts(rows, CENTROIDS))
    page = placed(page, "verdicts", _verdicts(rows))
    page = placed(page, "routers", _routers(rows))
    return placed(page, "tasks", _tasks(rows))


def draw(rows: Sequence[Row]) -> None:
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
        curves[name] = {s: (mean(found), standard_error(found)) for s, found in tests.items()}
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
            spread(_values(rows, split, group=group, start=start))
            for group in groups
            for split in ("validation", "test")
        ]
        lines.append([start, *cells])
    return markdown(head, lines)


def _verdicts(rows: Sequence[Row]) -> str:
    """What starting early gains on test over starting from the last step, paired by seed."""
    lines = []
    for group, name in {**ARROW, **CENTROIDS}.items():
        own = [row for row in rows if row["group"] == group]
        best = _best(own)
        if best is None:
            continue
        gains = [_gains(own, best), _gains(own, EARLY), _gains(own, "8")]
        lines.append([name, best, *(spread(gain, sign=True) for gain in gains)])
    head = ["training", "best on validation", "its gain over 2048", "early stop's", "step 8's"]
    return markdown(head, lines)


def _routers(rows: Sequence[Row]) -> str:
    """Routers and ways to route at one start: not trained and trained, and where tokens go."""
    trained = [row for row in rows if row["group"] == "router"]
    raw = [row for row in rows if row["group"] == "router untrained"]
    lines = []
    for what in dict.fromkeys(row["what"] for row in sorted(trained, key=_rank)):
        lines.append([
            what,
            spread(_values(raw, what=what)),
            spread(_values(trained, "validation", what=what)),
            spread(_values(trained, what=what)),
            spread(_values(trained, "own", what=what)),
        ])  # fmt: skip
    head = ["router", "not trained, test", "validation", "test", "own expert's weight"]
    return markdown(head, lines)


def _tasks(rows: Sequence[Row]) -> str:
    """Test accuracy of each task at four starts."""
    own = [row for row in rows if row["group"] == "start"]
    names = list(own[0]["tasks"]) if own else []
    lines = []
    for start in ("8", "256", "2048", EARLY):
        found = [row["tasks"] for row in own if row["start"] == start]
        lines.append([start, *(spread([row[name] for row in found]) for name in names)])
    return markdown(["start", *names], lines)


def _values(rows: Sequence[Row], what_of: str = "test", **where: str) -> list[float]:
    return [row[what_of] for row in rows if all(row[key] == said for key, said in where.items())]


def _best(rows: Sequence[Row]) -> str | None:
    """The start with the best mean validation accuracy, early stopping apart."""
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
    from recipes.moe.run import ROUTERS

    return list(ROUTERS).index(row["what"])
