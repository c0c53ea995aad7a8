"""Images with their class and what a model says they are, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from hubmerge.cards.plotting import BLUE, ORANGE, plain_style, png
from hubmerge.refs import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

_COLUMNS, _MOST_SECTIONS = 8, 16
_LONGEST_CAPTION = 16
_MOST_PIXELS = 128  # of a side: of a photograph no more is seen at this size


class Pictured(Protocol):
    """A PIL image, its class and what a model says it is."""

    @property
    def what(self) -> Any: ...
    @property
    def label(self) -> str: ...
    @property
    def predicted(self) -> str: ...


def gallery_picture(sections: Sequence[tuple[str, Sequence[Pictured]]]) -> bytes:
    """A PNG, 1440 pixels wide: under each title its images, eight a row; there must be some.

    Of many titles the first sixteen are drawn. Above an image is its class, below it what the model
    says: orange where that is wrong.
    """
    from matplotlib.figure import Figure

    filled = [(title, its) for title, its in sections if its][:_MOST_SECTIONS]
    heights = [0.3 + 1.2 * -(-len(its) // _COLUMNS) for _, its in filled]
    with plain_style():
        figure = Figure(figsize=(7.2, sum(heights)), dpi=200, layout="constrained")
        parts = figure.subfigures(len(filled), 1, squeeze=False, height_ratios=heights)
        for part, (title, its) in zip(parts.flat, filled, strict=True):
            part.suptitle(printable(title), fontsize=9, x=0.01, ha="left")
            _fill(part, its)
        return png(figure)


def _fill(part: SubFigure, its: Sequence[Pictured]) -> None:
    grid = part.subplots(-(-len(its) // _COLUMNS), _COLUMNS, squeeze=False)
    for place, axes in enumerate(grid.flat):
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        if place < len(its):
            _show(axes, its[place])


def _show(axes: Axes, one: Pictured) -> None:
    small = one.what.convert("RGB")
    small.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
    axes.imshow(small, interpolation="nearest")
    color = BLUE if one.predicted == one.label else ORANGE
    axes.set_title(_caption(one.label), fontsize=6, pad=2)
    axes.set_xlabel(_caption(one.predicted), fontsize=6, labelpad=2, color=color)


def _caption(name: str) -> str:
    said = printable(name)
    return said if len(said) <= _LONGEST_CAPTION else f"{said[: _LONGEST_CAPTION - 1]}\u2026"
