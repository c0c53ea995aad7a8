"""A choice without data: from the norms of task vectors and the recorded training curves.

The step of an expert is the knee of its own accuracy over the norm of its task vector: after the
knee the vector grows, but accuracy hardly does. The scale of a sum is such that the merge has the
mean norm of the experts; a method that averages has that size already. No row is evaluated.
Source of the knee: Satopaa et al., Finding a "Kneedle" in a Haystack (ICDCSW 2011), section 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from hubmerge.selection.candidate import Candidate
from hubmerge.selection.choice import Choice, plain_choice
from hubmerge.selection.grids import Grid
from hubmerge.selection.memory_merge import MemoryMerger
from hubmerge.selection.pool import Pool


def proxy(pool: Pool, merger: MemoryMerger, grid: Grid) -> Choice | None:
    """Choose by norms and recorded curves; None if a curve is missing."""
    indices = []
    for candidates in pool.candidates:
        index = _knee_index(candidates, merger)
        if index is None:
            return None
        indices.append(index)
    return data_free_choice(pool, merger, grid, tuple(indices))


def data_free_choice(
    pool: Pool, merger: MemoryMerger, grid: Grid, indices: tuple[int, ...]
) -> Choice:
    """Return these candidates with the method's defaults and a scale that needs no data."""
    choice = plain_choice(indices, merger.method.params().model_dump())
    if "scale" not in dict(choice.params):
        return choice
    if grid.scale is not None:
        return choice.with_params(scale=grid.scale)
    merge_norm, expert_norm = merger.merge_norm(choice), _mean_norm(pool, merger, choice)
    return choice.with_params(scale=round(expert_norm / merge_norm, 3) if merge_norm else 1.0)


def _mean_norm(pool: Pool, merger: MemoryMerger, choice: Choice) -> float:
    norms = [merger.deltas.norm(expert) for expert in pool.experts(choice)]
    return math.fsum(norms) / len(norms)


def _knee_index(candidates: Sequence[Candidate], merger: MemoryMerger) -> int | None:
    """Return the index farthest above the line from the base to best accuracy and largest norm."""
    recorded = [candidate.own_accuracy for candidate in candidates]
    start = starting_accuracy(candidates[-1])
    if start is None or any(accuracy is None for accuracy in recorded):
        return None
    norms = [merger.deltas.norm(candidate) for candidate in candidates]
    accuracies = [accuracy for accuracy in recorded if accuracy is not None]
    rise, longest = max(accuracies) - start, max(norms)
    if rise <= 0 or longest <= 0:
        return 0
    heights = [(a - start) / rise - n / longest for a, n in zip(accuracies, norms, strict=True)]
    return heights.index(max(heights))


def starting_accuracy(candidate: Candidate) -> float | None:
    """Return the own accuracy of an expert at step 0; None if it was not evaluated."""
    first = candidate.curve[0] if candidate.curve else None
    return first.accuracy if first is not None and first.step == 0 else None
