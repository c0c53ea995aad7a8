"""The tables of docs/selection.md, from results.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from hubmerge.seed_statistics import mean
from recipes.studies.pages import format_mean, insert_table, markdown_table

PAGE = Path(__file__).parents[3] / "docs" / "selection.md"
RESULTS = Path(__file__).with_name("results.json")
METHODS = {"average": "average", "task_arithmetic": "TA", "ties": "TIES", "dare": "DARE"}
POLICIES = (
    "last", "best-expert", "proxy", "early-stop", "uniform", "average-last", "weights", "rescale",
    "coordinate", "greedy-soup", "joint", "select",
)  # fmt: skip
Row = Mapping[str, Any]


def write_page(results: Path) -> None:
    """Collect all rows in results.json, and write the tables of the page."""
    parts = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    RESULTS.write_text("\n".join(["[", ",\n".join(map(json.dumps, chain(*parts))), "]", ""]))
    PAGE.write_text(render_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def render_page(page: str) -> str:
    """The page with its tables replaced by those of results.json."""
    rows = [row for row in json.loads(RESULTS.read_text()) if not row.get("curve")]
    for suite in {row["suite"] for row in rows}:
        for tune in {row["tune"] for row in rows}:
            selected = [row for row in rows if (row["suite"], row["tune"]) == (suite, tune)]
            if selected:
                page = insert_table(page, f"{suite}-{tune}", _accuracies(selected))
                page = insert_table(page, f"{suite}-{tune}-cost", _costs(selected))
    four = [row for row in rows if row["suite"] == "four"]
    return insert_table(page, "gains", _gains(four))


def _accuracies(rows: Sequence[Row]) -> str:
    """Policies by methods: validation and test accuracy, mean over seeds with standard error."""
    head = [f"{METHODS[m]} {split}" for m in _methods(rows) for split in ("validation", "test")]

    def cells(own: Sequence[Row]) -> Iterable[str]:
        return (format_mean([row[split] for row in own]) for split in ("validation", "test"))

    return _table(["policy", *head], rows, cells, empty=2)


def _costs(rows: Sequence[Row]) -> str:
    """Policies by methods: the number of merges, and of evaluations of all rows."""

    def cells(own: Sequence[Row]) -> Iterable[str]:
        merges = mean([row["merges"] for row in own])
        yield f"{merges:.0f} ({mean([row['evaluations'] for row in own]):.0f})"

    measured = [row for row in rows if row["policy"] != "select"]
    return _table(["policy", *(METHODS[m] for m in _methods(rows))], measured, cells, empty=1)


def _gains(rows: Sequence[Row]) -> str:
    """The gain of coordinate on test over the others, paired by seed: mean and standard error."""
    rivals = ("last", "best-expert", "early-stop", "proxy", "uniform", "weights")
    lines = []
    for tune in dict.fromkeys(row["tune"] for row in rows):
        for method in METHODS:
            own = [row for row in rows if (row["tune"], row["method"]) == (tune, method)]
            tests = {(row["policy"], row["seed"]): row["test"] for row in own}
            ours = {seed: test for (policy, seed), test in tests.items() if policy == "coordinate"}
            gains = [
                [ours[seed] - tests[rival, seed] for seed in ours if (rival, seed) in tests]
                for rival in rivals
            ]
            if ours:
                cells = [format_mean(gain, sign=True) for gain in gains]
                lines.append([f"{tune} {METHODS[method]}", *cells])
    return markdown_table(["coordinate over", *rivals], lines)


def _table(
    head: Sequence[str],
    rows: Sequence[Row],
    cells: Callable[[Sequence[Row]], Iterable[str]],
    empty: int,
) -> str:
    lines = []
    for policy in POLICIES:
        line = [policy]
        for method in _methods(rows):
            own = [row for row in rows if (row["policy"], row["method"]) == (policy, method)]
            line += list(cells(own)) if own else ["-"] * empty
        if any(cell != "-" for cell in line[1:]):
            lines.append(line)
    return markdown_table(head, lines)


def _methods(rows: Sequence[Row]) -> list[str]:
    return [method for method in METHODS if any(row["method"] == method for row in rows)]
