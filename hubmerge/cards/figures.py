"""Figures: curves over steps, on a log axis, and what a selection tried."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hubmerge.cards.curve import standard_error, thinned
from hubmerge.cards.number_format import HALF
from hubmerge.cards.plotting import BLUE, GREY, ORANGE, band, plain_style, png, short
from hubmerge.cards.selection import Grid, experts_alone, grid, made
from hubmerge.lock import Lock
from hubmerge.manifest import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = Mapping[int, tuple[float, float]]  # step -> (accuracy in [0, 1], standard error)

_MOST_TICKS = 12
_MOST_POLICIES = 16
_LEGEND = "outlined: chosen    \u2248: as good within the noise    hatched: not measured"


def draw_curves(curves: Mapping[str, Curve], title: str, path: Path) -> None:
    """Write accuracy against step (log axis) with bands of one standard error, as PNG or SVG."""
    from matplotlib.figure import Figure

    with plain_style():
        figure = Figure(figsize=(7.5, 4.5), layout="constrained")
        axes = figure.subplots()
        for number, (name, curve) in enumerate(curves.items()):
            steps = sorted(curve)
            points = [curve[step] for step in steps]
            band(axes, steps, points, f"C{number}", marker="o", markersize=4, label=name)
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
    with plain_style():
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
        band(
            axes, steps, accuracies, "C0", marker="o", markersize=4, markevery=_places(steps, shown)
        )
        _log_steps(axes, points[-1].step)
        axes.set_xlabel("training steps (band: one standard error)")
        axes.set_ylabel("validation accuracy (%)", color="C0")
        right.set_ylabel("training loss (dashed)", color="C1")
        axes.grid(alpha=0.3)
        return png(figure)


def heat_map_picture(lock: Lock) -> bytes:
    """A PNG: mean accuracy of the merge with one task's expert at another step, tasks by steps.

    The choice is outlined, what is as good within the noise is marked, what was not measured is
    hatched. 1440 pixels wide, higher with more tasks.
    """
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    shown = grid(lock)
    values = [
        [float("nan") if cell is None or cell.merged is None else 100 * cell.merged for cell in row]
        for row in (cells or (None,) for cells in shown.cells)
    ]
    known = [value for row in values for value in row if value == value] or [0.0]
    with plain_style():
        figure = Figure(figsize=(7.2, 1.6 + 0.42 * len(shown.tasks)), dpi=200, layout="constrained")
        axes = figure.subplots()
        axes.set_facecolor("white")
        _hatch(axes, len(shown.steps), len(shown.tasks))
        scale = Normalize(min(known), max(max(known), min(known) + 1e-9))
        picture = axes.imshow(values, cmap="cividis", aspect="auto", norm=scale, zorder=1)
        for row, cells in enumerate(values):
            for column, value in enumerate(cells):
                if shown.steps:
                    _write_cell(axes, shown, row, column, scale(value))
        steps = [str(step) for step in shown.steps]
        axes.set_xticks(range(len(steps)), steps, fontsize=_small(len(steps)))
        axes.set_yticks(range(len(shown.tasks)), [short(name) for name in shown.tasks])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(f"step of this task's expert, all others as chosen\n{_LEGEND}", fontsize=9)
        bar = figure.colorbar(picture, ax=axes, pad=0.02)
        bar.set_label(f"mean {short(lock.split)}\naccuracy (%)", fontsize=9)
        bar.outline.set_visible(False)
        return png(figure)


def selection_picture(lock: Lock) -> bytes:
    """A PNG of 1440 x 760: accuracy over common steps, and beside it what policies reach.

    The band and the bars are 95 % intervals; the choice is the filled mark.
    """
    from matplotlib.figure import Figure

    with plain_style():
        figure = Figure(figsize=(7.2, 3.8), dpi=200, layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_common(left, lock)
        _draw_policies(right, lock)
        left.set_ylabel(f"mean {short(lock.split)} accuracy (%)")
        for axes in (left, right):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        return png(figure)


def _small(columns: int) -> int:
    """The size of letters that so many columns have room for."""
    return 10 if columns <= 6 else 8 if columns <= 11 else 7


def _hatch(axes: Axes, columns: int, rows: int) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle(
            (-0.5, -0.5), columns, rows, facecolor="white", edgecolor="#cccccc", hatch="////",
            linewidth=0, zorder=0,
        )
    )  # fmt: skip


def _write_cell(axes: Axes, shown: Grid, row: int, column: int, shade: float) -> None:
    from matplotlib.patches import Rectangle

    cell, chosen = shown.cells[row][column], shown.chosen[row] == column
    if chosen:
        box = Rectangle(
            (column - 0.46, row - 0.44), 0.92, 0.88, fill=False, edgecolor=ORANGE, linewidth=2.5,
            zorder=3,
        )  # fmt: skip
        axes.add_patch(box)
    if cell is None or cell.merged is None:
        return
    tie = "\u2248" if cell.tied and not chosen else ""
    axes.text(
        column, row, f"{tie}{100 * cell.merged:.1f}", ha="center", va="center", zorder=4,
        fontsize=_small(len(shown.steps)), color="black" if shade > 0.55 else "white",
        fontweight="bold" if chosen else "normal",
    )  # fmt: skip


def _draw_common(axes: Axes, lock: Lock) -> None:
    """The merges of one common step with their intervals, and the experts alone."""
    curve = sorted((point.step, point.accuracy, point.stderr) for point in lock.uniform)
    alone = experts_alone(lock)
    steps = sorted({step for step, *_ in curve} | alone.keys())
    places = {step: place for place, step in enumerate(steps)}
    if curve:
        points = [(accuracy, _half(stderr)) for _, accuracy, stderr in curve]
        at = [places[step] for step, *_ in curve]
        band(
            axes,
            at,
            points,
            BLUE,
            marker="o",
            markersize=4,
            label=f"{made(lock)} at one common step",
        )
    if alone:
        own = [100 * value for value in alone.values()]
        at = [places[step] for step in alone]
        axes.plot(
            at, own, "--s", color=GREY, markersize=3.5, linewidth=1, label="experts alone, mean"
        )
    if steps:
        apart = -(-len(steps) // _MOST_TICKS)
        named = [str(step) for step in steps[::apart]]
        axes.set_xticks(range(0, len(steps), apart), named, fontsize=_small(len(named)))
        axes.set_xlabel("common step")
        axes.legend(frameon=False, fontsize=8, loc="best")


def _draw_policies(axes: Axes, lock: Lock) -> None:
    """What each policy reaches; of many, the best and those that must be seen."""
    kept = sorted(lock.picks, key=lambda pick: pick.accuracy)
    if len(kept) > _MOST_POLICIES:
        seen = {lock.chosen, lock.rival}
        kept = [p for p in kept[:-_MOST_POLICIES] if p.policy in seen] + kept[-_MOST_POLICIES:]
    for place, pick in enumerate(kept):
        chosen = pick.policy == lock.chosen
        axes.errorbar(
            place, 100 * pick.accuracy, yerr=100 * _half(pick.stderr), fmt="D", capsize=2,
            color=ORANGE if chosen else BLUE, markersize=7 if chosen else 5,
            markerfacecolor=ORANGE if chosen else "white", linewidth=1,
        )  # fmt: skip
    names = [short(pick.policy) for pick in kept]
    axes.set_xticks(range(len(kept)), names, rotation=40, ha="right", rotation_mode="anchor")
    for label, pick in zip(axes.get_xticklabels(), kept, strict=True):
        label.set_fontweight("bold" if pick.policy == lock.chosen else "normal")
    axes.set_xlim(-0.6, len(kept) - 0.4)
    axes.set_xlabel("policy (bold: chosen)")


def _half(stderr: float) -> float:
    """Half a 95 % interval; whatever a lock says, it is drawn no larger than all there is."""
    return HALF * min(abs(stderr), 1.0)


def _places(steps: Iterable[int], shown: set[int]) -> list[int]:
    """Which of the steps are shown in the card's table: these get a dot."""
    return [place for place, step in enumerate(steps) if step in shown]


def _log_steps(axes: Axes, last: int) -> None:
    """A log axis that begins with step 0, the base itself: below step 1 it is linear."""
    octaves = last.bit_length()
    apart = 1 if octaves <= _MOST_TICKS else 3
    ticks = [0, *(2**k for k in range(0, octaves, apart))]
    axes.set_xscale("symlog", base=2, linthresh=1, linscale=0.5)
    axes.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=9)
    axes.minorticks_off()
