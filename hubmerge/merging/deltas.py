"""The input of a merge method: the experts' changes to one tensor, and nothing about files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hubmerge.weights.dtypes import Array


@dataclass(frozen=True)
class Deltas:
    """expert - base of one tensor after softening: one array per expert, all of the tensor's shape.

    `values` are float32 (float64 where the base has F64). `weights` and `shas` are in the same
    order. The engine orders experts by SHA, so the order of the user's arguments has no effect.
    """

    tensor: str
    values: list[Array]
    weights: tuple[float, ...]
    shas: tuple[str, ...]

    def changed(self) -> bool:
        """Whether training moved this tensor in at least one expert."""
        return any(bool(values.any()) for values in self.values)


# Each call is one pass over all floating-point tensors of the model.
DeltaPasses = Callable[[], Iterable[Deltas]]
