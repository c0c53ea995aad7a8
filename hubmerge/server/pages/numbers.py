"""Numbers as pages show them."""

from __future__ import annotations

from collections.abc import Callable


def format_percent(value: float) -> str:
    """A fraction as a percentage: 0.5 -> 50.0 %."""
    return f"{100 * value:.1f} %"


def format_number(value: float) -> str:
    """A number with four decimals, or four significant digits if it is very small or large."""
    return f"{value:.4f}" if 0.001 <= abs(value) < 10_000 else f"{value:.4g}"


def format_norm(value: float) -> str:
    """A number with three significant digits at most."""
    return f"{value:.3g}"


def format_tick(name: str, value: float) -> str:
    """A round value of a metric at an axis: 0.5 -> 50 %."""
    return f"{100 * value:.6g} %" if name.endswith("accuracy") else f"{value:.6g}"


def formatter_of(name: str) -> Callable[[float], str]:
    """How to show the values of a metric: accuracies are percentages."""
    return format_percent if name.endswith("accuracy") else format_number
