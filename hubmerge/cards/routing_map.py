"""The routing heat map: layers by experts, one panel per task."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from hubmerge.cards.plotting import ORANGE, default_style, shorten, to_png
from hubmerge.cards.routing import own_experts
from hubmerge.routing import Routing
from hubmerge.scores import display_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_PANELS, _COLUMNS = 16, 4
_MOST_LAYERS, _MOST_EXPERTS = 24, 16  # at most this many are labelled
_LONGEST_PATH = 36


def routing_map_png(routing: Routing, trained_for: Sequence[str | None] = ()) -> bytes:
    """A PNG: mean routing weight, layers by experts, one panel per task, all on one scale.

    If `trained_for` has the task id of each expert, the own expert of each task is outlined. The
    picture is 1440 pixels wide; its height grows with tasks (at most sixteen) and layers.
    """
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    tasks = routing.tasks[:_MOST_PANELS]
    columns = min(len(tasks), _COLUMNS)
    rows = -(-len(tasks) // columns)
    names, own = display_names(routing.tasks), own_experts(routing, trained_for)
    values = [[[100 * share for share in row] for row in layers] for layers in routing.share]
    scale = Normalize(0, max(share for layers in values for row in layers for share in row))
    with default_style():
        size = 7.2, 1.1 + rows * _row_height(routing)
        figure = Figure(figsize=size, dpi=200, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for empty in grid.flat[len(tasks) :]:
            empty.set_visible(False)
        panels = list(grid.flat[: len(tasks)])
        for index, axes in enumerate(panels):
            image = axes.imshow(
                values[index], cmap="cividis", aspect="auto", norm=scale, interpolation="nearest"
            )
            axes.set_title(shorten(names[tasks[index]]), fontsize=10)
            _label_experts(axes, routing, lowest=index + columns >= len(tasks))
            _label_layers(axes, routing, leftmost=index % columns == 0)
            for expert in own[index]:
                _outline_expert(axes, expert, len(routing.layers))
        bar = figure.colorbar(image, ax=panels, pad=0.02, aspect=20 * rows)
        bar.set_label(f"mean routing weight, {shorten(routing.split)} (%)", fontsize=9)
        bar.ax.axhline(100 / len(routing.experts), color=ORANGE, linewidth=1.5)
        bar.outline.set_visible(False)
        figure.supylabel(_layers_label(routing), fontsize=9)
        figure.supxlabel(_legend(any(own)), fontsize=9)
        return to_png(figure)


def _row_height(routing: Routing) -> float:
    """The height of a row of panels in inches."""
    return 1.2 + 0.14 * min(max(len(routing.layers), 6), _MOST_LAYERS)


def _layers_label(routing: Routing) -> str:
    shared = ".".join(_shared_path(routing.layers))
    if len(shared) > _LONGEST_PATH:
        shared = f"\u2026{shared[-_LONGEST_PATH:]}"
    return f"layers of {shared}" if shared else "layers"


def _legend(outlined: bool) -> str:
    line = "line on the scale: all experts alike"
    return f"outlined: the task's own expert    {line}" if outlined else line


def _outline_expert(axes: Axes, expert: int, layers: int) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle(
            (expert - 0.5, -0.5), 1, layers, fill=False, edgecolor=ORANGE, linewidth=2,
            clip_on=False, zorder=3,
        )
    )  # fmt: skip


def _label_experts(axes: Axes, routing: Routing, lowest: bool) -> None:
    every = -(-len(routing.experts) // _MOST_EXPERTS)
    names = [shorten(name) for name in routing.experts[::every]] if lowest else []
    axes.set_xticks(range(0, len(routing.experts), every) if lowest else [])
    axes.set_xticklabels(names, rotation=90, fontsize=7)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _label_layers(axes: Axes, routing: Routing, leftmost: bool) -> None:
    """Label every layer of a small model, or every block of a large one; lines separate blocks."""
    paths = [path.split(".")[len(_shared_path(routing.layers)) :] for path in routing.layers]
    blocks = _blocks(paths)
    for first, _ in list(blocks.values())[1:]:
        axes.axhline(first - 0.5, color="white", linewidth=0.6)
    axes.set_yticks([])
    if not leftmost:
        return
    labels = [(float(index), ".".join(path)) for index, path in enumerate(paths)]
    if len(paths) > _MOST_LAYERS:
        middles = [((first + last) / 2, name) for name, (first, last) in blocks.items()]
        labels = middles[:: -(-len(middles) // _MOST_LAYERS)]
    ticks = [position for position, _ in labels]
    axes.set_yticks(ticks, [shorten(name) for _, name in labels], fontsize=7)


def _shared_path(layers: Sequence[str]) -> list[str]:
    """The leading parts that all module paths share; never the last part of a path."""
    parents = (layer.split(".")[:-1] for layer in layers)
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*parents, strict=False))
    return [parts[0] for parts in shared]


def _blocks(paths: Sequence[Sequence[str]]) -> dict[str, tuple[int, int]]:
    """Each block of layers with the indices of its first and last layer: "block.0" -> (0, 5).

    The name of a layer's block is its path up to the first number, or all of it without a number.
    """
    blocks: dict[str, tuple[int, int]] = {}
    for index, path in enumerate(paths):
        numbers = [depth for depth, part in enumerate(path) if part.isdecimal()]
        name = ".".join(path[: numbers[0] + 1] if numbers else path)
        blocks[name] = blocks.get(name, (index, index))[0], index
    return blocks
