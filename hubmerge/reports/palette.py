"""Colours, markers and dashes of series; a method looks the same in every chart."""

from __future__ import annotations

import re
from collections.abc import Sequence

# The colour-blind safe palette of Okabe and Ito, darkened to a contrast of 3 to 1 with white.
# assets/page.css has the same colours, and lighter ones for the dark theme.
COLOURS = (
    "#0072b2", "#d55e00", "#00805c", "#b0518a", "#9a6a00", "#4a4a4a", "#2387bd", "#6f52b5",
)  # fmt: skip
# For ordered series such as ranks: part of viridis, the last colour with the highest contrast.
RAMP = (
    "#1f978b", "#23898e", "#297b8e", "#2e6d8e", "#355e8d",
    "#3d4e8a", "#433d84", "#472a7a", "#481769", "#440154",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P")
# Lengths of dash, gap, dash, gap in line widths; empty for a solid line.
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (2, 1.6), (6, 1.8, 1.6, 1.8))

FIRST_RAMP_STYLE = 64
_METHOD_STYLES = {
    "average": 0,
    "ta": 1,
    "task arithmetic": 1,
    "ties": 2,
    "dare": 3,
    "base": 4,
    "experts": 5,
    "mixture": 6,
}


def assign_styles(names: Sequence[str]) -> dict[str, int]:
    """Name -> style number, which determines colour, marker and dash.

    Methods of the paper have fixed numbers; other names take the free numbers in order. Names that
    differ only in a number, such as rank 2 and rank 4, have numbers along the ramp.
    """
    distinct = list(dict.fromkeys(names))
    if (order := _numeric_order(distinct)) is not None:
        last = len(distinct) - 1
        return {name: FIRST_RAMP_STYLE + round(9 * order[name] / last) for name in distinct}
    fixed: dict[str, int] = {}
    for name in distinct:
        wanted = _METHOD_STYLES.get(_normalise(name))
        if wanted is not None and wanted not in fixed.values():
            fixed[name] = wanted
    free = (number for number in range(2 * len(names) + 8) if number not in fixed.values())
    return {name: fixed[name] if name in fixed else next(free) for name in distinct}


def colour(style: int) -> str:
    """The colour of a style in figures, on white."""
    return (
        RAMP[style - FIRST_RAMP_STYLE]
        if style >= FIRST_RAMP_STYLE
        else COLOURS[style % len(COLOURS)]
    )


def dashes(style: int) -> tuple[float, ...]:
    """The dash pattern of a style; ordered series have solid lines."""
    return DASHES[0 if style >= FIRST_RAMP_STYLE else style % len(DASHES)]


def css_classes(style: int) -> str:
    """The CSS classes of a style: c0 to c7 are colours, c8 to c17 the ramp, d0 to d3 dashes."""
    if style >= FIRST_RAMP_STYLE:
        return f"c{style - FIRST_RAMP_STYLE + len(COLOURS)} d0"
    return f"c{style % len(COLOURS)} d{style % len(DASHES)}"


def _numeric_order(names: Sequence[str]) -> dict[str, int] | None:
    """The position of each name by its number, if they differ only in that: rank 2, rank 4 ..."""
    parts = [re.fullmatch(r"(\D*)(\d+(?:\.\d+)?)(\D*)", name) for name in names]
    matches = {name: part for name, part in zip(names, parts, strict=True) if part}
    affixes = {(part[1], part[3]) for part in matches.values()}
    if len(matches) < len(names) or len(affixes) != 1 or not 3 <= len(names) <= len(RAMP):
        return None
    ordered = sorted(names, key=lambda name: float(matches[name][2]))
    return {name: position for position, name in enumerate(ordered)}


def _normalise(name: str) -> str:
    """The key of a name in _METHOD_STYLES: "experts, each on its own task" is "experts"."""
    return re.sub(r"[\W_]+", " ", name.partition(",")[0]).strip().casefold()
