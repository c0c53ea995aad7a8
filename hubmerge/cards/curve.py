"""A validation curve, of one task or of several: its rows, its CSV, its description in words."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from hubmerge.cards.markdown import inert
from hubmerge.cards.number_format import MISSING, percent
from hubmerge.manifest import Point

CSV, PICTURE = "curve.csv", "curve.png"
_ROWS, _MOST_TASKS = 15, 12
_COLUMNS = ("step", "loss", "validation_accuracy", "standard_error", "lr")


def thinned(points: Sequence[Point]) -> list[Point]:
    """All of a short curve; of a long one the first point of each doubling, and the last.

    That keeps the steps 2^k wherever they are, and a dozen or so of any two thousand steps.
    """
    if len(points) <= _ROWS:
        return list(points)
    first = {point.step.bit_length(): point for point in reversed(points)}
    kept = {point.step: point for point in (*first.values(), points[-1])}
    return sorted(kept.values(), key=lambda point: point.step)


def curve_tasks(points: Sequence[Point]) -> list[str]:
    """The ids of the tasks of which a curve is a mean, as many as a table has room for."""
    return list(dict.fromkeys(task for point in points for task in point.tasks))[:_MOST_TASKS]


def curve_rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """The rows of the card's table; `tasks` has a number for each of `curve_tasks`."""
    tasks = curve_tasks(points)
    return [
        {
            "step": str(point.step),
            "loss": MISSING if point.loss is None else f"{point.loss:.4f}",
            "accuracy": percent(point.accuracy),
            "lr": f"{point.lr:.2e}",
            "tasks": [_of_task(point, task) for task in tasks],
        }
        for point in thinned(points)
    ]


def curve_csv(points: Sequence[Point]) -> str:
    """Every point as a line, six digits a number; accuracies in [0, 1], no loss before step 1.

    A curve that is a mean over tasks has a column for each of them at the end, headed by its id.
    """
    tasks = dict.fromkeys(task for point in points for task in point.tasks)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*_COLUMNS, *map(inert, tasks)))
    for p in points:
        numbers = p.loss, p.accuracy, standard_error(p), p.lr, *map(p.tasks.get, tasks)
        writer.writerow((p.step, *("" if n is None else f"{n:.6g}" for n in numbers)))
    return text.getvalue()


def curve_words(points: Sequence[Point]) -> str:
    """What the picture shows, for those who cannot see it."""
    first, last, best = points[0], points[-1], max(points, key=lambda point: point.accuracy)
    return (
        "Validation accuracy and training loss against training steps on a log axis: accuracy "
        f"goes from {percent(first.accuracy)} % at step {first.step} to {percent(last.accuracy)} % "
        f"at step {last.step}, and is highest at step {best.step} with {percent(best.accuracy)} %."
    )


def standard_error(point: Point) -> float:
    """The binomial standard error of a point's accuracy, 0 where nothing was counted.

    Of a mean over tasks it is that of the mean, each task taken to have as many rows as another.
    """
    accuracies = [*point.tasks.values()] or [point.accuracy]
    spread = math.fsum(value * (1 - value) for value in accuracies) / len(accuracies)
    return math.sqrt(spread / point.count) if point.count and spread > 0 else 0.0


def _of_task(point: Point, task: str) -> str:
    value = point.tasks.get(task)
    return MISSING if value is None else percent(value)
