"""Curves as shapes for inline SVG; the style sheet has their colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hubmerge.server.pages.numbers import format_tick, formatter_of
from hubmerge.ticks import round_numbers, thin_ticks

Point = tuple[int, float]

WIDTH, HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 16, 40
_LETTER_WIDTH = 7.0
# More points than this are not seen, and would make a page heavy.
_MAX_POINTS = 400
_SPARK_WIDTH, _SPARK_HEIGHT, _SPARK_MARGIN = 90.0, 22.0, 3.0


@dataclass(frozen=True)
class Dot:
    """A point of a chart and the text that it shows under the pointer."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class LineChart:
    """A line, dots, and the ticks of both axes, in the units of a view box of 640 by 260."""

    line: str
    dots: list[Dot]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    bottom: int = HEIGHT - _BOTTOM


@dataclass(frozen=True)
class Sparkline:
    """A small line without axes, and where it ends."""

    line: str
    x: float
    y: float
    title: str
    width: float = _SPARK_WIDTH
    height: float = _SPARK_HEIGHT


def draw_chart(name: str, points: Sequence[Point], marked: Sequence[Point]) -> LineChart | None:
    """The curve of a metric over steps on a logarithmic axis, with dots at the marked points.

    None if there are fewer than two different steps.
    """
    line, dots = _finite(points), _finite(marked)
    everything = [*line, *dots]
    if len({step for step, _ in everything}) < 2:
        return None
    x_of = _log_axis([step for step, _ in everything])
    y_of, y_ticks = _value_axis(name, [value for _, value in everything])
    format_value = formatter_of(name)
    ticks = [(x_of(step), str(step)) for step in _octaves([step for step, _ in everything])]
    return LineChart(
        _path([(x_of(step), y_of(value)) for step, value in _thin(line)]),
        [
            Dot(x_of(step), y_of(value), f"step {step}: {format_value(value)}")
            for step, value in _thin(dots)
        ],
        thin_ticks(ticks, [(len(label) + 1) * _LETTER_WIDTH for _, label in ticks]),
        y_ticks,
    )


def draw_sparkline(name: str, points: Sequence[Point]) -> Sparkline | None:
    """The curve of a metric in the space of a word; None if there are fewer than two points."""
    format_value = formatter_of(name)
    finite = _thin(_finite(points), 60)
    if len(finite) < 2:
        return None
    values = [value for _, value in finite]
    low, high = min(values), max(values)
    xs = _scale(0, len(finite) - 1, _SPARK_MARGIN, _SPARK_WIDTH - _SPARK_MARGIN)
    ys = _scale(low, high, _SPARK_HEIGHT - _SPARK_MARGIN, _SPARK_MARGIN)
    places = [(xs(number), ys(value)) for number, value in enumerate(values)]
    (first, start), (last, end) = finite[0], finite[-1]
    title = f"{name}: {format_value(start)} at step {first}, {format_value(end)} at step {last}"
    return Sparkline(_path(places), *places[-1], title)


def _octaves(steps: Sequence[int]) -> list[int]:
    """The first step, the powers of two beyond it, and step 0 if it is among the steps."""
    first, last = min((step for step in steps if step > 0), default=1), max(steps)
    powers = [2**power for power in range(last.bit_length()) if first < 2**power]
    return [*([0] if 0 in steps else []), first, *powers]


def _value_axis(
    name: str, values: Sequence[float]
) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or max(abs(high), 1.0) * 0.05
    low, high = low - margin, high + margin
    y_of = _scale(low, high, HEIGHT - _BOTTOM, _TOP)
    # No tick beyond all and nothing, which a share such as an accuracy cannot be.
    is_share = "loss" not in name and min(values) >= 0 and max(values) <= 1
    ticks = [tick for tick in round_numbers(low, high) if not is_share or 0 <= tick <= 1]
    return y_of, [(y_of(tick), format_tick(name, tick)) for tick in ticks]


def _log_axis(steps: Sequence[int]) -> Callable[[int], float]:
    """Step 0, the base itself, is one octave before the first step."""
    first = min((step for step in steps if step > 0), default=1)

    def octave(step: int) -> float:
        return math.log2(step) if step > 0 else math.log2(first) - 1

    low, high = octave(min(steps)), octave(max(steps))
    scale = _scale(low, high, _LEFT + 8, WIDTH - _RIGHT - 8)
    return lambda step: scale(octave(step))


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """A linear map of low..high to start..end; a single value is put in the middle."""
    if high == low:
        return lambda _: round((start + end) / 2, 1)
    return lambda value: round(start + (end - start) * (value - low) / (high - low), 1)


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in places) if places else ""


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(step, value) for step, value in points if math.isfinite(value)]


def _thin(points: Sequence[Point], most: int = _MAX_POINTS) -> list[Point]:
    """At most about `most` of the points, evenly, with the first and the last."""
    every = -(-len(points) // most) if points else 1
    thinned = list(points[::every])
    return thinned if not points or thinned[-1] == points[-1] else [*thinned, points[-1]]
