"""Numbers as pages show them."""

from __future__ import annotations

from collections.abc import Callable


def format_percent(value: float) -> str:
    """A fraction as a percentage: 0.5 -> 50.0 %."""
    return f"{100 * value:.1f} %"


def format_tick(value: float) -> str:
    """A fraction as a round percentage: 0.5 -> 50 %."""
    return f"{100 * value:.4g} %"


def format_number(value: float) -> str:
    """A number with three significant digits."""
    return f"{value:.3g}"


def formatter_of(name: str) -> Callable[[float], str]:
    """How to show the values of a metric: accuracies are percentages."""
    return format_percent if name.endswith("accuracy") else format_number
