"""A validation curve of one or several tasks: table rows, CSV and text description."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from hubmerge.cards.markdown import escape_formula
from hubmerge.cards.number_format import MISSING, percent
from hubmerge.training_curve import ValidationPoint

CSV, PICTURE = "curve.csv", "curve.png"
_MOST_ROWS, _MOST_TASKS = 15, 12
_COLUMNS = ("step", "loss", "validation_accuracy", "standard_error", "lr")


def thin_curve(points: Sequence[ValidationPoint]) -> list[ValidationPoint]:
    """At most 15 points as they are; of more, the first of each doubling of the step, and the last.

    Steps 2^k are always kept. About a dozen points remain of two thousand steps.
    """
    if len(points) <= _MOST_ROWS:
        return list(points)
    first = {point.step.bit_length(): point for point in reversed(points)}
    kept = {point.step: point for point in (*first.values(), points[-1])}
    return sorted(kept.values(), key=lambda point: point.step)


def curve_tasks(points: Sequence[ValidationPoint]) -> list[str]:
    """The ids of the tasks that a curve is the mean of, at most twelve."""
    return list(dict.fromkeys(task for point in points for task in point.tasks))[:_MOST_TASKS]


def curve_rows(points: Sequence[ValidationPoint]) -> list[dict[str, Any]]:
    """The rows of the card's table; `tasks` has an accuracy for each of `curve_tasks`."""
    tasks = curve_tasks(points)
    return [
        {
            "step": str(point.step),
            "loss": MISSING if point.loss is None else f"{point.loss:.4f}",
            "accuracy": percent(point.accuracy),
            "lr": f"{point.lr:.2e}",
            "tasks": [_task_accuracy(point, task) for task in tasks],
        }
        for point in thin_curve(points)
    ]


def curve_csv(points: Sequence[ValidationPoint]) -> str:
    """One line per point, numbers with six digits; accuracies in [0, 1], no loss at step 0.

    A curve that is a mean over tasks has one more column per task, named by the task's id.
    """
    tasks = dict.fromkeys(task for point in points for task in point.tasks)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*_COLUMNS, *map(escape_formula, tasks)))
    for p in points:
        numbers = p.loss, p.accuracy, standard_error(p), p.lr, *map(p.tasks.get, tasks)
        writer.writerow((p.step, *("" if n is None else f"{n:.6g}" for n in numbers)))
    return text.getvalue()


def describe_curve(points: Sequence[ValidationPoint], name: str = "accuracy") -> str:
    """The alternative text of the picture; `name` is what the points are."""
    first, last, best = points[0], points[-1], max(points, key=lambda point: point.accuracy)
    return (
        f"Validation {name} and training loss against training steps on a log axis: {name} "
        f"goes from {percent(first.accuracy)} % at step {first.step} to {percent(last.accuracy)} % "
        f"at step {last.step}, and is highest at step {best.step} with {percent(best.accuracy)} %."
    )


def standard_error(point: ValidationPoint) -> float:
    """The binomial standard error of a point's accuracy, 0 if no rows were counted.

    For a mean over tasks it is the error of the mean, assuming that all tasks have as many rows.
    """
    accuracies = [*point.tasks.values()] or [point.accuracy]
    variance = math.fsum(value * (1 - value) for value in accuracies) / len(accuracies)
    return math.sqrt(variance / point.count) if point.count and variance > 0 else 0.0


def _task_accuracy(point: ValidationPoint, task: str) -> str:
    value = point.tasks.get(task)
    return MISSING if value is None else percent(value)
