"""Exact thresholds in one pass: a sample brackets them, and the pass counts within the bracket.

Magnitudes are compared by their bits as float32, which have the same order. The pass counts the
magnitudes above the bracket and collects those in it, some percent of all; equal ones are counted
together, so memory does not grow with the model. Sampling only decides whether one pass is enough:
where the bracket misses a threshold or is too wide, `tensor_ranks` finds it in two passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hubmerge.merging import kernels
from hubmerge.merging.deltas import Deltas, ParallelPasses
from hubmerge.merging.tensor_ranks import tensor_ranks
from hubmerge.merging.trim import magnitudes
from hubmerge.weights.array_blocks import scratch
from hubmerge.weights.dtypes import Array

Bits = NDArray[np.uint32]
Counts = NDArray[np.int64]
T = TypeVar("T")

_BOOL = np.dtype(np.bool_)
_SAMPLE = 400_000
_MARGIN = 6  # standard deviations of the sampled rank, if entries are independent
_CLUSTERED_MARGIN = 3  # as they are measured; a bracket that misses costs two more passes
_MOST_COLLECTED = 1 << 22  # entries of all experts that wait to be counted
_MOST_DIFFERENT = 1 << 23  # values of all experts that are counted
_NOWHERE = 0xFFFFFFFF  # a bracket that holds nothing


@dataclass
class _Bracket:
    """The bits around the threshold of one expert, and what a pass has found so far.

    A range of bits that is not too wide has a count for each of them, with `values` empty.
    """

    low: int
    high: int
    above: int = 0
    collected: list[Bits] = field(default_factory=list)
    pending: int = 0  # entries in `collected`
    values: Bits = field(default_factory=lambda: np.empty(0, np.uint32))
    counts: Counts = field(default_factory=lambda: np.empty(0, np.int64))

    def add(self, above: int, inside: Bits, experts: int) -> None:
        """Add what a part has above and inside the bracket."""
        self.above += above
        self.collected.append(inside)
        self.pending += len(inside)
        if self.pending > _MOST_COLLECTED // experts:
            self.compress(experts)

    def compress(self, experts: int) -> None:
        """Count equal values together."""
        collected = np.concatenate([self.values[:0], *self.collected])
        self.collected, self.pending = [], 0
        width = self.high - self.low + 1
        if width <= _MOST_DIFFERENT // experts:
            counts = np.bincount(collected - np.uint32(self.low), minlength=width)
            self.counts = counts + self.counts if len(self.counts) else counts
            return
        values, counts = np.unique(collected, return_counts=True)
        both, inverse = np.unique(np.concatenate([self.values, values]), return_inverse=True)
        weights = np.concatenate([self.counts, counts])
        self.counts = np.bincount(inverse, weights, minlength=len(both)).astype(np.int64)
        self.values = both

    def find(self, kept: int, experts: int) -> int | None:
        """The bits of the `kept`-th largest magnitude, None if it is not in the bracket."""
        self.compress(experts)
        inside = int(self.counts.sum())
        if kept <= self.above:
            return None
        if kept > self.above + inside:
            return 0 if self.low <= 1 else None  # all others are zero
        from_top = np.cumsum(self.counts[::-1])
        index = len(self.counts) - 1 - int(np.searchsorted(from_top, kept - self.above))
        return int(self.values[index]) if len(self.values) else self.low + index


def find_thresholds(
    passes: ParallelPasses, kept_of: Callable[[int], int], only_changed: bool
) -> tuple[np.float32, ...] | None:
    """For each expert, the `kept_of(count)`-th largest magnitude of all its entries.

    Entries are those of the whole model, or with `only_changed` of the tensors that any expert
    changed; `count` is their number. `kept_of` must return at least 1. None for a model without
    entries; where there are fewer than `kept_of(count)` the threshold is 0.
    """
    brackets = _sample_brackets(passes, kept_of, only_changed)
    if brackets is None:
        return None
    limits = [(bracket.low, bracket.high) for bracket in brackets]
    experts = len(brackets)

    def count(deltas: Deltas) -> tuple[str, int, bool, list[tuple[int, Bits]]]:
        if kernels.fit(*deltas.values):
            found = kernels.bracket(deltas.values, *zip(*limits, strict=True))
            return deltas.tensor, deltas.values[0].size, deltas.changed(), found
        found = []
        for values, (low, high) in zip(deltas.values, limits, strict=True):
            bits = _bits(values)
            above = np.greater(bits, high, out=scratch("above", bits.size, _BOOL))
            inside = np.greater_equal(bits, low, out=scratch("inside", bits.size, _BOOL))
            np.not_equal(inside, above, out=inside)  # what is above is in both
            found.append((int(np.count_nonzero(above)), bits[inside]))
        return deltas.tensor, deltas.values[0].size, deltas.changed(), found

    sizes: dict[str, int] = {}
    changed: set[str] = set()
    is_too_wide = False
    for name, size, is_changed, found in passes.map(count):
        sizes[name] = sizes.get(name, 0) + size
        if is_changed:
            changed.add(name)
        for bracket, (above, inside) in zip(brackets, found, strict=True):
            bracket.add(above, inside if not is_too_wide else inside[:0], experts)
        is_too_wide = sum(len(bracket.values) for bracket in brackets) > _MOST_DIFFERENT
    total = sum(size for name, size in sizes.items() if name in changed or not only_changed)
    if total == 0:
        return tuple(np.float32(0) for _ in brackets)
    kept = kept_of(total)
    bits = [None if is_too_wide else bracket.find(kept, experts) for bracket in brackets]
    brackets.clear()  # their counts are not needed any more
    if any(found is None for found in bits):
        return _count_thresholds(passes, kept)
    return tuple(np.array(bits, np.uint32).view(np.float32))


def _count_thresholds(passes: ParallelPasses, kept: int) -> tuple[np.float32, ...]:
    """For each expert its `kept`-th largest magnitude, in two passes.

    Entries of tensors that nobody changed are zeros, which are below all others.
    """
    ranks = tensor_ranks(_OneTensor(passes), lambda deltas: deltas.values, lambda *_: [kept])
    return tuple(found for (found,) in ranks[""])


@dataclass(frozen=True)
class _OneTensor:
    """Passes that give all tensors of a model the same name."""

    passes: ParallelPasses

    def __call__(self) -> Iterator[Deltas]:
        return (replace(deltas, tensor="") for deltas in self.passes())

    def map(self, function: Callable[[Deltas], T]) -> Iterator[T]:
        return self.passes.map(lambda deltas: function(replace(deltas, tensor="")))

    def sample(self, count: int) -> Iterator[Deltas]:
        return self.passes.sample(count)


def _bits(values: Array) -> Bits:
    """The bits of the magnitudes of a part, in memory that the next one reuses."""
    if values.dtype != np.float32:
        return magnitudes(values).view(np.uint32)
    sizes = np.abs(values, out=scratch("magnitudes", values.size, values.dtype))
    return sizes.view(np.uint32)


def _sample_brackets(
    passes: ParallelPasses, kept_of: Callable[[int], int], only_changed: bool
) -> list[_Bracket] | None:
    """A bracket for each expert; None for a model without entries."""
    by_tensor: dict[str, list[list[Array]]] = {}
    for deltas in passes.sample(_SAMPLE):
        values = [array.reshape(-1) for array in deltas.values]
        by_tensor.setdefault(deltas.tensor, []).append(values)
    ranked = [
        values
        for samples in by_tensor.values()
        if not only_changed or any(v.any() for sample in samples for v in sample)
        for values in samples
    ]
    if ranked:
        starts = np.cumsum([0, *(len(values[0]) for values in ranked[:-1])])
        samples = (np.concatenate(column) for column in zip(*ranked, strict=True))
        return [_bracket(magnitudes(s).view(np.uint32), starts, kept_of) for s in samples]
    columns = len(next(iter(by_tensor.values()))[0]) if by_tensor else 0
    return [_Bracket(_NOWHERE, _NOWHERE) for _ in range(columns)] or None


def _bracket(sample: Bits, starts: Counts, kept_of: Callable[[int], int]) -> _Bracket:
    """The bits between which the threshold is, judging by entries that were sampled.

    They are ranges of neighbours, of which `starts` are the first entries.
    """
    size = len(sample)
    kept = kept_of(size)
    threshold = np.partition(sample, -kept)[-kept] if kept <= size else 0
    margin = int(_rank_margin(sample >= threshold, starts, min(kept / size, 1.0))) + 64
    # Ranks from the smallest: the threshold is expected at size - kept.
    above, below = size - 1 - (kept - margin), size - 1 - (kept + margin)
    ranks = [rank for rank in (above, below) if 0 <= rank < size]
    ordered = np.partition(sample, ranks) if ranks else sample
    high = int(ordered[above]) if above in ranks else _NOWHERE
    low = int(ordered[below]) if below in ranks else 1
    return _Bracket(max(low, 1), max(high, 1))


def _rank_margin(is_kept: NDArray[np.bool_], starts: Counts, share: float) -> float:
    """How far a rank in a sample of ranges may be from that in the model.

    Neighbours are alike where whole rows changed more than others, as in the products of a LoRA.
    The differences of successive ranges show how much: see Wolter, Introduction to Variance
    Estimation, section 8.2.
    """
    independent = np.sqrt(len(is_kept) * share * (1 - share))
    counts = np.add.reduceat(is_kept, starts, dtype=np.float64)
    clustered = np.sqrt(np.square(np.diff(counts)).sum() / 2)
    return float(max(_MARGIN * independent, _CLUSTERED_MARGIN * clustered))
