"""Base and experts whose layers are taken from several places, as slices of mergekit do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hubmerge.errors import CheckpointError, raise_together
from hubmerge.opening.matched_inputs import MatchedInputs
from hubmerge.opening.merge_inputs import MergeInputs
from hubmerge.source import Source
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.header import TensorInfo, summarize_names
from hubmerge.weights.layer_config import stacked_config
from hubmerge.weights.layer_names import in_layer
from hubmerge.weights.layer_stack import (
    LayerPieces,
    LayerSource,
    layers_of_pieces,
    stack_layers,
)
from hubmerge.weights.model_config import read_model_config

LAYERS = "layers"


@dataclass(frozen=True)
class StackedInputs:
    """The checkpoints of a plan, what they come from, and the configuration of other layers."""

    base: Checkpoint
    experts: tuple[Checkpoint, ...]
    sources: tuple[Source, ...]
    config: Mapping[str, Any] | None = None


def stack_inputs(matched: MatchedInputs, inputs: MergeInputs) -> StackedInputs:
    """Take the layers of base and experts from where the inputs say.

    A method that takes one expert gets one, with the layers of all. Raises CheckpointError for
    layers that do not fit the base, and for configurations that depend on the numbers of layers.
    """
    if inputs.layers is None:
        return StackedInputs(matched.base, matched.experts, inputs.sources)
    layers = inputs.layers
    base = base_layers(layers, matched.base, matched.experts, inputs)
    stacked = stack_layers(base)
    stacked = dataclasses.replace(stacked, folder=matched.base.folder)
    raise_together(
        CheckpointError,
        list(_misfits(matched.base, stacked)),
        "Take layers of models of the same architecture and size.",
    )
    config = stacked_config(
        read_model_config(matched.base.folder),
        [(read_model_config(source.checkpoint.folder), source.layer) for source in base],
    )
    if inputs.method.most == 1:
        own = _joint_layers(layers, matched.experts)
        return StackedInputs(stacked, (stack_layers(own),), (_joint(inputs.sources),), config)
    experts = []
    for pieces, checkpoint in zip(layers.experts, matched.experts, strict=True):
        numbers = layers_of_pieces(pieces)
        experts.append(
            stack_layers(
                [
                    LayerSource(checkpoint, numbers[number]) if number in numbers else source
                    for number, source in enumerate(base)
                ]
            )
        )
    return StackedInputs(stacked, tuple(experts), inputs.sources, config)


def base_layers(
    layers: LayerPieces, base: Checkpoint, experts: Sequence[Checkpoint], inputs: MergeInputs
) -> list[LayerSource]:
    """The layers of the base; without pieces of its own, of the base's model or another expert."""
    if layers.base is not None:
        numbers = layers_of_pieces(layers.base)
        return [LayerSource(base, numbers[number]) for number in range(layers.count)]
    # Whatever the order of the experts: sums would be rounded in another way.
    order = sorted(
        range(len(experts)),
        key=lambda n: (inputs.sources[n].key != inputs.base_source.key, inputs.sources[n].key),
    )
    found: dict[int, LayerSource] = {}
    for number in reversed(order):
        for layer, own in layers_of_pieces(layers.experts[number]).items():
            found[layer] = LayerSource(experts[number], own)
    return [found[number] for number in range(layers.count)]


def _joint_layers(layers: LayerPieces, experts: Sequence[Checkpoint]) -> list[LayerSource]:
    found = {
        layer: LayerSource(checkpoint, own)
        for pieces, checkpoint in zip(layers.experts, experts, strict=True)
        for layer, own in layers_of_pieces(pieces).items()
    }
    return [found[number] for number in range(layers.count)]


def _joint(sources: Sequence[Source]) -> Source:
    """The layers of several models as one expert."""
    if len(sources) == 1:
        return sources[0]
    return Source(
        label=" and ".join(source.label for source in sources),
        sha="+".join(source.key for source in sources),
        digest="+".join(source.digest for source in sources),
    )


def _misfits(base: Checkpoint, stacked: Checkpoint) -> Iterator[str]:
    """Tensors of a stack that no layer of the base has in this shape."""
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for name, tensor in base.index.items():
        shapes.setdefault(in_layer(name, 0), set()).add(tensor.shape)

    def is_misfit(name: str, tensor: TensorInfo) -> bool:
        return tensor.shape not in shapes.get(in_layer(name, 0), ())

    found = [name for name, tensor in stacked.index.items() if is_misfit(name, tensor)]
    if found:
        yield f"Layers of other models do not fit {base.folder}: {summarize_names(found)}."


def record_layers(
    layers: LayerPieces | None, sources: Sequence[Source]
) -> tuple[dict[str, Any], tuple[Source, ...]]:
    """What a manifest records of the pieces: parameters of the merge, and settings of experts."""
    if layers is None:
        return {}, tuple(sources)
    own = tuple(
        dataclasses.replace(source, settings={**source.settings, LAYERS: _to_json(pieces)})
        for source, pieces in zip(sources, layers.experts, strict=True)
    )
    return {LAYERS: _to_json(layers.base)} if layers.base is not None else {}, own


def restore_layers(
    params: Mapping[str, Any], sources: Sequence[Source]
) -> tuple[LayerPieces | None, dict[str, Any], list[dict[str, Any]]]:
    """The pieces that a manifest records, and its other parameters and settings."""
    own = [dict(source.settings) for source in sources]
    pieces = [settings.pop(LAYERS, None) for settings in own]
    others = {name: value for name, value in params.items() if name != LAYERS}
    if any(piece is None for piece in pieces):
        return None, others, own
    base = params.get(LAYERS)
    layers = LayerPieces(tuple(map(_to_pieces, pieces)), _to_pieces(base) if base else None)
    return layers, others, own


def _to_json(pieces: Sequence[tuple[int, int, int]]) -> list[list[int]]:
    return [list(piece) for piece in pieces]


def _to_pieces(pieces: Sequence[Sequence[int]]) -> tuple[tuple[int, int, int], ...]:
    return tuple((first, start, stop) for first, start, stop in pieces)
