"""Round numbers for the axes of charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise


def round_numbers(low: float, high: float, about: int = 5) -> list[float]:
    """About `about` round numbers within a range, in steps of 1, 2 or 5 times a power of ten."""
    step = _round_step((high - low) / about)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def thin_ticks(
    ticks: Sequence[tuple[float, str]], widths: Sequence[float]
) -> list[tuple[float, str]]:
    """Every tick, or every second, third ... tick, so that labels do not overlap.

    `widths` are the widths of the labels, in the unit of the positions.
    """
    for every in range(1, len(ticks)):
        kept = list(zip(ticks, widths, strict=True))[::every]
        ends = [(x - width / 2, x + width / 2) for (x, _), width in kept]
        if all(end <= start for (_, end), (start, _) in pairwise(ends)):
            return [tick for tick, _ in kept]
    return list(ticks[:1])


def _round_step(rough: float) -> float:
    """The smallest round step that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    return next((factor * power for factor in (1, 2, 5) if factor * power >= rough), 10 * power)
