"""Forgotten examples by bin of difficulty, one panel an expert (arXiv 2506.14126, fig. 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubmerge.cards.plotting import BLUE, GREY, ORANGE, plain_style, png, short
from hubmerge.forgetting import Forgetting, Forgotten
from hubmerge.scores import shown_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_PANELS, _COLUMNS = 16, 4


def forgotten_picture(found: Forgetting) -> bytes:
    """A PNG, 1440 pixels wide: what each bin has of all that is forgotten, the hardest in orange.

    Of many experts the first sixteen are drawn.
    """
    from matplotlib.figure import Figure

    names = shown_names(one.task for one in found.experts)
    shown = found.experts[:_MOST_PANELS]
    columns = min(len(shown), _COLUMNS)
    rows = -(-len(shown) // columns)
    with plain_style():
        figure = Figure(figsize=(7.2, 0.7 + 1.8 * rows), dpi=200, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for empty in grid.flat[len(shown) :]:
            empty.set_visible(False)
        for axes, one in zip(grid.flat, shown, strict=False):
            _bars(axes, one.bins)
            axes.set_title(f"{short(names[one.task])}: {one.bins.total} of {one.known}", fontsize=9)
        figure.supylabel("share of the forgotten (%)", fontsize=9)
        figure.supxlabel(
            f"bin of difficulty on {short(found.split)}, easiest to hardest    "
            "dashed: all alike    orange: the hardest three tenths",
            fontsize=8,
        )
        return png(figure)


def _bars(axes: Axes, bins: Forgotten) -> None:
    count = len(bins.counts)
    colors = [ORANGE if place >= count - bins.hard else BLUE for place in range(count)]
    axes.bar(range(1, count + 1), [100 * share for share in bins.share], color=colors, width=0.8)
    axes.axhline(100 / count, color=GREY, linewidth=1, linestyle="--")
    apart = -(-count // 10)
    axes.set_xticks(range(1, count + 1, apart))
    axes.tick_params(labelsize=7, length=2)
    axes.spines[["top", "right"]].set_visible(False)
