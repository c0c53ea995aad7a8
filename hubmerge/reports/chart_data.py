"""A chart as numbers and text ready for display; SVG, script, tables and figures draw from it.

Shapes: P points of a line, S seeds of the chart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hubmerge.refs import printable
from hubmerge.reports.number_format import axis_label, format_mean, format_value, format_x, scaled
from hubmerge.reports.palette import assign_styles
from hubmerge.results import Chart, ChartPoint, Series
from hubmerge.seed_statistics import mean, stderr
from hubmerge.specs.recipe import Quantity

MOST_IN_ONE_PANEL = 8
_DIGITS = 4


@dataclass(frozen=True)
class Mark:
    """One point: its position, mean and error in display units, and text; `values` is [S]."""

    x: float | str
    label: str
    mean: float
    error: float
    text: str
    values: tuple[float | None, ...]
    value_texts: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class Line:
    """A series; `marks` is [P], left to right.

    `style` is its number in the palette, `group_style` the number of its group.
    """

    name: str
    group: str
    style: int
    group_style: int
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class ChartData:
    """A chart; if `is_split`, it has one panel per group."""

    kind: str
    title: str
    x_label: str
    y_label: str
    scale: str
    seeds: tuple[str, ...]
    lines: tuple[Line, ...]
    is_split: bool

    @property
    def panels(self) -> dict[str, tuple[Line, ...]]:
        """Title -> lines of each panel; a chart that is not split has one panel with title ""."""
        if not self.is_split:
            return {"": self.lines}
        groups = dict.fromkeys(line.group for line in self.lines)
        return {
            group: tuple(line for line in self.lines if line.group == group) for group in groups
        }

    @property
    def x_labels(self) -> dict[float | str, str]:
        """Every x value with its label, left to right."""
        marks = [mark for line in self.lines for mark in line.marks]
        labels = {mark.x: mark.label for mark in marks}
        if any(isinstance(x, str) for x in labels):
            return labels
        return {x: labels[x] for x in sorted(labels, key=float)}


def chart_data(chart: Chart) -> ChartData:
    """The display data of a chart; points without a finite value are left out."""
    seeds = tuple(dict.fromkeys(_seeds(chart.series)))
    numbers = assign_styles([series.name for series in chart.series])
    group_numbers = assign_styles([series.group for series in chart.series])
    lines = tuple(
        Line(
            name=printable(series.name),
            group=printable(series.group),
            style=numbers[series.name],
            group_style=group_numbers[series.group],
            marks=tuple(_marks(series, chart, seeds)),
        )
        for series in chart.series
    )
    return ChartData(
        kind=chart.kind,
        title=printable(chart.title),
        x_label=printable(axis_label(chart.x.label, chart.x.unit)),
        y_label=printable(axis_label(chart.y.label, chart.y.unit)),
        scale=_scale(chart),
        seeds=tuple(printable(seed) for seed in seeds),
        lines=lines,
        is_split=_is_split(chart.series),
    )


def to_json(chart: ChartData) -> str:
    """The chart as compact JSON for the page's script; a mark is a list of its fields in order."""
    lines = [
        {
            "name": line.name,
            "group": line.group,
            "style": line.style,
            "group_style": line.group_style,
            "marks": [list(vars(mark).values()) for mark in line.marks],
        }
        for line in chart.lines
    ]
    fields = {**vars(chart), "lines": lines, "x_labels": list(chart.x_labels.items())}
    return json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _seeds(series: Iterable[Series]) -> Iterable[str]:
    return (seed for line in series for point in line.points for seed in point.values)


def _is_split(series: Iterable[Series]) -> bool:
    """Groups have one panel each if they repeat names, or if one panel would be crowded."""
    all_series = list(series)
    groups = {line.group for line in all_series}
    repeated = len({line.name for line in all_series}) < len(all_series)
    return len(groups) > 1 and (repeated or len(all_series) > MOST_IN_ONE_PANEL)


def _scale(chart: Chart) -> str:
    """The scale of x: "category" for bars, words and negative numbers, else that of the chart."""
    xs = [point.x for series in chart.series for point in series.points]
    no_numbers = any(isinstance(x, str) or not math.isfinite(x) or x < 0 for x in xs)
    return "category" if chart.kind == "bar" or no_numbers else chart.x.scale


def _marks(series: Series, chart: Chart, seeds: tuple[str, ...]) -> Iterable[Mark]:
    points = [point for point in series.points if _finite(point.values)]
    if not any(isinstance(point.x, str) for point in points):
        points = sorted(points, key=lambda point: float(point.x))
    return (_mark(point, chart.x.unit, chart.y.unit, seeds) for point in points)


def _mark(point: ChartPoint, x_unit: Quantity, unit: Quantity, seeds: tuple[str, ...]) -> Mark:
    known = _finite(point.values)
    values = list(known.values())
    x = printable(point.x) if isinstance(point.x, str) else _round(scaled(point.x, x_unit))
    return Mark(
        x=x,
        label=printable(format_x(point.x, x_unit)),
        mean=_round(scaled(mean(values), unit)),
        error=_round(scaled(stderr(values), unit)),
        text=format_mean(values, unit),
        values=tuple(_round(scaled(known[s], unit)) if s in known else None for s in seeds),
        value_texts=tuple(format_value(known.get(seed, math.nan), unit) for seed in seeds),
        note=printable(point.note),
    )


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {seed: value for seed, value in values.items() if math.isfinite(value)}


def _round(value: float) -> float:
    """Rounded to keep the page small."""
    return round(value, _DIGITS)
