"""The input of a merge method: the experts' changes to one tensor, and nothing about files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from hubmerge.weights.array_blocks import BLOCK_SIZE
from hubmerge.weights.dtypes import Array, cast
from hubmerge.weights.lora import LowRankMatrix

_SAMPLE = 256  # entries of one range
T = TypeVar("T")
P = TypeVar("P")


@dataclass(frozen=True)
class Deltas:
    """expert - base after softening, of one tensor or of a part of one: one array per expert.

    `values` are float32 (float64 where the base has F64), all of the tensor's shape, or for a part
    of one its entries from `start` on in a row. `weights` and `shas` are in the same order. The
    engine orders experts by SHA, so the order of the user's arguments has no effect. `base` are the
    base's entries, for methods that need them. `factors` has, by expert, the factors of a change
    that is nothing but their product, and None for any other; it may be empty. Where parameters
    differ between tensors or experts, `tensor_params` and `expert_params` are those of this tensor;
    see `tensor_params.py`.
    """

    tensor: str
    values: list[Array]
    weights: tuple[float, ...]
    shas: tuple[str, ...]
    start: int = 0
    base: Array | None = field(default=None, repr=False)
    tensor_params: Any = None
    expert_params: tuple[Any, ...] = ()
    factors: tuple[LowRankMatrix | None, ...] = field(default=(), repr=False)

    def of_tensor(self, params: P) -> P:
        """The method's parameters for this tensor; `params` are those of the model."""
        return params if self.tensor_params is None else self.tensor_params

    def of_experts(self, params: P) -> tuple[P, ...]:
        """The method's parameters for the changes of each expert to this tensor."""
        return self.expert_params or (self.of_tensor(params),) * len(self.values)

    @property
    def base_values(self) -> Array:
        """The base's entries, in the dtype of the changes."""
        assert self.base is not None, "the engine always gives the base"
        return cast(self.base, self.values[0].dtype)

    def changed(self) -> bool:
        """Whether training moved these entries in at least one expert."""
        return any(bool(values.any()) for values in self.values)

    def parts(self) -> Iterator[Deltas]:
        """Parts that stay in the processor's cache, in order; a small tensor is one part."""
        flat = [values.reshape(-1) for values in self.values]
        base = None if self.base is None else self.base.reshape(-1)
        for start in range(0, max(flat[0].size, 1), BLOCK_SIZE):
            stop = start + BLOCK_SIZE
            yield replace(
                self,
                values=[values[start:stop] for values in flat],
                start=self.start + start,
                base=None if base is None else base[start:stop],
                factors=(),
            )


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


@runtime_checkable
class RankedPasses(ParallelPasses, Protocol):
    """Passes over a model whose entries can be ranked."""

    def thresholds(
        self, kept_of: Callable[[int], int], only_changed: bool
    ) -> tuple[np.float32, ...] | None:
        """By expert the smallest magnitude that it keeps; see `bracket.find_thresholds`."""
        ...


def map_parts(passes: DeltaPasses | ParallelPasses, function: Callable[[Deltas], T]) -> Iterator[T]:
    """One pass over the model: the function of every part, in order."""
    if isinstance(passes, ParallelPasses):
        yield from passes.map(function)
        return
    for deltas in passes():
        yield from map(function, deltas.parts())


def sample_ranges(sizes: Sequence[int], count: int) -> Iterator[tuple[int, int, int]]:
    """Ranges of about `count` entries of all arrays in a row: the number of an array, and where.

    The arrays are divided into equal stretches, and a range is at a random place in each, always
    the same for the same sizes: at equal distances, ranges would see rows that repeat at the same
    place again and again. Arrays with no more than `count` entries are read as a whole, in blocks.
    """
    total = sum(sizes)
    if total <= count:
        for number, size in enumerate(sizes):
            for start in range(0, size, BLOCK_SIZE):
                yield number, start, min(start + BLOCK_SIZE, size)
        return
    stretches = max(count // _SAMPLE, 1)
    length = total // stretches
    places = np.random.default_rng(0).integers(0, max(length - _SAMPLE, 0) + 1, stretches)
    positions = places + length * np.arange(stretches)
    ends = np.cumsum(sizes)
    for position, number in zip(positions, np.searchsorted(ends, positions, "right"), strict=True):
        start = int(position - ends[number]) + sizes[number]
        yield int(number), start, min(start + _SAMPLE, sizes[number])
