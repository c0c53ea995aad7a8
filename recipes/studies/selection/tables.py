"""The tables of docs/selection.md for eight tasks and for texts, from results.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

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
    for suite, tune in dict.fromkeys((row["suite"], row["tune"]) for row in rows):
        selected = [row for row in rows if (row["suite"], row["tune"]) == (suite, tune)]
        page = insert_table(page, f"{suite}-{tune}", accuracies(selected))
    return page


def accuracies(rows: Sequence[Row]) -> str:
    """Policies by methods: validation and test accuracy, mean over seeds with standard error."""
    methods = [method for method in METHODS if any(row["method"] == method for row in rows)]
    lines = []
    for policy in POLICIES:
        line = [policy]
        for method in methods:
            own = [row for row in rows if (row["policy"], row["method"]) == (policy, method)]
            line += [format_mean([row[split] for row in own]) for split in ("validation", "test")]
        if any(cell != "-" for cell in line[1:]):
            lines.append(line)
    head = [f"{METHODS[m]} {split}" for m in methods for split in ("validation", "test")]
    return markdown_table(["policy", *head], lines)
