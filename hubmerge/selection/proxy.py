"""A choice without any data: from how far experts have moved, and from the curves they came with.

The step of an expert is the knee of its own accuracy over the length of its task vector: after it,
the vector grows and the accuracy hardly does. The scale of a sum is such that the merge moves as
far as an expert does on average; a mean of those who agree has that size already. No row is asked.
Source of the knee: Satopaa et al., Finding a "Kneedle" in a Haystack (ICDCSW 2011), section 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from hubmerge.selection.grids import Grid
from hubmerge.selection.memory_merge import Blender
from hubmerge.selection.pool import Candidate, Choice, Pool, plain_choice


def proxy(pool: Pool, blender: Blender, grid: Grid) -> Choice | None:
    """The choice by geometry and recorded curves; None where a curve is missing."""
    places = []
    for candidates in pool.candidates:
        place = _knee(candidates, blender)
        if place is None:
            return None
        places.append(place)
    return without_data(pool, blender, grid, tuple(places))


def without_data(pool: Pool, blender: Blender, grid: Grid, places: tuple[int, ...]) -> Choice:
    """These candidates with the method's defaults, and a scale that asks for no data."""
    choice = plain_choice(places, blender.method.params().model_dump())
    if "scale" not in dict(choice.params):
        return choice
    if grid.scale is not None:
        return choice.setting(scale=grid.scale)
    moved, length = blender.length(choice), _mean_norm(pool, blender, choice)
    return choice.setting(scale=round(length / moved, 3) if moved else 1.0)


def _mean_norm(pool: Pool, blender: Blender, choice: Choice) -> float:
    norms = [blender.norm(expert) for expert in pool.experts(choice)]
    return math.fsum(norms) / len(norms)


def _knee(candidates: Sequence[Candidate], blender: Blender) -> int | None:
    """The place farthest above the line from the base to the best accuracy and the longest way."""
    own = [candidate.own for candidate in candidates]
    start = candidates[-1].curve[0].accuracy if candidates[-1].curve else None
    if start is None or any(accuracy is None for accuracy in own):
        return None
    norms = [blender.norm(candidate) for candidate in candidates]
    accuracies = [accuracy for accuracy in own if accuracy is not None]
    rise, way = max(accuracies) - start, max(norms)
    if rise <= 0 or way <= 0:
        return 0
    heights = [(a - start) / rise - n / way for a, n in zip(accuracies, norms, strict=True)]
    return heights.index(max(heights))
