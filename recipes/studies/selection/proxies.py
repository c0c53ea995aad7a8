"""Choices of steps without evaluating a merge, to be compared with `proxy` (docs/selection.md).

`knee` and `rise` use the accuracies that were recorded in training. The others need no labels:
only norms of task vectors, and angles between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from hubmerge.selection.candidate import Candidate
from hubmerge.selection.choice import Choice
from hubmerge.selection.grids import Grid
from hubmerge.selection.memory_merge import MemoryMerger
from hubmerge.selection.pool import Pool
from hubmerge.selection.proxy import data_free_choice, proxy, starting_accuracy

_HALF = 0.5
_RISE = 0.95  # of the rise of an expert's own accuracy


def rise(pool: Pool, merger: MemoryMerger, grid: Grid) -> Choice | None:
    """The earliest step with 95 % of the rise of its own accuracy; None if a curve is missing."""
    indices = [rise_index(candidates) for candidates in pool.candidates]
    known = tuple(index for index in indices if index is not None)
    return data_free_choice(pool, merger, grid, known) if len(known) == len(indices) else None


def half_norm(pool: Pool, merger: MemoryMerger, grid: Grid) -> Choice:
    """The earliest step at which a task vector has half the norm that it has at the last step."""
    indices = []
    for candidates in pool.candidates:
        norms = [merger.deltas.norm(candidate) for candidate in candidates]
        indices.append(next(n for n, norm in enumerate(norms) if norm >= _HALF * norms[-1]))
    return data_free_choice(pool, merger, grid, tuple(indices))


def half_alignment(pool: Pool, merger: MemoryMerger, grid: Grid) -> Choice | None:
    """The latest common step before experts are half as aligned as at the last; None without one.

    Alignment is the mean cosine of the angle between two task vectors, which grows in training.
    Source of the idea: arXiv 2601.22285 and 2604.12935, which predict mergeability by it.
    """
    common = pool.common_steps()
    if not common:
        return None
    groups = [
        [candidates[index] for candidates, index in zip(pool.candidates, indices, strict=True)]
        for indices in common
    ]
    aligned = [_mean_cosine(merger, group) for group in groups]
    below = [n for n, value in enumerate(aligned[:-1]) if value <= _HALF * aligned[-1]]
    return data_free_choice(pool, merger, grid, common[max(below, default=0)])


def inverse_norm(pool: Pool, merger: MemoryMerger, grid: Grid) -> Choice:
    """The last steps, with weights that give every task vector the mean norm.

    Source of the idea: arXiv 2505.16148.
    """
    last = tuple(len(candidates) - 1 for candidates in pool.candidates)
    choice = data_free_choice(pool, merger, grid, last)
    norms = [merger.deltas.norm(expert) for expert in pool.experts(choice)]
    mean = math.fsum(norms) / len(norms)
    return replace(choice, weights=tuple(round(mean / norm, 4) if norm else 1.0 for norm in norms))


def rise_index(candidates: Sequence[Candidate]) -> int | None:
    """Return the earliest index with 95 % of the rise of its own accuracy; None without a curve."""
    recorded = [candidate.own_accuracy for candidate in candidates]
    start = starting_accuracy(candidates[-1])
    accuracies = [accuracy for accuracy in recorded if accuracy is not None]
    if start is None or len(accuracies) < len(recorded):
        return None
    enough = start + _RISE * (max(accuracies) - start)
    return next(index for index, accuracy in enumerate(accuracies) if accuracy >= enough)


def _mean_cosine(merger: MemoryMerger, experts: Sequence[Candidate]) -> float:
    pairs = list(combinations(experts, 2))
    cosines = []
    for first, second in pairs:
        product = merger.deltas.dot(first, second)
        norms = merger.deltas.norm(first) * merger.deltas.norm(second)
        cosines.append(product / norms if norms else 0.0)
    return float(np.mean(cosines))


PROXIES: Mapping[str, Callable[[Pool, MemoryMerger, Grid], Choice | None]] = {
    "knee": proxy,
    "rise": rise,
    "half norm": half_norm,
    "half alignment": half_alignment,
    "inverse norm": inverse_norm,
}
