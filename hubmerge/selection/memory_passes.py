"""Passes over changes in memory, part by part and by several threads, as the engine makes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from itertools import groupby
from math import ceil
from operator import itemgetter
from typing import TypeVar

import numpy as np

from hubmerge.cores import in_order
from hubmerge.merging.bracket import find_thresholds
from hubmerge.merging.deltas import Deltas, sample_ranges
from hubmerge.merging.method import Parts
from hubmerge.weights.array_blocks import BLOCK_SIZE

T = TypeVar("T")
_PARTS = 16  # parts that a thread does in one go
_QUEUED = 4  # tasks that wait for each thread
_Span = tuple[Deltas, int, int, int]  # a tensor, from where to where, and the size of a part


@dataclasses.dataclass(frozen=True)
class MemoryPasses:
    """Passes over the tensors `names`, whose changes `load` returns; see `ParallelPasses`.

    They are those that the `experts` changed, with `size` entries, and `left_out` is the number of
    entries of the others. `known` are thresholds by expert and by the number of entries that it
    keeps: they depend on nothing else, so further merges of an expert need not rank it again.
    """

    names: Sequence[str]
    load: Callable[[str], Deltas]
    parts: Parts
    pool: ThreadPoolExecutor
    threads: int
    experts: tuple[Hashable, ...] = ()
    size: int = 0
    left_out: int = 0
    known: dict[tuple[Hashable, int], np.float32] = dataclasses.field(default_factory=dict)

    def __call__(self) -> Iterator[Deltas]:
        return map(self.load, self.names)

    def map(self, function: Callable[[Deltas], T]) -> Iterator[T]:
        """The function of every part of the model, in order."""

        def work(span: _Span) -> list[T]:
            deltas, start, stop, step = span
            with np.errstate(over="ignore", invalid="ignore"):
                return [
                    function(self._part(deltas, first, min(first + step, stop)))
                    for first in range(start, max(stop, start + 1), step)
                ]

        for _, results in in_order(self.pool, work, self._spans(), _QUEUED * self.threads):
            yield from results

    def _spans(self) -> Iterator[_Span]:
        for deltas in self():
            size, step = deltas.values[0].size, self._step(deltas)
            for start in range(0, max(size, 1), step * _PARTS):
                yield deltas, start, min(start + step * _PARTS, size), step

    def sample(self, count: int) -> Iterator[Deltas]:
        """About `count` entries, in every part of the model."""
        sizes = [self.load(name).values[0].size for name in self.names]
        for number, ranges in groupby(sample_ranges(sizes, count), key=itemgetter(0)):
            deltas = self.load(self.names[number])
            for _, start, stop in ranges:
                yield _cut(deltas, start, stop)

    def thresholds(
        self, kept_of: Callable[[int], int], only_changed: bool
    ) -> tuple[np.float32, ...] | None:
        """By expert the smallest magnitude that it keeps; see `find_thresholds`.

        Entries that are left out are zeros, which rank below all others.
        """
        kept = kept_of(self.size + (0 if only_changed else self.left_out))
        keys = [(expert, kept) for expert in self.experts]
        columns = [column for column, key in enumerate(keys) if key not in self.known]
        if columns:
            passes = dataclasses.replace(self, load=partial(self._load_columns, columns))
            share = Fraction(kept, max(self.size, 1))
            found = find_thresholds(passes, lambda count: ceil(share * count), only_changed=False)
            if found is None:
                return None
            self.known.update(zip([keys[column] for column in columns], found, strict=True))
        return tuple(self.known[key] for key in keys)

    def _load_columns(self, columns: Sequence[int], name: str) -> Deltas:
        """The changes of some of the experts."""
        deltas = self.load(name)
        return dataclasses.replace(
            deltas,
            values=[deltas.values[column] for column in columns],
            weights=tuple(deltas.weights[column] for column in columns),
            shas=tuple(deltas.shas[column] for column in columns),
        )

    def part(self, name: str, start: int) -> Deltas:
        """The part of a tensor that begins at an entry."""
        deltas = self.load(name)
        stop = min(start + self._step(deltas), deltas.values[0].size)
        return self._part(deltas, start, stop)

    def _step(self, deltas: Deltas) -> int:
        """The number of entries of a part."""
        row = self._row(deltas)
        return max(BLOCK_SIZE // row, 1) * row if row else BLOCK_SIZE

    def _row(self, deltas: Deltas) -> int:
        shape = deltas.values[0].shape
        return max(shape[-1] if shape else 1, 1) if self.parts == "rows" else 0

    def _part(self, deltas: Deltas, start: int, stop: int) -> Deltas:
        part, row = _cut(deltas, start, stop), self._row(deltas)
        if not row:
            return part
        return dataclasses.replace(part, values=[v.reshape(-1, row) for v in part.values])


def _cut(deltas: Deltas, start: int, stop: int) -> Deltas:
    return dataclasses.replace(
        deltas,
        values=[values.reshape(-1)[start:stop] for values in deltas.values],
        start=start,
        base=None if deltas.base is None else deltas.base.reshape(-1)[start:stop],
    )
