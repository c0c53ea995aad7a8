"""The input of a merge method: the experts' changes to one tensor, and nothing about files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, runtime_checkable

from hubmerge.weights.array_blocks import BLOCK_SIZE
from hubmerge.weights.dtypes import Array

T = TypeVar("T")


@dataclass(frozen=True)
class Deltas:
    """expert - base after softening, of one tensor or of a part of one: one array per expert.

    `values` are float32 (float64 where the base has F64), all of the tensor's shape, or for a part
    of one its entries from `start` on in a row. `weights` and `shas` are in the same order. The
    engine orders experts by SHA, so the order of the user's arguments has no effect.
    """

    tensor: str
    values: list[Array]
    weights: tuple[float, ...]
    shas: tuple[str, ...]
    start: int = 0

    def changed(self) -> bool:
        """Whether training moved these entries in at least one expert."""
        return any(bool(values.any()) for values in self.values)

    def parts(self) -> Iterator[Deltas]:
        """Parts that stay in the processor's cache, in order; a small tensor is one part."""
        flat = [values.reshape(-1) for values in self.values]
        for start in range(0, max(flat[0].size, 1), BLOCK_SIZE):
            part = [values[start : start + BLOCK_SIZE] for values in flat]
            yield replace(self, values=part, start=self.start + start)


# Each call is one pass over all floating-point tensors of the model.
DeltaPasses = Callable[[], Iterable[Deltas]]


@runtime_checkable
class ParallelPasses(Protocol):
    """Passes whose parts can be read and computed by several threads."""

    def __call__(self) -> Iterable[Deltas]: ...

    def map(self, function: Callable[[Deltas], T]) -> Iterator[T]:
        """The function of every part of the model, in order."""
        ...

    def sample(self, count: int) -> Iterator[Deltas]:
        """About `count` entries of the model, the same in every call, each tensor by its size."""
        ...


def map_parts(passes: DeltaPasses | ParallelPasses, function: Callable[[Deltas], T]) -> Iterator[T]:
    """One pass over the model: the function of every part, in order."""
    if isinstance(passes, ParallelPasses):
        yield from passes.map(function)
        return
    for deltas in passes():
        yield from map(function, deltas.parts())


def sample_parts(passes: DeltaPasses | ParallelPasses, count: int) -> Iterator[Deltas]:
    """About `count` entries of the model, or all of them if passes cannot be sampled."""
    if isinstance(passes, ParallelPasses):
        return passes.sample(count)
    return (part for deltas in passes() for part in deltas.parts())
