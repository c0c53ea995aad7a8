"""Images with their class and a model's prediction, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from hubmerge.cards.plotting import BLUE, ORANGE, default_style, to_png
from hubmerge.refs import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

_COLUMNS, _MOST_SECTIONS = 8, 16
_LONGEST_CAPTION = 16
_MOST_PIXELS = 128  # per side; more detail is not visible at this size


class LabelledImage(Protocol):
    """A PIL image, its class and a model's prediction."""

    @property
    def content(self) -> Any: ...
    @property
    def label(self) -> str: ...
    @property
    def predicted(self) -> str: ...


def gallery_png(sections: Sequence[tuple[str, Sequence[LabelledImage]]]) -> bytes:
    """A PNG, 1440 pixels wide: the images of each section under its title, eight per row.

    There must be at least one image. At most sixteen sections are drawn. The class is above an
    image and the prediction below it, in orange if it is wrong.
    """
    from matplotlib.figure import Figure

    filled = [(title, images) for title, images in sections if images][:_MOST_SECTIONS]
    heights = [0.3 + 1.2 * -(-len(images) // _COLUMNS) for _, images in filled]
    with default_style():
        figure = Figure(figsize=(7.2, sum(heights)), dpi=200, layout="constrained")
        subfigures = figure.subfigures(len(filled), 1, squeeze=False, height_ratios=heights)
        for subfigure, (title, images) in zip(subfigures.flat, filled, strict=True):
            subfigure.suptitle(printable(title), fontsize=9, x=0.01, ha="left")
            _draw_grid(subfigure, images)
        return to_png(figure)


def _draw_grid(subfigure: SubFigure, images: Sequence[LabelledImage]) -> None:
    grid = subfigure.subplots(-(-len(images) // _COLUMNS), _COLUMNS, squeeze=False)
    for index, axes in enumerate(grid.flat):
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        if index < len(images):
            _draw_image(axes, images[index])


def _draw_image(axes: Axes, image: LabelledImage) -> None:
    small = image.content.convert("RGB")
    small.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
    axes.imshow(small, interpolation="nearest")
    color = BLUE if image.predicted == image.label else ORANGE
    axes.set_title(_caption(image.label), fontsize=6, pad=2)
    axes.set_xlabel(_caption(image.predicted), fontsize=6, labelpad=2, color=color)


def _caption(name: str) -> str:
    text = printable(name)
    return text if len(text) <= _LONGEST_CAPTION else f"{text[: _LONGEST_CAPTION - 1]}\u2026"
