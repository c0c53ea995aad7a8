"""Figures of a card: curves over training steps, and the candidates and policies of a selection."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hubmerge.cards.curve import standard_error, thin_curve
from hubmerge.cards.number_format import HALF
from hubmerge.cards.plotting import (
    BLUE,
    GREY,
    ORANGE,
    default_style,
    plot_with_band,
    shorten,
    to_png,
)
from hubmerge.cards.selection import HeatMap, experts_alone, heat_map, participle
from hubmerge.lock import Lock
from hubmerge.training_curve import ValidationPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = Mapping[int, tuple[float, float]]  # step -> (accuracy in [0, 1], standard error)

_MOST_TICKS = 12
_MOST_POLICIES = 16
_LEGEND = "outlined: chosen    \u2248: as good within the noise    hatched: not measured"


def draw_curves(curves: Mapping[str, Curve], title: str, path: Path) -> None:
    """Write accuracy against step (log axis) with bands of one standard error, as PNG or SVG."""
    from matplotlib.figure import Figure

    with default_style():
        figure = Figure(figsize=(7.5, 4.5), layout="constrained")
        axes = figure.subplots()
        for number, (name, curve) in enumerate(curves.items()):
            steps = sorted(curve)
            points = [curve[step] for step in steps]
            plot_with_band(axes, steps, points, f"C{number}", marker="o", markersize=4, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({step for curve in curves.values() for step in curve}))
        axes.xaxis.set_major_formatter(lambda step, _: f"{step:.0f}")
        axes.set_xlabel("expert training steps")
        axes.set_ylabel("accuracy, mean over tasks (%)")
        axes.set_title(title)
        axes.grid(alpha=0.3)
        axes.legend()
        path.parent.mkdir(parents=True, exist_ok=True)
        # Leave out matplotlib's date and version, so that equal curves give equal bytes.
        metadata = {"Software": None} if path.suffix == ".png" else {"Date": None}
        figure.savefig(path, dpi=150, metadata=metadata)


def training_curve_png(points: Sequence[ValidationPoint], name: str = "accuracy") -> bytes:
    """A PNG of 640 x 400: validation accuracy with a band of one standard error, training loss.

    `name` is what the points are.

    It is drawn during training, so it must be fast: the layout is fixed instead of computed.
    """
    from matplotlib.figure import Figure

    shown = {point.step for point in thin_curve(points)}
    losses = {point.step: point.loss for point in points if point.loss is not None}
    with default_style():
        figure = Figure(figsize=(6.4, 4.0), dpi=100)
        axes = figure.add_axes((0.1, 0.13, 0.79, 0.83))
        right = axes.twinx()
        right.plot(
            list(losses),
            list(losses.values()),
            "--.",
            color="C1",
            linewidth=1,
            markevery=_indices_of(losses, shown),
        )
        steps = [point.step for point in points]
        accuracies = [(point.accuracy, standard_error(point)) for point in points]
        plot_with_band(
            axes,
            steps,
            accuracies,
            "C0",
            marker="o",
            markersize=4,
            markevery=_indices_of(steps, shown),
        )
        _set_log_axis(axes, points[-1].step)
        axes.set_xlabel("training steps (band: one standard error)")
        axes.set_ylabel(f"validation {name} (%)", color="C0")
        right.set_ylabel("training loss (dashed)", color="C1")
        axes.grid(alpha=0.3)
        return to_png(figure)


def heat_map_png(lock: Lock) -> bytes:
    """A PNG, tasks by steps: mean accuracy of the merge with one task's expert at another step.

    The choice is outlined, steps as good within the noise are marked, and steps that were not
    measured are hatched. It is 1440 pixels wide; the height grows with the number of tasks.
    """
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    table = heat_map(lock)
    values = [
        [float("nan") if cell is None or cell.merged is None else 100 * cell.merged for cell in row]
        for row in (cells or (None,) for cells in table.cells)
    ]
    known = [value for row in values for value in row if value == value] or [0.0]
    with default_style():
        figure = Figure(figsize=(7.2, 1.6 + 0.42 * len(table.tasks)), dpi=200, layout="constrained")
        axes = figure.subplots()
        axes.set_facecolor("white")
        _draw_hatching(axes, len(table.steps), len(table.tasks))
        scale = Normalize(min(known), max(max(known), min(known) + 1e-9))
        image = axes.imshow(values, cmap="cividis", aspect="auto", norm=scale, zorder=1)
        for row, cells in enumerate(values):
            for column, value in enumerate(cells):
                if table.steps:
                    _write_cell(axes, table, row, column, scale(value))
        steps = [str(step) for step in table.steps]
        axes.set_xticks(range(len(steps)), steps, fontsize=_font_size(len(steps)))
        axes.set_yticks(range(len(table.tasks)), [shorten(name) for name in table.tasks])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(f"step of this task's expert, all others as chosen\n{_LEGEND}", fontsize=9)
        bar = figure.colorbar(image, ax=axes, pad=0.02)
        bar.set_label(f"mean {shorten(lock.split)}\n{shorten(lock.metric_name)} (%)", fontsize=9)
        bar.outline.set_visible(False)
        return to_png(figure)


def selection_png(lock: Lock) -> bytes:
    """A PNG of 1440 x 760: accuracy over common steps, and next to it the accuracy of each policy.

    The band and the bars are 95 % intervals; the filled mark is the choice.
    """
    from matplotlib.figure import Figure

    with default_style():
        figure = Figure(figsize=(7.2, 3.8), dpi=200, layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_common(left, lock)
        _draw_policies(right, lock)
        left.set_ylabel(f"mean {shorten(lock.split)} {shorten(lock.metric_name)} (%)")
        for axes in (left, right):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        return to_png(figure)


def _font_size(columns: int) -> int:
    """The font size at which this number of columns fits."""
    return 10 if columns <= 6 else 8 if columns <= 11 else 7


def _draw_hatching(axes: Axes, columns: int, rows: int) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle(
            (-0.5, -0.5), columns, rows, facecolor="white", edgecolor="#cccccc", hatch="////",
            linewidth=0, zorder=0,
        )
    )  # fmt: skip


def _write_cell(axes: Axes, table: HeatMap, row: int, column: int, shade: float) -> None:
    from matplotlib.patches import Rectangle

    cell, chosen = table.cells[row][column], table.chosen[row] == column
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
        fontsize=_font_size(len(table.steps)), color="black" if shade > 0.55 else "white",
        fontweight="bold" if chosen else "normal",
    )  # fmt: skip


def _draw_common(axes: Axes, lock: Lock) -> None:
    """The accuracy of merges of one common step with intervals, and of the experts alone."""
    curve = sorted((point.step, point.accuracy, point.stderr) for point in lock.uniform)
    alone = experts_alone(lock)
    steps = sorted({step for step, *_ in curve} | alone.keys())
    positions = {step: index for index, step in enumerate(steps)}
    if curve:
        points = [(accuracy, _half_interval(stderr)) for _, accuracy, stderr in curve]
        plot_with_band(
            axes,
            [positions[step] for step, *_ in curve],
            points,
            BLUE,
            marker="o",
            markersize=4,
            label=f"{participle(lock)} at one common step",
        )
    if alone:
        own = [100 * value for value in alone.values()]
        axes.plot(
            [positions[step] for step in alone], own, "--s", color=GREY, markersize=3.5,
            linewidth=1, label="experts alone, mean",
        )  # fmt: skip
    if steps:
        every = -(-len(steps) // _MOST_TICKS)
        labels = [str(step) for step in steps[::every]]
        axes.set_xticks(range(0, len(steps), every), labels, fontsize=_font_size(len(labels)))
        axes.set_xlabel("common step")
        axes.legend(frameon=False, fontsize=8, loc="best")


def _draw_policies(axes: Axes, lock: Lock) -> None:
    """The accuracy of each policy; of many, the best ones, the chosen one and its rival."""
    picks = sorted(lock.picks, key=lambda pick: pick.accuracy)
    if len(picks) > _MOST_POLICIES:
        worse, best = picks[:-_MOST_POLICIES], picks[-_MOST_POLICIES:]
        picks = [pick for pick in worse if pick.policy in {lock.chosen, lock.rival}] + best
    for index, pick in enumerate(picks):
        chosen = pick.policy == lock.chosen
        axes.errorbar(
            index, 100 * pick.accuracy, yerr=100 * _half_interval(pick.stderr), fmt="D", capsize=2,
            color=ORANGE if chosen else BLUE, markersize=7 if chosen else 5,
            markerfacecolor=ORANGE if chosen else "white", linewidth=1,
        )  # fmt: skip
    names = [shorten(pick.policy) for pick in picks]
    axes.set_xticks(range(len(picks)), names, rotation=40, ha="right", rotation_mode="anchor")
    for label, pick in zip(axes.get_xticklabels(), picks, strict=True):
        label.set_fontweight("bold" if pick.policy == lock.chosen else "normal")
    axes.set_xlim(-0.6, len(picks) - 0.4)
    axes.set_xlabel("policy (bold: chosen)")


def _half_interval(stderr: float) -> float:
    """Half a 95 % interval, with the standard error of a lock limited to 1 (100 %)."""
    return HALF * min(abs(stderr), 1.0)


def _indices_of(steps: Iterable[int], shown: set[int]) -> list[int]:
    """The indices of the steps in the card's table; these get a dot."""
    return [index for index, step in enumerate(steps) if step in shown]


def _set_log_axis(axes: Axes, last: int) -> None:
    """A log axis that starts at step 0, the base itself; it is linear below step 1."""
    octaves = last.bit_length()
    every = 1 if octaves <= _MOST_TICKS else 3
    ticks = [0, *(2**k for k in range(0, octaves, every))]
    axes.set_xscale("symlog", base=2, linthresh=1, linscale=0.5)
    axes.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=9)
    axes.minorticks_off()
