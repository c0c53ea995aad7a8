"""Rows of what was measured: flat, labelled, and picked by their labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hubmerge.reproduce.plan import Plan
from hubmerge.reproduce.unit import Result
from hubmerge.results import mean
from hubmerge.specs.recipe import Where

Row = Mapping[str, Any]
AT = "at"  # a step by its part


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
    by the mean over seeds; `at: first` and `at: last` are those of the ends.
    """
    all_rows = list(rows)
    labels = {name: value for name, value in where.items() if name != AT}
    fitting = [row for row in all_rows if _fits(row, labels)]
    if AT not in where:
        return fitting
    numbers = numbered(fitting)
    match where[AT]:
        case "first":
            step = min(numbers, default=None)
        case "last":
            step = max(numbers, default=None)
        case _:
            step = best_step(picked(all_rows, peak) if peak else fitting)
    return [row for row in fitting if row.get("step") == step]


def best_step(rows: Sequence[Row]) -> int | None:
    """The step that is best on validation, by the mean over its rows; the earliest of equals."""
    watched = [row for row in rows if "validation" in row]
    told = {
        step: mean([row["validation"] for row in watched if row.get("step") == step])
        for step in numbered(watched)
    }
    return max(told, key=lambda step: (told[step], -step), default=None)


def numbered(rows: Iterable[Row]) -> list[int]:
    """The steps that are numbers, rising."""
    return sorted({row["step"] for row in rows if isinstance(row.get("step"), int)})


def by_seed(rows: Iterable[Row], how: Callable[[list[float]], float] = mean) -> dict[int, float]:
    """Seed -> the mean value of its rows, or whatever else is to be made of them."""
    seeds: dict[int, list[float]] = {}
    for row in rows:
        seeds.setdefault(row["seed"], []).append(row["value"])
    return {seed: how(values) for seed, values in sorted(seeds.items())}


def noise(rows: Sequence[Row]) -> float:
    """The standard error over examples of the mean of these rows; 0 where it is not known."""
    errors = [row["stderr"] for row in rows if "stderr" in row]
    return math.hypot(*errors) / len(errors) if errors else 0.0


def values_of(rows: Iterable[Row], label: str) -> list[Any]:
    """The values that a label takes, numbers rising and words in the order in which they come."""
    said = (row[label] for row in rows if label in row)
    found = list(dict.fromkeys(value for value in said if isinstance(value, (str, int, float))))
    numbers = sorted(value for value in found if not isinstance(value, str))
    return [*numbers, *(value for value in found if isinstance(value, str))]


def _fits(row: Row, labels: Where) -> bool:
    return all(
        row.get(name) in value if isinstance(value, tuple) else row.get(name) == value
        for name, value in labels.items()
    )
