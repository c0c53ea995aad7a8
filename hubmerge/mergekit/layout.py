"""Where the tensors of a mergekit merge are: in which slice, how deep in it, from which layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hubmerge.mergekit.merge import MergekitMerge
from hubmerge.weights.layer_names import (
    BEFORE,
    count_layers,
    in_layer,
    part_of_rest,
    split_at_layer,
)


@dataclass(frozen=True)
class LayerSpan:
    """Layers of the result, from `start` to `stop` - 1, that one slice makes."""

    start: int
    stop: int


@dataclass(frozen=True)
class TensorPlace:
    """A tensor of the result: its slice, its depth in that slice, 0 to 1, and its layer."""

    name: str
    part: int
    depth: float
    layer: int | None

    @property
    def is_before(self) -> bool:
        """Whether it is before the layers; False is for those in and after them."""
        return self.layer is None and part_of_rest(self.name) == BEFORE

    @property
    def is_after(self) -> bool:
        """Whether it is after the layers."""
        return self.layer is None and part_of_rest(self.name) != BEFORE


def find_spans(merge: MergekitMerge) -> tuple[LayerSpan, ...]:
    """The layers of the result that each slice makes; empty if all slices are one with all."""
    spans: list[LayerSpan] = []
    for part in merge.slices:
        layers = part.sources[0].layers
        if layers is None:
            return ()
        start = spans[-1].stop if spans else 0
        spans.append(LayerSpan(start, start + layers[1] - layers[0]))
    return tuple(spans)


def find_places(names: Iterable[str], spans: Sequence[LayerSpan]) -> list[TensorPlace]:
    """Where these tensors of the result are.

    As in mergekit 0.1.5, tensors before and after the layers have depth 0 in the first and the last
    slice, and the layer of a slice with only one has depth 1.
    """
    listed = list(names)
    counts = count_layers(listed)
    return [_find_place(name, spans, counts) for name in listed]


def _find_place(name: str, spans: Sequence[LayerSpan], counts: Mapping[str, int]) -> TensorPlace:
    parts = split_at_layer(name)
    if parts is None:
        is_before = part_of_rest(name) == BEFORE
        return TensorPlace(name, 0 if is_before else max(len(spans) - 1, 0), 0.0, None)
    before, layer, _ = parts
    whole = (LayerSpan(0, counts[before]),)
    for number, span in enumerate(spans or whole):
        if span.start <= layer < span.stop:
            length = span.stop - span.start
            depth = (layer - span.start) / (length - 1) if length > 1 else 1.0
            return TensorPlace(name, number, depth, layer)
    raise AssertionError(f"layer {layer} is in no slice")


def input_name(merge: MergekitMerge, place: TensorPlace, span_start: int, expert: int) -> str:
    """The name that an expert has for a tensor of the result, in the layer that it comes from."""
    source = merge.slices[place.part].source(expert)
    if source is None or source.layers is None or place.layer is None:
        return place.name
    return in_layer(place.name, source.layers[0] + place.layer - span_start)
