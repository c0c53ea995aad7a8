"""Number formats of cards."""

from __future__ import annotations

MISSING = "-"
# Half a 95 % interval in standard errors, for normally distributed errors.
HALF = 1.96


def percent(value: float) -> str:
    """A share as percent with two digits: 0.6855 -> "68.55"."""
    return f"{100 * value:.2f}"


def points(value: float) -> str:
    """A difference of shares with its sign: 0.02 -> "+2.00"."""
    return f"{100 * value:+.2f}"


def interval(value: float, stderr: float) -> str:
    """The 95 % interval of a share, clipped to [0, 1], in percent: "67.49 to 70.31"."""
    low, high = value - HALF * stderr, value + HALF * stderr
    return f"{percent(max(low, 0.0))} to {percent(min(high, 1.0))}"
