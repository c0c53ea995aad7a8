"""The exact k-th largest magnitudes of each tensor by itself, in two passes over the model.

As in `trim`, magnitudes are counted by the high 16 bits of their float32 and then, within the bin
that holds the k-th, by the low 16 bits. Parts of a tensor are counted together by several threads,
and a tensor's counts are dropped once it is complete, so memory does not depend on its size.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hubmerge.merging.deltas import DeltaPasses, Deltas, map_parts
from hubmerge.merging.trim import BINS, locate, magnitudes
from hubmerge.weights.dtypes import Array

# By tensor, for each column the magnitudes of the wanted ranks.
Ranks = Mapping[str, tuple[tuple[np.float32, ...], ...]]
_Columns = Callable[[Deltas], Sequence[Array]]
_Bits = NDArray[np.uint32]
# The bin that holds the k-th and its rank there, or the magnitude itself if it needs no counting.
_Place = tuple[int, int] | np.float32
_Located = list[list[_Place]]


@dataclass
class _Counts:
    """Histograms [columns][ranks][65,536] of one tensor, and the number of entries of a column."""

    bins: list[list[NDArray[np.int64]]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, bins: list[list[NDArray[np.int64]]], sizes: list[int]) -> None:
        with self.lock:
            if not self.sizes:
                self.bins, self.sizes = bins, sizes
                return
            for column, more in zip(self.bins, bins, strict=True):
                for counts, new in zip(column, more, strict=True):
                    counts += new
            self.sizes = [size + new for size, new in zip(self.sizes, sizes, strict=True)]


def tensor_ranks(
    passes: DeltaPasses,
    columns: _Columns,
    kept_of: Callable[[Deltas, int, int], Sequence[int]],
) -> Ranks:
    """By tensor, for each column the k-th largest magnitudes, for several k.

    `columns(deltas)` are the arrays of a part to be ranked, such as the changes themselves.
    `kept_of(deltas, column, size)` returns the numbers k of a column with `size` entries, given any
    part of the tensor. For k = 0 the result is infinite, and where a column has fewer than k
    entries it is 0. Magnitudes are compared as float32.
    """
    found: dict[str, _Located] = {}
    for deltas, counts in _count(passes, columns, lambda *_: [16]):
        found[deltas.tensor] = [
            [_place(bins[0], size, kept) for kept in kept_of(deltas, column, size)]
            for column, (bins, size) in enumerate(zip(counts.bins, counts.sizes, strict=True))
        ]
    fine = _count(passes, columns, lambda tensor, column: found[tensor][column])
    return {
        deltas.tensor: tuple(
            tuple(
                place if isinstance(place, np.float32) else _value(place, low)
                for place, low in zip(places, bins, strict=True)
            )
            for places, bins in zip(found[deltas.tensor], counts.bins, strict=True)
        )
        for deltas, counts in fine
    }


def _count(
    passes: DeltaPasses, columns: _Columns, wanted: Callable[[str, int], Sequence[Any]]
) -> Iterator[tuple[Deltas, _Counts]]:
    """One pass: a part of every tensor, and the tensor's complete counts.

    `wanted(tensor, column)` lists what is counted: 16 for the high bits of all entries, (high, _)
    for the low bits of those with these high bits, a magnitude for nothing.
    """
    unfinished: dict[str, _Counts] = {}

    def count(deltas: Deltas) -> Deltas:
        counts = unfinished.setdefault(deltas.tensor, _Counts())
        bins, sizes = [], []
        for column, values in enumerate(columns(deltas)):
            bits = magnitudes(values).reshape(-1).view(np.uint32)
            bins.append([_histogram(bits, what) for what in wanted(deltas.tensor, column)])
            sizes.append(len(bits))
        counts.add(bins, sizes)
        return deltas

    last: Deltas | None = None
    for deltas in map_parts(passes, count):
        if last is not None and last.tensor != deltas.tensor:
            yield last, unfinished.pop(last.tensor)
        last = deltas
    if last is not None:
        yield last, unfinished.pop(last.tensor)


def _histogram(bits: _Bits, what: Any) -> NDArray[np.int64]:
    if isinstance(what, np.float32):
        return np.zeros(BINS, np.int64)
    high = bits >> 16
    keys = high if what == 16 else bits[high == what[0]] & 0xFFFF
    return np.bincount(keys, minlength=BINS)


def _place(counts: NDArray[np.int64], size: int, kept: int) -> _Place:
    """Where the `kept`-th largest of `size` magnitudes is."""
    if kept == 0:
        return np.float32(np.inf)
    return locate(counts, size - kept + 1) if kept <= size else np.float32(0)


def _value(place: tuple[int, int], low_counts: NDArray[np.int64]) -> np.float32:
    low, _ = locate(low_counts, place[1])
    return np.float32(np.array((place[0] << 16) | low, np.uint32).view(np.float32))
