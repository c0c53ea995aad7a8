"""The routing heat map: layers by experts, one panel for each task."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from hubmerge.cards.plotting import ORANGE, plain_style, png, short
from hubmerge.cards.routing import own_experts
from hubmerge.routing import Routing
from hubmerge.scores import shown_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_PANELS, _COLUMNS = 16, 4
_MOST_LAYERS, _MOST_EXPERTS = 24, 16  # that have a name at the axis each
_LONGEST_PATH = 36


def routing_picture(routing: Routing, trained_for: Sequence[str | None] = ()) -> bytes:
    """A PNG: mean routing weight, layers by experts, one panel a task, one scale for all of them.

    The expert of a task's own is outlined, where `trained_for` has the task id of each expert.
    1440 pixels wide, higher with more tasks and layers; of many tasks the first sixteen are drawn.
    """
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    tasks = routing.tasks[:_MOST_PANELS]
    columns = min(len(tasks), _COLUMNS)
    rows = -(-len(tasks) // columns)
    names, own = shown_names(routing.tasks), own_experts(routing, trained_for)
    values = [[[100 * share for share in row] for row in layers] for layers in routing.share]
    scale = Normalize(0, max(share for layers in values for row in layers for share in row))
    with plain_style():
        size = 7.2, 1.1 + rows * _height(routing)
        figure = Figure(figsize=size, dpi=200, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for empty in grid.flat[len(tasks) :]:
            empty.set_visible(False)
        shown = list(grid.flat[: len(tasks)])
        for place, axes in enumerate(shown):
            picture = axes.imshow(
                values[place], cmap="cividis", aspect="auto", norm=scale, interpolation="nearest"
            )
            axes.set_title(short(names[tasks[place]]), fontsize=10)
            _name_experts(axes, routing, lowest=place + columns >= len(tasks))
            _name_layers(axes, routing, leftmost=place % columns == 0)
            for expert in own[place]:
                _outline(axes, expert, len(routing.layers))
        bar = figure.colorbar(picture, ax=shown, pad=0.02, aspect=20 * rows)
        bar.set_label(f"mean routing weight, {short(routing.split)} (%)", fontsize=9)
        bar.ax.axhline(100 / len(routing.experts), color=ORANGE, linewidth=1.5)
        bar.outline.set_visible(False)
        figure.supylabel(_layers_words(routing), fontsize=9)
        figure.supxlabel(_legend(any(own)), fontsize=9)
        return png(figure)


def _height(routing: Routing) -> float:
    """Inches of a row of panels."""
    return 1.2 + 0.14 * min(max(len(routing.layers), 6), _MOST_LAYERS)


def _layers_words(routing: Routing) -> str:
    shared = ".".join(_shared_path(routing.layers))
    if len(shared) > _LONGEST_PATH:
        shared = f"\u2026{shared[-_LONGEST_PATH:]}"
    return f"layers of {shared}" if shared else "layers"


def _legend(outlined: bool) -> str:
    alike = "line on the scale: all experts alike"
    return f"outlined: the task's own expert    {alike}" if outlined else alike


def _outline(axes: Axes, expert: int, layers: int) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle(
            (expert - 0.5, -0.5), 1, layers, fill=False, edgecolor=ORANGE, linewidth=2,
            clip_on=False, zorder=3,
        )
    )  # fmt: skip


def _name_experts(axes: Axes, routing: Routing, lowest: bool) -> None:
    apart = -(-len(routing.experts) // _MOST_EXPERTS)
    names = [short(name) for name in routing.experts[::apart]] if lowest else []
    axes.set_xticks(range(0, len(routing.experts), apart) if lowest else [])
    axes.set_xticklabels(names, rotation=90, fontsize=7)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _name_layers(axes: Axes, routing: Routing, leftmost: bool) -> None:
    """Every layer of a small model has its name, of a large one every block; lines part blocks."""
    paths = [path.split(".")[len(_shared_path(routing.layers)) :] for path in routing.layers]
    blocks = _blocks(paths)
    for first, _ in list(blocks.values())[1:]:
        axes.axhline(first - 0.5, color="white", linewidth=0.6)
    axes.set_yticks([])
    if not leftmost:
        return
    named = [(float(place), ".".join(path)) for place, path in enumerate(paths)]
    if len(paths) > _MOST_LAYERS:
        middles = [((first + last) / 2, name) for name, (first, last) in blocks.items()]
        named = middles[:: -(-len(middles) // _MOST_LAYERS)]
    axes.set_yticks([place for place, _ in named], [short(name) for _, name in named], fontsize=7)


def _shared_path(layers: Sequence[str]) -> list[str]:
    """The parts that all module paths begin with; of each path at least one part is left."""
    parents = (layer.split(".")[:-1] for layer in layers)
    alike = takewhile(lambda parts: len(set(parts)) == 1, zip(*parents, strict=False))
    return [parts[0] for parts in alike]


def _blocks(paths: Sequence[Sequence[str]]) -> dict[str, tuple[int, int]]:
    """Each block of layers, with its first and its last place: "encoder.block.0" -> (0, 5).

    The name of a layer's block is its path up to the first number, the whole where it has none.
    """
    found: dict[str, tuple[int, int]] = {}
    for place, path in enumerate(paths):
        numbers = [depth for depth, part in enumerate(path) if part.isdecimal()]
        name = ".".join(path[: numbers[0] + 1] if numbers else path)
        found[name] = found.get(name, (place, place))[0], place
    return found
