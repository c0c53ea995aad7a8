"""Axis positions, ranges and ticks; assets/scale.js has the same rules."""

from __future__ import annotations

import math
from collections.abc import Iterable

from hubmerge.reports.chart_data import ChartData, Line
from hubmerge.ticks import round_numbers

_MOST_TICKS = 14
_PADDING = 0.06  # above and below the curves, relative to their height


def positions(chart: ChartData) -> dict[float | str, float]:
    """The axis position of every x value: its base 2 logarithm, its value, or its index.

    Step 0, the base itself, has no logarithm and is one octave before the first step.
    """
    xs = list(chart.x_labels)
    if chart.scale == "category":
        return {x: float(number) for number, x in enumerate(xs)}
    numbers = [float(x) for x in xs]
    if chart.scale == "linear":
        return dict(zip(xs, numbers, strict=True))
    first = min((x for x in numbers if x > 0), default=1.0)
    return {
        x: math.log2(number) if number > 0 else math.log2(first) - 1
        for x, number in zip(xs, numbers, strict=True)
    }


def x_ticks(chart: ChartData) -> list[tuple[float, str]]:
    """(position, label) of each x value, or of round numbers if a linear axis has many values."""
    x_of = positions(chart)
    if chart.scale == "linear" and len(x_of) > _MOST_TICKS:
        return [
            (tick, f"{tick:g}") for tick in round_numbers(min(x_of.values()), max(x_of.values()))
        ]
    return [(x_of[x], label) for x, label in chart.x_labels.items()]


def x_range(chart: ChartData) -> tuple[float, float]:
    """The range of the x axis, with a margin; bars and single points have a margin of 0.5."""
    all_positions = list(positions(chart).values()) or [0.0]
    low, high = min(all_positions), max(all_positions)
    margin = 0.5 if chart.kind == "bar" or low == high else 0.02 * (high - low)
    return low - margin, high + margin


def y_range(chart: ChartData, lines: Iterable[Line] | None = None) -> tuple[float, float]:
    """The range of the y axis: all values and bands of one standard error; bars include 0."""
    marks = [mark for line in lines or chart.lines for mark in line.marks]
    ends = [mark.mean + sign * mark.error for mark in marks for sign in (-1, 1)]
    ends += [value for mark in marks for value in mark.values if value is not None]
    if chart.kind == "bar":
        ends.append(0.0)
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    margin = _PADDING * (high - low) or 1.0
    if chart.kind == "bar":
        return low - margin if low < 0 else 0.0, 0.0 if low < high == 0 else high + margin
    return low - margin, high + margin
