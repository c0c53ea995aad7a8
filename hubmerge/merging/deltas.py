"""What a merge method is given: the experts' changes to one tensor, and nothing about files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hubmerge.weights.dtypes import Array


@dataclass(frozen=True)
class Deltas:
    """expert - base for one tensor, one array per expert, all of the tensor's shape; softened.

    `values` are float32 (float64 where the base has F64). `weights` and `shas` go with them, in
    the same order; the engine orders experts by SHA, so a method never sees the order they were
    typed in.
    """

    tensor: str
    values: list[Array]
    weights: tuple[float, ...]
    shas: tuple[str, ...]

    def changed(self) -> bool:
        """Whether training moved this tensor in at least one expert."""
        return any(bool(values.any()) for values in self.values)


# Call it for one walk over all floating-point tensors of the model; it may be called again.
Passes = Callable[[], Iterable[Deltas]]
