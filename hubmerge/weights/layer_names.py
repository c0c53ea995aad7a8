"""Layers in the names of tensors: model.layers.3.mlp.up_proj.weight is in layer 3."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LAYER = re.compile(r"(?:^|\.)(\d+)(?=\.)")
# The head of GPT-NeoX, embed_out, comes after the layers.
_BEFORE_LAYERS = re.compile(r"emb(?!ed_out)|wte|wpe|class_token|cls_token|patch|conv_proj|shared")

BEFORE, AFTER = "before", "after"


def layer_of(tensor: str) -> int | None:
    """The number of the layer that a tensor is in, None outside of the layers."""
    match = _LAYER.search(tensor)
    return int(match[1]) if match else None


def split_at_layer(tensor: str) -> tuple[str, int, str] | None:
    """The name before the layer's number, the number, and the rest; None outside of the layers."""
    match = _LAYER.search(tensor)
    return (tensor[: match.start(1)], int(match[1]), tensor[match.end(1) :]) if match else None


def in_layer(tensor: str, layer: int) -> str:
    """The name of the tensor in another layer; the same outside of the layers."""
    parts = split_at_layer(tensor)
    return f"{parts[0]}{layer}{parts[2]}" if parts else tensor


def part_of_rest(tensor: str) -> str:
    """Whether a tensor outside of the layers is BEFORE or AFTER them."""
    return BEFORE if _BEFORE_LAYERS.search(tensor) else AFTER


def count_layers(tensors: Iterable[str]) -> dict[str, int]:
    """How many layers there are, by the text before the layer's number."""
    layers: dict[str, int] = {}
    for name in tensors:
        if parts := split_at_layer(name):
            before, number, _ = parts
            layers[before] = max(layers.get(before, 0), number + 1)
    return layers
