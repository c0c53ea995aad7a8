"""A chart as still SVG: what is seen without a script, and on paper.

It has classes and no colours of its own: assets/page.css gives those, in light and dark.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from hubmerge.reports.chart_data import Line, Mark, Picture
from hubmerge.reports.palette import classes
from hubmerge.reports.scales import (
    positions,
    round_numbers,
    thinned,
    x_range,
    x_ticks,
    y_range,
)

WIDTH = 640
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 34, 38
_LETTER = 6.6  # the width of a letter of a tick's words
_LONGEST = 14
# Around 0, about 8 wide and high; the script has the same ones.
MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M-3.6-3.6h7.2v7.2h-7.2z",
    "M0-4.6L4.4 3.4H-4.4z",
    "M0-5L4.6 0L0 5L-4.6 0z",
    "M0 4.6L4.4-3.4H-4.4z",
    "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
)


@dataclass(frozen=True)
class _Box:
    """The inside of a panel, in units of the drawing, and the ranges it shows."""

    left: float
    top: float
    width: float
    height: float
    xs: tuple[float, float]
    ys: tuple[float, float]

    def x(self, position: float) -> float:
        low, high = self.xs
        return round(self.left + self.width * (position - low) / (high - low), 1)

    def y(self, value: float) -> float:
        low, high = self.ys
        return round(self.top + self.height * (high - value) / (high - low), 1)


def tag(name: str, *inside: str, **attributes: object) -> Markup:
    """An element; every text and every attribute is escaped, `class_` is class, `_` is a dash."""
    said = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value)
        for key, value in attributes.items()
    )
    words = Markup("").join(escape(part) for part in inside)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), said, words)


def still(shown: Picture) -> Markup:
    """The chart, 640 wide; its words are in the figure around it."""
    panels = list(shown.panels.items())
    columns = 1 if len(panels) == 1 else 2 if len(panels) in (2, 4) else 3
    rows = -(-len(panels) // columns)
    height = 340 if columns == 1 else 240
    width = WIDTH / columns
    xs, ys = x_range(shown), y_range(shown)
    drawn = []
    for number, (title, lines) in enumerate(panels):
        left, top = (number % columns) * width, (number // columns) * height
        inner = width - _LEFT - _RIGHT, height - _TOP - _BOTTOM
        box = _Box(left + _LEFT, top + _TOP, *inner, xs, ys)
        drawn += [*_frame(shown, box, title), *_body(shown, box, lines)]
    return tag(
        "svg", *drawn, class_="chart still", viewBox=f"0 0 {WIDTH} {rows * height}",
        aria_hidden="true", focusable="false",
    )  # fmt: skip


def swatch(shown: Picture, style: int) -> Markup:
    """What a series looks like, for the legend."""
    if shown.kind == "bar":
        inside = [tag("rect", x=8, y=-6, width=12, height=12, class_="bar")]
    else:
        inside = [tag("path", d="M0 0H28", class_="line"), _marker(style, 14, 0)]
    drawn = tag("g", *inside, class_=classes(style))
    return tag("svg", drawn, class_="swatch", viewBox="0 -8 28 16", aria_hidden="true")


def _frame(shown: Picture, box: _Box, title: str) -> Iterator[Markup]:
    """Grid, ticks and words around a panel."""
    right, bottom = box.left + box.width, box.top + box.height
    for value in round_numbers(*box.ys):
        y = box.y(value)
        kind = "zero" if value == 0 and box.ys[0] <= 0 else "grid"
        yield tag("path", d=f"M{box.left:g} {y:g}H{right:g}", class_=kind)
        yield tag("text", f"{value:g}", x=box.left - 6, y=y + 4, class_="tick end")
    named = [(position, _cut(words)) for position, words in x_ticks(shown)]
    widths = [(len(words) + 1) * _LETTER for _, words in named]
    for x, words in thinned([(box.x(place), words) for place, words in named], widths):
        yield tag("path", d=f"M{x:g} {bottom:g}v4", class_="grid")
        yield tag("text", words, x=x, y=bottom + 17, class_="tick middle")
    yield tag("text", title or shown.y_label, x=box.left - 36, y=box.top - 14,
              class_="panel-title" if title else "axis")  # fmt: skip
    yield tag("text", shown.x_label, x=right, y=bottom + 33, class_="axis end")


def _body(shown: Picture, box: _Box, lines: Sequence[Line]) -> Iterator[Markup]:
    for number, line in enumerate(lines):
        if shown.kind == "bar":
            inside = list(_bars(shown, box, line, number, len(lines)))
        else:
            inside = list(_curve(shown, box, line))
        yield tag("g", *inside, class_=classes(line.style))


def _curve(shown: Picture, box: _Box, line: Line) -> Iterator[Markup]:
    """A band of one standard error, the mean, a marker at each point."""
    at = positions(shown)
    points = [(box.x(at[mark.x]), mark) for mark in line.marks]
    upper = [f"{x:g} {box.y(mark.mean + mark.error):g}" for x, mark in points]
    lower = [f"{x:g} {box.y(mark.mean - mark.error):g}" for x, mark in reversed(points)]
    if points:
        yield tag("path", d=f"M{'L'.join(upper + lower)}z", class_="band")
        middle = "L".join(f"{x:g} {box.y(mark.mean):g}" for x, mark in points)
        yield tag("path", d=f"M{middle}", class_="line")
    for x, mark in points:
        yield _marker(line.style, x, box.y(mark.mean))


def _marker(style: int, x: float, y: float) -> Markup:
    shape = MARKERS[style % len(MARKERS)]
    return tag("path", d=shape, class_="mark", transform=f"translate({x:g} {y:g})")


def _bars(shown: Picture, box: _Box, line: Line, number: int, lines: int) -> Iterator[Markup]:
    """Bars from 0, each with its standard error; those of one place stand side by side."""
    at = positions(shown)
    wide = 0.8 / lines
    for mark in line.marks:
        first = at[mark.x] - 0.4 + number * wide
        left, right = box.x(first), box.x(first + wide)
        ends = sorted((box.y(0), box.y(mark.mean)))
        yield tag(
            "rect", x=left, y=ends[0], width=round(max(right - left - 1, 1), 1),
            height=round(ends[1] - ends[0], 1), class_="bar",
        )  # fmt: skip
        if mark.error:
            yield _whisker(box, (left + right - 1) / 2, mark)


def _whisker(box: _Box, x: float, mark: Mark) -> Markup:
    low, high = box.y(mark.mean - mark.error), box.y(mark.mean + mark.error)
    return tag("path", d=f"M{x:.1f} {low:g}V{high:g}", class_="whisker")


def _cut(words: str) -> str:
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}\u2026"
