"""Which tensors a setting is for: by a text in their names, and by the layers that they are in.

`mlp` is for the tensors with that text in their names, `mlp@0:8` for those of them in layers 0 to
7, and `@0:8` for all of these layers. `@before` and `@after` are the tensors before and after the
layers: embeddings, and the last norm and the head.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from hubmerge.errors import UsageError
from hubmerge.weights.layer_names import layer_of, part_of_rest

_FILTER = re.compile(r"(?P<text>[^@]*)(?:@(?P<part>before|after|(?P<start>\d+):(?P<stop>\d+)))?")


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
