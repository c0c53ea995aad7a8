"""Which tensors a setting is for: by a text in their names, and by the layers that they are in.

`mlp` is for the tensors with that text in their names, `mlp@0:8` for those of them in layers 0 to
7, and `@0:8` for all of these layers. `@before` and `@after` are the tensors before and after the
layers: embeddings, and the last norm and the head.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from hubmerge.errors import UsageError

_LAYER = re.compile(r"(?:^|\.)(\d+)(?=\.)")
# The head of GPT-NeoX, embed_out, comes after the layers.
_BEFORE_LAYERS = re.compile(r"emb(?!ed_out)|wte|wpe|class_token|cls_token|patch|conv_proj|shared")
_FILTER = re.compile(r"(?P<text>[^@]*)(?:@(?P<part>before|after|(?P<start>\d+):(?P<stop>\d+)))?")

BEFORE, AFTER = "before", "after"


@dataclass(frozen=True)
class TensorFilter:
    """`text` is in the names; `part` is BEFORE, AFTER, "layers" for `start` to `stop`, or ""."""

    text: str
    part: str = ""
    start: int = 0
    stop: int = 0

    def matches(self, tensor: str) -> bool:
        """Whether the filter is for a tensor."""
        if self.text not in tensor:
            return False
        if not self.part:
            return True
        layer = layer_of(tensor)
        if layer is None:
            return self.part == part_of_rest(tensor)
        return self.part == "layers" and self.start <= layer < self.stop

    def depth(self, tensor: str, depth: float) -> float:
        """Where a tensor is among those of the filter, 0 to 1, given where it is in the model.

        The one layer of a filter has 1, as in mergekit.
        """
        layer = layer_of(tensor)
        if self.part != "layers" or layer is None:
            return depth
        count = self.stop - self.start
        return (layer - self.start) / (count - 1) if count > 1 else 1.0

    def describe(self) -> str:
        """The tensors that it is for, in words."""
        place = {
            "": "tensor",
            "layers": f"tensor of layers {self.start} to {self.stop - 1}",
        }.get(self.part, f"tensor {self.part} the layers")
        return f"{place} has {self.text!r} in its name" if self.text else f"{place} exists"


@lru_cache(maxsize=4096)
def parse_filter(text: str) -> TensorFilter:
    """Parse what is in the brackets of a setting; raises UsageError."""
    match = _FILTER.fullmatch(text)
    if match is None or (match["start"] and int(match["start"]) >= int(match["stop"])):
        raise UsageError(
            f"{text!r} is not a filter.",
            "Write a text in the names of tensors, with layers as in mlp@0:8, @before or @after.",
        )
    if match["start"]:
        return TensorFilter(match["text"], "layers", int(match["start"]), int(match["stop"]))
    return TensorFilter(match["text"], match["part"] or "")


def layer_of(tensor: str) -> int | None:
    """The number of the layer that a tensor is in, None outside of the layers."""
    match = _LAYER.search(tensor)
    return int(match[1]) if match else None


def split_at_layer(tensor: str) -> tuple[str, int, str] | None:
    """The name before the layer's number, the number, and the rest; None outside of the layers."""
    match = _LAYER.search(tensor)
    return (tensor[: match.start(1)], int(match[1]), tensor[match.end(1) :]) if match else None


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
