"""Measured values as flat rows with labels, and how rows are selected by their labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hubmerge.reproduce.plan import RecipePlan
from hubmerge.reproduce.unit import Result
from hubmerge.seed_statistics import mean
from hubmerge.specs.recipe import Where

Row = Mapping[str, Any]
AT_LABEL = "at"  # selects a step as best, first or last


def collect_rows(plan: RecipePlan, unit_results: Mapping[str, Result]) -> list[Row]:
    """Every row with a value in the results of a plan, with the labels of its request."""
    rows = []
    for request in plan.requests:
        result = unit_results.get(request.unit.key)
        labels = request.labels
        for row in result["rows"] if result else ():
            rows.append({**row, **labels} if "step" in labels else {**labels, **row})
    return [row for row in rows if "value" in row]


def select_rows(rows: Iterable[Row], where: Where, peak: Where | None = None) -> list[Row]:
    """The rows with these labels; a label with several values matches any of them.

    `at: best` selects the step at which the rows, or those of `peak`, are best on validation, by
    the mean over seeds; `at: first` and `at: last` select the first and the last step.
    """
    all_rows = list(rows)
    labels = {name: value for name, value in where.items() if name != AT_LABEL}
    selected = [row for row in all_rows if _matches(row, labels)]
    if AT_LABEL not in where:
        return selected
    steps = numbered_steps(selected)
    match where[AT_LABEL]:
        case "first":
            step = min(steps, default=None)
        case "last":
            step = max(steps, default=None)
        case _:
            step = best_step(select_rows(all_rows, peak) if peak else selected)
    return [row for row in selected if row.get("step") == step]


def best_step(rows: Sequence[Row]) -> int | None:
    """The step that is best on validation, by the mean over its rows; the earliest of equals."""
    validated = [row for row in rows if "validation" in row]
    means = {
        step: mean([row["validation"] for row in validated if row.get("step") == step])
        for step in numbered_steps(validated)
    }
    return max(means, key=lambda step: (means[step], -step), default=None)


def numbered_steps(rows: Iterable[Row]) -> list[int]:
    """The steps that are numbers, in ascending order."""
    return sorted({row["step"] for row in rows if isinstance(row.get("step"), int)})


def reached_step(rows: Iterable[Row], where: Where) -> int:
    """The last step measured with these labels, but for those of the step; 0 without any."""
    labels = {name: value for name, value in where.items() if name not in (AT_LABEL, "step")}
    return max(numbered_steps(row for row in rows if _matches(row, labels)), default=0)


def values_by_seed(
    rows: Iterable[Row], aggregate: Callable[[list[float]], float] = mean
) -> dict[int, float]:
    """Seed -> the mean value of its rows, or another `aggregate` of them."""
    seeds: dict[int, list[float]] = {}
    for row in rows:
        seeds.setdefault(row["seed"], []).append(row["value"])
    return {seed: aggregate(values) for seed, values in sorted(seeds.items())}


def label_values(rows: Iterable[Row], label: str) -> list[Any]:
    """The values of a label: numbers in ascending order, then texts in order of appearance."""
    values = (row[label] for row in rows if label in row)
    unique = list(dict.fromkeys(value for value in values if isinstance(value, (str, int, float))))
    numbers = sorted(value for value in unique if not isinstance(value, str))
    return [*numbers, *(value for value in unique if isinstance(value, str))]


def _matches(row: Row, labels: Where) -> bool:
    return all(
        row.get(name) in value if isinstance(value, tuple) else row.get(name) == value
        for name, value in labels.items()
    )
