"""Shared by all figures: reproducible matplotlib settings, error bands, labels and PNG output."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hubmerge.refs import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# From the colour-blind safe palette of Okabe and Ito.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#777777"

_DRAWING = threading.Lock()
_LONGEST_NAME = 24


@contextmanager
def default_style() -> Iterator[None]:
    """Use matplotlib's defaults while drawing, so that a matplotlibrc cannot change the bytes.

    Dollar signs in names do not start a formula. The settings are global to the process, so only
    one figure is drawn at a time.
    """
    import matplotlib

    with _DRAWING, matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "hubmerge", "text.parse_math": False})
        yield


def plot_with_band(
    axes: Axes,
    steps: Sequence[int],
    points: Sequence[tuple[float, float]],
    color: str,
    **style: Any,
) -> None:
    """A line in percent with a band of one standard error on each side."""
    values = [100 * value for value, _ in points]
    errors = [100 * error for _, error in points]
    axes.plot(steps, values, color=color, **style)
    low = [value - error for value, error in zip(values, errors, strict=True)]
    high = [value + error for value, error in zip(values, errors, strict=True)]
    axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)


def shorten(name: str) -> str:
    """The name, cut to 24 characters."""
    text = printable(name)
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}\u2026"


def to_png(figure: Figure) -> bytes:
    """The figure as PNG, without matplotlib's version, so that equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
