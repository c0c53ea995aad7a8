"""A model whose layers are taken from others, without copying a value.

Layer i of the result reads what is layer k of a model: names are new, locations on disk are not.
Tensors before the layers come from the model of the first layer, those after them from that of the
last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from hubmerge.errors import CheckpointError
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.header import TensorInfo
from hubmerge.weights.layer_names import BEFORE, count_layers, in_layer, layer_of, part_of_rest

# Layers of the result from the first number on are the model's from the second to the third, which
# is not included.
Piece = tuple[int, int, int]


@dataclass(frozen=True)
class LayerPieces:
    """Which layers of base and experts the layers of the result are merged from.

    Without pieces of a `base`, its layers are those of the experts.
    """

    experts: tuple[tuple[Piece, ...], ...]
    base: tuple[Piece, ...] | None = None

    @property
    def count(self) -> int:
        """The number of layers of the result."""
        return max(first + stop - start for pieces in self.experts for first, start, stop in pieces)


@dataclass(frozen=True)
class LayerSource:
    """A layer of a model."""

    checkpoint: Checkpoint
    layer: int


def stack_layers(sources: Sequence[LayerSource]) -> Checkpoint:
    """The model with these layers, in the folder of the first; raises as `layer_count` does."""
    first, last = sources[0].checkpoint, sources[-1].checkpoint
    taken = [(first, name, name) for name in first.index if _part(name) == BEFORE]
    for number, source in enumerate(sources):
        names = _names_in_layer(source.checkpoint, source.layer)
        taken += [(source.checkpoint, name, in_layer(name, number)) for name in names]
    taken += [
        (last, name, name)
        for name in last.index
        if layer_of(name) is None and _part(name) != BEFORE
    ]
    index: dict[str, TensorInfo] = {}
    views = {}
    for checkpoint, name, new in taken:
        index[new] = checkpoint.index[name]
        if name in checkpoint.views:
            views[new] = checkpoint.views[name]
    return Checkpoint(first.folder, "full", MappingProxyType(index), views)


def layer_count(checkpoint: Checkpoint) -> int:
    """The number of a model's layers; CheckpointError if it has none, or several stacks of them."""
    counts = count_layers(checkpoint.index)
    if len(counts) != 1:
        stacks = ", ".join(sorted(counts)) or "none"
        raise CheckpointError(
            f"{checkpoint.folder} has not one stack of layers but {stacks}.",
            "Slices need a model with one stack of layers.",
        )
    return next(iter(counts.values()))


def layers_of_pieces(pieces: Sequence[Piece]) -> Mapping[int, int]:
    """The model's layer for each layer of the result that it has one for."""
    return {
        first + number: start + number
        for first, start, stop in pieces
        for number in range(stop - start)
    }


def _names_in_layer(checkpoint: Checkpoint, layer: int) -> list[str]:
    return [name for name in checkpoint.index if layer_of(name) == layer]


def _part(name: str) -> str:
    return part_of_rest(name) if layer_of(name) is None else ""
