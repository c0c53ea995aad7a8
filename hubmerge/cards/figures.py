"""Figures: curves over steps, on a log axis."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubmerge.cards.curve import standard_error, thinned
from hubmerge.manifest import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = Mapping[int, tuple[float, float]]  # step -> (accuracy in [0, 1], standard error)

_DRAWING = threading.Lock()
_MOST_TICKS = 12


def draw_curves(curves: Mapping[str, Curve], title: str, path: Path) -> None:
    """Write accuracy against step (log axis) with bands of one standard error, as PNG or SVG."""
    from matplotlib.figure import Figure

    with _plain_style():
        figure = Figure(figsize=(7.5, 4.5), layout="constrained")
        axes = figure.subplots()
        for number, (name, curve) in enumerate(curves.items()):
            steps = sorted(curve)
            points = [curve[step] for step in steps]
            _band(axes, steps, points, f"C{number}", marker="o", markersize=4, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({step for curve in curves.values() for step in curve}))
        axes.xaxis.set_major_formatter(lambda step, _: f"{step:.0f}")
        axes.set_xlabel("expert training steps")
        axes.set_ylabel("accuracy, mean over tasks (%)")
        axes.set_title(title)
        axes.grid(alpha=0.3)
        axes.legend()
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without the date and version that matplotlib would write, the same curves are the same
        # bytes.
        metadata = {"Software": None} if path.suffix == ".png" else {"Date": None}
        figure.savefig(path, dpi=150, metadata=metadata)


def training_picture(points: Sequence[Point]) -> bytes:
    """A PNG of 640 x 400: validation accuracy with a band of one standard error, training loss.

    It is drawn while a run goes on, so it takes its time from training: no layout is solved for.
    """
    from matplotlib.figure import Figure

    shown = {point.step for point in thinned(points)}
    losses = {point.step: point.loss for point in points if point.loss is not None}
    with _plain_style():
        figure = Figure(figsize=(6.4, 4.0), dpi=100)
        axes = figure.add_axes((0.1, 0.13, 0.79, 0.83))
        right = axes.twinx()
        right.plot(
            list(losses),
            list(losses.values()),
            "--.",
            color="C1",
            linewidth=1,
            markevery=_places(losses, shown),
        )
        steps = [point.step for point in points]
        accuracies = [(point.accuracy, standard_error(point)) for point in points]
        _band(
            axes, steps, accuracies, "C0", marker="o", markersize=4, markevery=_places(steps, shown)
        )
        _log_steps(axes, points[-1].step)
        axes.set_xlabel("training steps (band: one standard error)")
        axes.set_ylabel("validation accuracy (%)", color="C0")
        right.set_ylabel("training loss (dashed)", color="C1")
        axes.grid(alpha=0.3)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", metadata={"Software": None})
        return drawn.getvalue()


def _places(steps: Iterable[int], shown: set[int]) -> list[int]:
    """Which of the steps are shown in the card's table: these get a dot."""
    return [place for place, step in enumerate(steps) if step in shown]


def _band(
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


def _log_steps(axes: Axes, last: int) -> None:
    """A log axis that begins with step 0, the base itself: below step 1 it is linear."""
    octaves = last.bit_length()
    apart = 1 if octaves <= _MOST_TICKS else 3
    ticks = [0, *(2**k for k in range(0, octaves, apart))]
    axes.set_xscale("symlog", base=2, linthresh=1, linscale=0.5)
    axes.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=9)
    axes.minorticks_off()


@contextmanager
def _plain_style() -> Iterator[None]:
    """matplotlib as it comes, for the length of a drawing: a matplotlibrc must not change bytes.

    Names are drawn as they are: a dollar sign in one begins no formula. The settings are global
    to the process, hence one drawing at a time.
    """
    import matplotlib

    with _DRAWING, matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "hubmerge", "text.parse_math": False})
        yield
