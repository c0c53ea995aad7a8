"""Where things stand on an axis, and what is named on it; the script has the same rules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from hubmerge.reports.chart_data import Line, Picture

_MOST_NAMED = 14
_ROOM = 0.06  # above and below the curves, of their height


def positions(shown: Picture) -> dict[float | str, float]:
    """The position of every place on x, in steps of the scale: octaves, units, or one each.

    A logarithm has no 0: step 0, the base itself, stands one octave before the first step.
    """
    places = list(shown.places)
    if shown.scale == "category":
        return {x: float(number) for number, x in enumerate(places)}
    numbers = [float(x) for x in places]
    if shown.scale == "linear":
        return dict(zip(places, numbers, strict=True))
    first = min((x for x in numbers if x > 0), default=1.0)
    return {
        place: math.log2(x) if x > 0 else math.log2(first) - 1
        for place, x in zip(places, numbers, strict=True)
    }


def x_ticks(shown: Picture) -> list[tuple[float, str]]:
    """Positions on x that have words: the places themselves, or of many on a line round numbers."""
    at = positions(shown)
    if shown.scale == "linear" and len(at) > _MOST_NAMED:
        return [(tick, f"{tick:g}") for tick in round_numbers(min(at.values()), max(at.values()))]
    return [(at[x], label) for x, label in shown.places.items()]


def x_range(shown: Picture) -> tuple[float, float]:
    """The first and last position on x; bars and lone points have room to both sides."""
    at = list(positions(shown).values()) or [0.0]
    low, high = min(at), max(at)
    room = 0.5 if shown.kind == "bar" or low == high else 0.02 * (high - low)
    return low - room, high + room


def y_range(shown: Picture, lines: Iterable[Line] | None = None) -> tuple[float, float]:
    """What is seen of y: all values and bands of one standard error; bars stand on 0."""
    marks = [mark for line in lines or shown.lines for mark in line.marks]
    ends = [mark.mean + sign * mark.error for mark in marks for sign in (-1, 1)]
    ends += [value for mark in marks for value in mark.values if value is not None]
    if shown.kind == "bar":
        ends.append(0.0)
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    room = _ROOM * (high - low) or 1.0
    if shown.kind == "bar":
        return low - room if low < 0 else 0.0, 0.0 if low < high == 0 else high + room
    return low - room, high + room


def round_numbers(low: float, high: float, about: int = 5) -> list[float]:
    """About so many round numbers within a range: steps of 1, 2 or 5 times a power of ten."""
    step = _round_step((high - low) / about)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def thinned(ticks: Sequence[tuple[float, str]], widths: Sequence[float]) -> list[tuple[float, str]]:
    """Every tick, or every second, third ...: as many as their words have room for.

    `widths` are those of the words, in the unit of the positions.
    """
    for apart in range(1, len(ticks)):
        kept = list(zip(ticks, widths, strict=True))[::apart]
        ends = [(place - width / 2, place + width / 2) for (place, _), width in kept]
        if all(end <= start for (_, end), (start, _) in pairwise(ends)):
            return [tick for tick, _ in kept]
    return list(ticks[:1])


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    return next((times * power for times in (1, 2, 5) if times * power >= rough), 10 * power)
