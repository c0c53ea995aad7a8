"""Rows of what was measured: flat, labelled, and picked by their labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hubmerge.reproduce.plan import Plan
from hubmerge.reproduce.unit import Result
from hubmerge.results import mean
from hubmerge.specs.recipe import Where

Row = Mapping[str, Any]
AT = "at"  # a step by its part: `best` on validation, or `last`


def rows_of(plan: Plan, found: Mapping[str, Result]) -> list[Row]:
    """Every row that the results of a plan hold, with the labels that were asked of each."""
    rows = []
    for asked in plan.asked:
        result = found.get(asked.unit.key)
        for row in result["rows"] if result else ():
            rows.append(
                {**row, **asked.labels} if "step" in asked.labels else {**asked.labels, **row}
            )
    return [row for row in rows if "value" in row]


def picked(rows: Iterable[Row], where: Where, peak: Where | None = None) -> list[Row]:
    """The rows that carry these labels; a label with several values may have any of them.

    `at: best` are those of the step at which the rows, or those of `peak`, are best on validation,
    by the mean over seeds; `at: last` are those of the last step.
    """
    all_rows = list(rows)
    labels = {name: value for name, value in where.items() if name != AT}
    fitting = [row for row in all_rows if _fits(row, labels)]
    if AT not in where:
        return fitting
    if where[AT] == "last":
        step = max(numbered(fitting), default=None)
    else:
        step = best_step(picked(all_rows, peak) if peak else fitting)
    return [row for row in fitting if row.get("step") == step]


def best_step(rows: Sequence[Row]) -> int | None:
    """The step that is best on validation, by the mean over its rows; the earliest of equals."""
    steps = numbered(rows)
    by_step = {
        step: mean([r["validation"] for r in rows if r.get("step") == step]) for step in steps
    }
    return max(by_step, key=lambda step: (by_step[step], -step), default=None)


def numbered(rows: Iterable[Row]) -> list[int]:
    """The steps that are numbers, rising."""
    return sorted({row["step"] for row in rows if isinstance(row.get("step"), int)})


def by_seed(rows: Iterable[Row], how: Callable[[list[float]], float] = mean) -> dict[int, float]:
    """Seed -> the mean value of its rows, or whatever else is to be made of them."""
    seeds: dict[int, list[float]] = {}
    for row in rows:
        seeds.setdefault(row["seed"], []).append(row["value"])
    return {seed: how(values) for seed, values in sorted(seeds.items())}


def values_of(rows: Iterable[Row], label: str) -> list[Any]:
    """The values that a label takes, numbers rising and words in the order in which they come."""
    found = list(dict.fromkeys(row[label] for row in rows if label in row))
    numbers = sorted(value for value in found if not isinstance(value, str))
    return [*numbers, *(value for value in found if isinstance(value, str))]


def _fits(row: Row, labels: Where) -> bool:
    return all(
        row.get(name) in value if isinstance(value, tuple) else row.get(name) == value
        for name, value in labels.items()
    )
