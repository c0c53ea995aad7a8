"""A chart as static SVG, for pages without a script and for print.

The elements have classes but no colours: assets/page.css defines those for the light and the dark
theme.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from hubmerge.reports.chart_data import ChartData, Line, Mark
from hubmerge.reports.palette import css_classes
from hubmerge.reports.scales import positions, x_range, x_ticks, y_range
from hubmerge.ticks import round_numbers, thin_ticks

WIDTH = 640
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 34, 38
_LETTER_WIDTH = 6.6  # of a tick label
_LONGEST_TICK = 14
# Centred at 0, about 8 wide and high; assets/draw.js has the same markers.
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
    """The plot area of a panel in SVG units, and its axis ranges."""

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


def element(name: str, *children: str, **attributes: object) -> Markup:
    """An element with escaped content and attributes; `class_` is class, other `_` are dashes."""
    attribute_text = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value)
        for key, value in attributes.items()
    )
    content = Markup("").join(escape(child) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), attribute_text, content)


def static_svg(chart: ChartData) -> Markup:
    """The chart, 640 units wide; title and legend are in the surrounding figure."""
    panels = list(chart.panels.items())
    columns = 1 if len(panels) == 1 else 2 if len(panels) in (2, 4) else 3
    rows = -(-len(panels) // columns)
    height = 340 if columns == 1 else 240
    width = WIDTH / columns
    xs, ys = x_range(chart), y_range(chart)
    elements = []
    for number, (title, lines) in enumerate(panels):
        left, top = (number % columns) * width, (number // columns) * height
        size = width - _LEFT - _RIGHT, height - _TOP - _BOTTOM
        box = _Box(left + _LEFT, top + _TOP, *size, xs, ys)
        elements += [*_frame(chart, box, title), *_body(chart, box, lines)]
    return element(
        "svg", *elements, class_="chart static", viewBox=f"0 0 {WIDTH} {rows * height}",
        aria_hidden="true", focusable="false",
    )  # fmt: skip


def swatch(chart: ChartData, style: int) -> Markup:
    """A sample of a series for the legend."""
    if chart.kind == "bar":
        shapes = [element("rect", x=8, y=-6, width=12, height=12, class_="bar")]
    else:
        shapes = [element("path", d="M0 0H28", class_="line"), _marker(style, 14, 0)]
    group = element("g", *shapes, class_=css_classes(style))
    return element("svg", group, class_="swatch", viewBox="0 -8 28 16", aria_hidden="true")


def _frame(chart: ChartData, box: _Box, title: str) -> Iterator[Markup]:
    """Grid, ticks and labels of a panel."""
    right, bottom = box.left + box.width, box.top + box.height
    for value in round_numbers(*box.ys):
        y = box.y(value)
        kind = "zero" if value == 0 and box.ys[0] <= 0 else "grid"
        yield element("path", d=f"M{box.left:g} {y:g}H{right:g}", class_=kind)
        yield element("text", f"{value:g}", x=box.left - 6, y=y + 4, class_="tick end")
    ticks = [(box.x(position), _shorten(label)) for position, label in x_ticks(chart)]
    widths = [(len(label) + 1) * _LETTER_WIDTH for _, label in ticks]
    for x, label in thin_ticks(ticks, widths):
        yield element("path", d=f"M{x:g} {bottom:g}v4", class_="grid")
        yield element("text", label, x=x, y=bottom + 17, class_="tick middle")
    yield element("text", title or chart.y_label, x=box.left - 36, y=box.top - 14,
              class_="panel-title" if title else "axis")  # fmt: skip
    yield element("text", chart.x_label, x=right, y=bottom + 33, class_="axis end")


def _body(chart: ChartData, box: _Box, lines: Sequence[Line]) -> Iterator[Markup]:
    for number, line in enumerate(lines):
        if chart.kind == "bar":
            shapes = list(_bars(chart, box, line, number, len(lines)))
        else:
            shapes = list(_curve(chart, box, line))
        yield element("g", *shapes, class_=css_classes(line.style))


def _curve(chart: ChartData, box: _Box, line: Line) -> Iterator[Markup]:
    """A band of one standard error, a line through the means, and a marker at each point."""
    x_of = positions(chart)
    points = [(box.x(x_of[mark.x]), mark) for mark in line.marks]
    upper = [f"{x:g} {box.y(mark.mean + mark.error):g}" for x, mark in points]
    lower = [f"{x:g} {box.y(mark.mean - mark.error):g}" for x, mark in reversed(points)]
    if points:
        yield element("path", d=f"M{'L'.join(upper + lower)}z", class_="band")
        means = "L".join(f"{x:g} {box.y(mark.mean):g}" for x, mark in points)
        yield element("path", d=f"M{means}", class_="line")
    for x, mark in points:
        yield _marker(line.style, x, box.y(mark.mean))


def _marker(style: int, x: float, y: float) -> Markup:
    shape = MARKERS[style % len(MARKERS)]
    return element("path", d=shape, class_="mark", transform=f"translate({x:g} {y:g})")


def _bars(chart: ChartData, box: _Box, line: Line, number: int, lines: int) -> Iterator[Markup]:
    """Bars from 0 with their standard errors; bars at one x value are side by side."""
    x_of = positions(chart)
    width = 0.8 / lines
    for mark in line.marks:
        first = x_of[mark.x] - 0.4 + number * width
        left, right = box.x(first), box.x(first + width)
        ends = sorted((box.y(0), box.y(mark.mean)))
        yield element(
            "rect", x=left, y=ends[0], width=round(max(right - left - 1, 1), 1),
            height=round(ends[1] - ends[0], 1), class_="bar",
        )  # fmt: skip
        if mark.error:
            yield _whisker(box, (left + right - 1) / 2, mark)


def _whisker(box: _Box, x: float, mark: Mark) -> Markup:
    low, high = box.y(mark.mean - mark.error), box.y(mark.mean + mark.error)
    return element("path", d=f"M{x:.1f} {low:g}V{high:g}", class_="whisker")


def _shorten(label: str) -> str:
    return label if len(label) <= _LONGEST_TICK else f"{label[: _LONGEST_TICK - 1]}\u2026"
