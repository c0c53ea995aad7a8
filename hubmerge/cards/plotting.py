"""What all figures share: matplotlib as it comes, bands, names, bytes that are the same again."""

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

# From Okabe and Ito's colours, which all eyes tell apart.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#777777"

_DRAWING = threading.Lock()
_LONGEST_NAME = 24


@contextmanager
def plain_style() -> Iterator[None]:
    """matplotlib as it comes, for the length of a drawing: a matplotlibrc must not change bytes.

    Names are drawn as they are: a dollar sign in one begins no formula. The settings are global
    to the process, hence one drawing at a time.
    """
    import matplotlib

    with _DRAWING, matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "hubmerge", "text.parse_math": False})
        yield


def band(
    axes: Axes,
    steps: Sequence[int],
    points: Sequence[tuple[float, float]],
    color: str,
    **how: Any,
) -> None:
    """A line in percent, in a band of one standard error to each side."""
    values = [100 * value for value, _ in points]
    errors = [100 * error for _, error in points]
    axes.plot(steps, values, color=color, **how)
    low = [value - error for value, error in zip(values, errors, strict=True)]
    high = [value + error for value, error in zip(values, errors, strict=True)]
    axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)


def short(name: str) -> str:
    said = printable(name)
    return said if len(said) <= _LONGEST_NAME else f"{said[: _LONGEST_NAME - 1]}\u2026"


def png(figure: Figure) -> bytes:
    drawn = io.BytesIO()
    # Without the version that matplotlib would write, the same figure is the same bytes.
    figure.savefig(drawn, format="png", metadata={"Software": None})
    return drawn.getvalue()
