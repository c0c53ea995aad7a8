"""Numbers as a report writes them, in the unit that people read them in."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hubmerge.cards.number_format import MISSING
from hubmerge.results import Cell, Claim, mean, stderr
from hubmerge.specs.recipe import Quantity

_PERCENT = 100.0
_SUFFIX = {"percent": " %", "share": " %", "points": " points", "steps": " steps", "number": ""}
_AXIS = {"percent": "%", "share": "%", "points": "points", "steps": "", "number": ""}


def scaled(value: float, unit: Quantity) -> float:
    """A value in the unit it is shown in: fractions of 1 become percent."""
    return value * _PERCENT if unit in ("percent", "points", "share") else value


def said(value: float, unit: Quantity) -> str:
    """A value with the digits its unit bears: 0.704 percent is "70.4", 0.02 points is "+2.0"."""
    if not math.isfinite(value):
        return MISSING
    return _rounded(scaled(value, unit), unit)


def spread(values: Sequence[float], unit: Quantity, noise: float = 0.0) -> str:
    """The mean and its standard error: "70.4 ± 0.7"; the mean alone where no error is known."""
    known = [value for value in values if math.isfinite(value)]
    error = stderr(known) or noise
    middle = said(mean(known), unit)
    return f"{middle} ± {said(error, unit).lstrip('+')}" if known and error else middle


def ours(claim: Claim) -> str:
    """What was measured for a claim, with its unit: "+2.1 ± 0.4 points"."""
    return f"{spread(claim.values, claim.unit, claim.noise)}{_SUFFIX[claim.unit]}"


def beyond(claim: Claim) -> str:
    """The threshold that a claim is held to, with its unit."""
    if not claim.threshold:
        return "0"
    return f"{said(claim.threshold, claim.unit).lstrip('+')}{_SUFFIX[claim.unit]}"


def cell_words(cell: str | Cell) -> str:
    """A cell of a table as words."""
    return cell if isinstance(cell, str) else spread(cell.values, cell.unit)


def axis_words(label: str, unit: Quantity) -> str:
    """What stands at an axis: its label, and the unit where the label does not name it."""
    name = _AXIS[unit]
    return f"{label} ({name})" if name and name not in label else label


def place_words(x: float | str, unit: Quantity) -> str:
    """A place on the x axis: 2048.0 is "2048", 0.05 percent is "5"."""
    if isinstance(x, str):
        return x
    number = round(scaled(x, unit), 6)
    return f"{number:.0f}" if number == int(number) else f"{number:g}"


def duration(seconds: float) -> str:
    """Time as people say it: "42 s", "12 min", "2 h 5 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min"


def _rounded(value: float, unit: Quantity) -> str:
    if unit == "points":
        return f"{round(value, 1) + 0.0:+.1f}"
    digits = _digits(value) if unit == "number" else 0 if unit == "steps" else 1
    # Plus zero: there is no -0.0.
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _digits(value: float) -> int:
    """So many digits behind the point that three are told."""
    size = abs(value)
    return 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 or not size else 3
