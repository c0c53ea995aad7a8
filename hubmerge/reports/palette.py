"""Colours, markers and dashes of series: the same method looks the same in every chart."""

from __future__ import annotations

import re
from collections.abc import Sequence

# From Okabe and Ito, which all eyes tell apart, darkened to stand out from white by 3 to 1; the
# page has the same ones, and lighter ones for the dark, in assets/page.css.
COLOURS = (
    "#0072b2", "#d55e00", "#00805c", "#b0518a", "#9a6a00", "#4a4a4a", "#2387bd", "#6f52b5",
)  # fmt: skip
# What is in an order, such as ranks, goes along viridis, to where it stands out most.
RAMP = (
    "#1f978b", "#23898e", "#297b8e", "#2e6d8e", "#355e8d",
    "#3d4e8a", "#433d84", "#472a7a", "#481769", "#440154",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P")
# In widths of the line: ink, gap, ink, gap; none is a solid line.
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (2, 1.6), (6, 1.8, 1.6, 1.8))

ORDERED = 64
_KNOWN = {
    "average": 0,
    "ta": 1,
    "task arithmetic": 1,
    "ties": 2,
    "dare": 3,
    "base": 4,
    "experts": 5,
    "mixture": 6,
}


def styles(names: Sequence[str]) -> dict[str, int]:
    """A number for each name: colour, marker and dash follow from it.

    Methods of the paper have their own; other names take what is free, in their order. Names that
    differ in a number alone have numbers from ORDERED on, along the ramp.
    """
    distinct = list(dict.fromkeys(names))
    if (order := _order(distinct)) is not None:
        last = len(distinct) - 1
        return {name: ORDERED + round(9 * order[name] / last) for name in distinct}
    given: dict[str, int] = {}
    for name in distinct:
        wanted = _KNOWN.get(_plain(name))
        if wanted is not None and wanted not in given.values():
            given[name] = wanted
    free = (number for number in range(2 * len(names) + 8) if number not in given.values())
    return {name: given[name] if name in given else next(free) for name in distinct}


def colour(style: int) -> str:
    """As a figure has it, on white."""
    return RAMP[style - ORDERED] if style >= ORDERED else COLOURS[style % len(COLOURS)]


def dashes(style: int) -> tuple[float, ...]:
    """What is in an order is told by its colour and marker, in solid lines."""
    return DASHES[0 if style >= ORDERED else style % len(DASHES)]


def classes(style: int) -> str:
    """The same in the page: c0 to c7 are the colours, c8 to c17 the ramp."""
    if style >= ORDERED:
        return f"c{style - ORDERED + len(COLOURS)} d0"
    return f"c{style % len(COLOURS)} d{style % len(DASHES)}"


def _order(names: Sequence[str]) -> dict[str, int] | None:
    """The place of each name by its number, if that is all they differ in: rank 2, rank 4 ..."""
    parts = [re.fullmatch(r"(\D*)(\d+(?:\.\d+)?)(\D*)", name) for name in names]
    found = {name: part for name, part in zip(names, parts, strict=True) if part}
    around = {(part[1], part[3]) for part in found.values()}
    if len(found) < len(names) or len(around) != 1 or not 3 <= len(names) <= len(RAMP):
        return None
    ordered = sorted(names, key=lambda name: float(found[name][2]))
    return {name: place for place, name in enumerate(ordered)}


def _plain(name: str) -> str:
    """A name as the table of known ones has it: "experts, each on its own task" is "experts"."""
    return re.sub(r"[\W_]+", " ", name.partition(",")[0]).strip().casefold()
