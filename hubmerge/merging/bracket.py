"""Exact thresholds in one pass: a sample brackets them, and the pass counts within the bracket.

Magnitudes are compared by their bits as float32, which have the same order. The pass counts the
magnitudes above the bracket and collects those in it, some percent of all; equal ones are counted
together, so memory does not grow with the model. Sampling only decides whether one pass is enough:
where the bracket misses a threshold, `kth_magnitudes` finds it in two passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hubmerge.merging.deltas import Deltas, ParallelPasses
from hubmerge.merging.trim import magnitudes
from hubmerge.weights.array_blocks import scratch
from hubmerge.weights.dtypes import Array

Bits = NDArray[np.uint32]

_BOOL = np.dtype(np.bool_)
_SAMPLE = 400_000
_MARGIN = 6  # standard deviations of the sampled rank
_MOST_COLLECTED = 1 << 22
_MOST_DIFFERENT = 1 << 22


@dataclass
class _Bracket:
    """The bits around the threshold of one expert, and what a pass has found so far."""

    low: int
    high: int
    above: int = 0
    collected: list[Bits] = field(default_factory=list)
    pending: int = 0  # entries in `collected`
    values: Bits = field(default_factory=lambda: np.empty(0, np.uint32))
    counts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def add(self, above: int, inside: Bits) -> None:
        self.above += above
        self.collected.append(inside)
        self.pending += len(inside)
        if self.pending > _MOST_COLLECTED:
            self.compress()

    def compress(self) -> None:
        """Count equal values together."""
        values, counts = np.unique(np.concatenate(self.collected or [self.values[:0]]),
                                   return_counts=True)  # fmt: skip
        both, inverse = np.unique(np.concatenate([self.values, values]), return_inverse=True)
        weights = np.concatenate([self.counts, counts])
        self.counts = np.bincount(inverse, weights, minlength=len(both)).astype(np.int64)
        self.values, self.collected, self.pending = both, [], 0

    def find(self, kept: int) -> int | None:
        """The bits of the `kept`-th largest magnitude, None if it is not in the bracket."""
        if not len(self.values):
            return self._find_collected(kept)
        self.compress()
        inside = int(self.counts.sum())
        if kept <= self.above:
            return None
        if kept > self.above + inside:
            return 0 if self.low <= 1 else None  # all others are zero
        from_top = np.cumsum(self.counts[::-1])
        position = int(np.searchsorted(from_top, kept - self.above))
        return int(self.values[::-1][position])

    def _find_collected(self, kept: int) -> int | None:
        """`find` while all that was collected is in memory."""
        if kept <= self.above:
            return None
        if kept > self.above + self.pending:
            return 0 if self.low <= 1 else None
        everything = np.concatenate(self.collected)
        rank = self.pending - (kept - self.above)  # from the smallest, counted from 0
        return int(np.partition(everything, rank)[rank])


def find_thresholds(
    passes: ParallelPasses, kept_of: Callable[[int], int], only_changed: bool
) -> tuple[np.float32, ...] | None:
    """For each expert, the `kept_of(count)`-th largest magnitude of all its entries.

    Entries are those of the whole model, or with `only_changed` of the tensors that any expert
    changed; `count` is their number. None if a bracket missed its threshold; `kept_of` must return
    at least 1 and at most `count`.
    """
    brackets = _sample_brackets(passes, kept_of, only_changed)
    if brackets is None:
        return None
    limits = [(bracket.low, bracket.high) for bracket in brackets]

    def count(deltas: Deltas) -> tuple[str, int, bool, list[tuple[int, Bits]]]:
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
    for name, size, is_changed, found in passes.map(count):
        sizes[name] = sizes.get(name, 0) + size
        if is_changed:
            changed.add(name)
        for bracket, (above, inside) in zip(brackets, found, strict=True):
            bracket.add(above, inside)
            if len(bracket.values) > _MOST_DIFFERENT:
                return None
    total = sum(size for name, size in sizes.items() if name in changed or not only_changed)
    if total == 0:
        return tuple(np.float32(0) for _ in brackets)
    bits = [bracket.find(kept_of(total)) for bracket in brackets]
    if any(found is None for found in bits):
        return None
    return tuple(np.array(bits, np.uint32).view(np.float32))


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
    by_tensor: dict[str, list[list[Bits]]] = {}
    for deltas in passes.sample(_SAMPLE):
        bits = [magnitudes(values).reshape(-1).view(np.uint32) for values in deltas.values]
        by_tensor.setdefault(deltas.tensor, []).append(bits)
    ranked = [
        bits
        for samples in by_tensor.values()
        for bits in samples
        if not only_changed or any(b.any() for sample in samples for b in sample)
    ]
    if not ranked:
        return None
    return [_bracket(np.concatenate(column), kept_of) for column in zip(*ranked, strict=True)]


def _bracket(sample: Bits, kept_of: Callable[[int], int]) -> _Bracket:
    """The bits between which the threshold is, judging by a sample."""
    size = len(sample)
    kept = kept_of(size)
    share = min(kept / size, 1.0)
    margin = _MARGIN * int(np.sqrt(size * share * (1 - share))) + 64
    # Ranks from the smallest: the threshold is expected at size - kept.
    above, below = size - 1 - (kept - margin), size - 1 - (kept + margin)
    ranks = [rank for rank in (above, below) if 0 <= rank < size]
    ordered = np.partition(sample, ranks) if ranks else sample
    high = int(ordered[above]) if above in ranks else int(np.uint32(0xFFFFFFFF))
    low = int(ordered[below]) if below in ranks else 1
    return _Bracket(max(low, 1), max(high, 1))
