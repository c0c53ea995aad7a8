"""The validation curve of an expert: its rows, its CSV and its description in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hubmerge.cards.numbers import MISSING, percent
from hubmerge.manifest import Point

CSV, PICTURE = "curve.csv", "curve.png"
_ROWS = 15
_COLUMNS = "step,loss,validation_accuracy,standard_error,lr"


def thinned(points: Sequence[Point]) -> list[Point]:
    """All of a short curve; of a long one the first point of each doubling, and the last.

    That keeps the steps 2^k wherever they are, and a dozen or so of any two thousand steps.
    """
    if len(points) <= _ROWS:
        return list(points)
    first = {point.step.bit_length(): point for point in reversed(points)}
    kept = {point.step: point for point in (*first.values(), points[-1])}
    return sorted(kept.values(), key=lambda point: point.step)


def curve_rows(points: Sequence[Point]) -> list[dict[str, str]]:
    """The rows of the card's table."""
    return [
        {
            "step": str(point.step),
            "loss": MISSING if point.loss is None else f"{point.loss:.4f}",
            "accuracy": percent(point.accuracy),
            "lr": f"{point.lr:.2e}",
        }
        for point in thinned(points)
    ]


def curve_csv(points: Sequence[Point]) -> str:
    """Every point as a line, six digits a number; accuracies in [0, 1], no loss before step 1."""
    lines = [
        f"{p.step},{'' if p.loss is None else f'{p.loss:.6g}'},{p.accuracy:.6g},"
        f"{standard_error(p):.6g},{p.lr:.6g}"
        for p in points
    ]
    return "\n".join([_COLUMNS, *lines, ""])


def curve_words(points: Sequence[Point]) -> str:
    """What the picture shows, for those who cannot see it."""
    first, last, best = points[0], points[-1], max(points, key=lambda point: point.accuracy)
    return (
        "Validation accuracy and training loss against training steps on a log axis: accuracy "
        f"goes from {percent(first.accuracy)} % at step {first.step} to {percent(last.accuracy)} % "
        f"at step {last.step}, and is highest at step {best.step} with {percent(best.accuracy)} %."
    )


def standard_error(point: Point) -> float:
    """The binomial standard error of a point's accuracy, 0 where nothing was counted."""
    spread = point.accuracy * (1 - point.accuracy)
    return math.sqrt(spread / point.count) if point.count and spread > 0 else 0.0
