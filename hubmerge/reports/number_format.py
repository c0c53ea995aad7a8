"""Number formats of reports, in display units."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hubmerge.cards.number_format import MISSING
from hubmerge.results import Cell, Claim
from hubmerge.seed_statistics import mean, stderr
from hubmerge.specs.recipe import Quantity

_PERCENT = 100.0
_UNIT_SUFFIX = {
    "percent": " %",
    "share": " %",
    "points": " points",
    "steps": " steps",
    "number": "",
}
_AXIS_UNIT = {"percent": "%", "share": "%", "points": "points", "steps": "", "number": ""}


def scaled(value: float, unit: Quantity) -> float:
    """A value in its display unit: fractions of 1 become percent."""
    return value * _PERCENT if unit in ("percent", "points", "share") else value


def format_value(value: float, unit: Quantity) -> str:
    """A value with the digits of its unit: 0.704 as percent is "70.4", 0.02 as points "+2.0"."""
    if not math.isfinite(value):
        return MISSING
    return _rounded(scaled(value, unit), unit)


def format_mean(values: Sequence[float], unit: Quantity) -> str:
    """The mean and its standard error: "70.4 ± 0.7"; the mean alone if the error is unknown."""
    known = [value for value in values if math.isfinite(value)]
    error = stderr(known)
    center = format_value(mean(known), unit)
    return f"{center} ± {format_value(error, unit).lstrip('+')}" if known and error else center


def format_claim(claim: Claim) -> str:
    """The measured effect with its 95 % interval: "+2.1 points (+0.4 to +3.8)"."""
    effect = f"{format_value(claim.mean, claim.unit)}{_UNIT_SUFFIX[claim.unit]}"
    if claim.interval is None:
        return effect
    low, high = (format_value(end, claim.unit) for end in claim.interval)
    return f"{effect} ({low} to {high})"


def format_p(claim: Claim) -> str:
    """The corrected p value of a claim: "0.031", "< 0.001", or a dash."""
    if claim.p_value is None:
        return MISSING
    return "< 0.001" if claim.p_value < 0.001 else f"{claim.p_value:.3f}"


def format_threshold(claim: Claim) -> str:
    """The threshold of a claim with its unit."""
    if not claim.threshold:
        return "0"
    return f"{format_value(claim.threshold, claim.unit).lstrip('+')}{_UNIT_SUFFIX[claim.unit]}"


def format_cell(cell: str | Cell) -> str:
    """A cell of a table as text."""
    return cell if isinstance(cell, str) else format_mean(cell.values, cell.unit)


def axis_label(label: str, unit: Quantity) -> str:
    """The label of an axis, with the unit unless the label already contains it."""
    name = _AXIS_UNIT[unit]
    return f"{label} ({name})" if name and name not in label else label


def format_x(x: float | str, unit: Quantity) -> str:
    """An x value as text: 2048.0 is "2048", 0.05 as percent is "5"."""
    if isinstance(x, str):
        return x
    number = round(scaled(x, unit), 6)
    return f"{number:.0f}" if number == int(number) else f"{number:g}"


def format_duration(seconds: float) -> str:
    """A time span: "42 s", "12 min", "2 h 5 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min"


def _rounded(value: float, unit: Quantity) -> str:
    if unit == "points":
        return f"{round(value, 1) + 0.0:+.1f}"
    digits = _digits(value) if unit == "number" else 0 if unit == "steps" else 1
    # Adding zero turns -0.0 into 0.0.
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _digits(value: float) -> int:
    """The number of decimals that gives three significant digits."""
    size = abs(value)
    return 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 or not size else 3
