"""A chart in the numbers and words it is shown with: what SVG, script, table and figure draw from.

Letters: P points of a line, S seeds of the chart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hubmerge.refs import printable
from hubmerge.reports.number_format import axis_words, place_words, said, scaled, spread
from hubmerge.reports.palette import styles
from hubmerge.results import Chart, Point, Series, mean, stderr
from hubmerge.specs.recipe import Quantity

MOST_IN_ONE_PANEL = 8
_DIGITS = 4


@dataclass(frozen=True)
class Mark:
    """One point: where it stands, how high (in shown units), and its words; `values` is [S]."""

    x: float | str
    label: str
    mean: float
    error: float
    words: str
    values: tuple[float | None, ...]
    said: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class Line:
    """A series as drawn; `marks` is [P], left to right.

    `style` is its number in the palette, `group_style` that of its group.
    """

    name: str
    group: str
    style: int
    group_style: int
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Picture:
    """A chart as drawn: if `is_split`, with one panel for each group."""

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
        """The lines of each panel by its title; one without a title if the chart is not split."""
        if not self.is_split:
            return {"": self.lines}
        groups = dict.fromkeys(line.group for line in self.lines)
        return {
            group: tuple(line for line in self.lines if line.group == group) for group in groups
        }

    @property
    def places(self) -> dict[float | str, str]:
        """Every place of the x axis, left to right, with its words."""
        marks = [mark for line in self.lines for mark in line.marks]
        found = {mark.x: mark.label for mark in marks}
        if any(isinstance(x, str) for x in found):
            return found
        return {x: found[x] for x in sorted(found, key=float)}


def picture(chart: Chart) -> Picture:
    """The chart as it is drawn; points without a finite value are left out."""
    seeds = tuple(dict.fromkeys(_seeds(chart.series)))
    numbers = styles([series.name for series in chart.series])
    group_numbers = styles([series.group for series in chart.series])
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
    return Picture(
        kind=chart.kind,
        title=printable(chart.title),
        x_label=printable(axis_words(chart.x.label, chart.x.unit)),
        y_label=printable(axis_words(chart.y.label, chart.y.unit)),
        scale=_scale(chart),
        seeds=tuple(printable(seed) for seed in seeds),
        lines=lines,
        is_split=_is_split(chart.series),
    )


def to_json(shown: Picture) -> str:
    """The picture for the page's script, short: a mark is a list in the order of its fields."""
    lines = [
        {
            "name": line.name,
            "group": line.group,
            "style": line.style,
            "group_style": line.group_style,
            "marks": [list(vars(mark).values()) for mark in line.marks],
        }
        for line in shown.lines
    ]
    said = {**vars(shown), "lines": lines, "places": list(shown.places.items())}
    return json.dumps(said, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _seeds(series: Iterable[Series]) -> Iterable[str]:
    return (seed for one in series for point in one.points for seed in point.values)


def _is_split(series: Iterable[Series]) -> bool:
    """Groups have a panel each where they repeat names, or where one panel would be crowded."""
    all_series = list(series)
    groups = {one.group for one in all_series}
    repeated = len({one.name for one in all_series}) < len(all_series)
    return len(groups) > 1 and (repeated or len(all_series) > MOST_IN_ONE_PANEL)


def _scale(chart: Chart) -> str:
    """How x is spaced: bars, words and what no logarithm is of have a place each."""
    xs = [point.x for series in chart.series for point in series.points]
    words = any(isinstance(x, str) or not math.isfinite(x) or x < 0 for x in xs)
    return "category" if chart.kind == "bar" or words else chart.x.scale


def _marks(series: Series, chart: Chart, seeds: tuple[str, ...]) -> Iterable[Mark]:
    points = [point for point in series.points if _known(point.values)]
    if not any(isinstance(point.x, str) for point in points):
        points = sorted(points, key=lambda point: float(point.x))
    return (_mark(point, chart.x.unit, chart.y.unit, seeds) for point in points)


def _mark(point: Point, x_unit: Quantity, unit: Quantity, seeds: tuple[str, ...]) -> Mark:
    known = _known(point.values)
    values = list(known.values())
    place = printable(point.x) if isinstance(point.x, str) else _short(scaled(point.x, x_unit))
    return Mark(
        x=place,
        label=printable(place_words(point.x, x_unit)),
        mean=_short(scaled(mean(values), unit)),
        error=_short(scaled(stderr(values), unit)),
        words=spread(values, unit),
        values=tuple(_short(scaled(known[s], unit)) if s in known else None for s in seeds),
        said=tuple(said(known.get(seed, math.nan), unit) for seed in seeds),
        note=printable(point.note),
    )


def _known(values: Mapping[str, float]) -> dict[str, float]:
    return {seed: value for seed, value in values.items() if math.isfinite(value)}


def _short(value: float) -> float:
    """Digits that no eye can see make a page large."""
    return round(value, _DIGITS)
