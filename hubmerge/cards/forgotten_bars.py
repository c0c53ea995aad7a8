"""Forgotten examples by bin of difficulty, one panel per expert (arXiv 2506.14126, fig. 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubmerge.cards.plotting import BLUE, GREY, ORANGE, default_style, shorten, to_png
from hubmerge.forgetting import Forgetting, ForgottenByBin
from hubmerge.scores import display_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_PANELS, _COLUMNS = 16, 4


def forgotten_bars_png(forgetting: Forgetting) -> bytes:
    """A PNG, 1440 pixels wide: the share of each bin in all forgotten examples, hardest in orange.

    At most sixteen experts are drawn.
    """
    from matplotlib.figure import Figure

    names = display_names(expert.task for expert in forgetting.experts)
    experts = forgetting.experts[:_MOST_PANELS]
    columns = min(len(experts), _COLUMNS)
    rows = -(-len(experts) // columns)
    with default_style():
        figure = Figure(figsize=(7.2, 0.7 + 1.8 * rows), dpi=200, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for empty in grid.flat[len(experts) :]:
            empty.set_visible(False)
        for axes, expert in zip(grid.flat, experts, strict=False):
            _draw_bars(axes, expert.bins)
            counts = f"{expert.bins.total} of {expert.known}"
            axes.set_title(f"{shorten(names[expert.task])}: {counts}", fontsize=9)
        figure.supylabel("share of the forgotten (%)", fontsize=9)
        figure.supxlabel(
            f"bin of difficulty on {shorten(forgetting.split)}, easiest to hardest    "
            "dashed: all alike    orange: the hardest three tenths",
            fontsize=8,
        )
        return to_png(figure)


def _draw_bars(axes: Axes, bins: ForgottenByBin) -> None:
    count = len(bins.counts)
    colors = [ORANGE if index >= count - bins.hard_bins else BLUE for index in range(count)]
    axes.bar(range(1, count + 1), [100 * share for share in bins.share], color=colors, width=0.8)
    axes.axhline(100 / count, color=GREY, linewidth=1, linestyle="--")
    every = -(-count // 10)
    axes.set_xticks(range(1, count + 1, every))
    axes.tick_params(labelsize=7, length=2)
    axes.spines[["top", "right"]].set_visible(False)
