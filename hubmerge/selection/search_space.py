"""Choices as points, for a surrogate: distances in which similar merges are near each other.

Steps count by their position in a task's list; weights and parameters by their log2. The best scale
falls where steps are later and where other parameters, such as a density, are larger; a `Coupling`
says by how much, so that merges that are alike are near each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from hubmerge.selection.grids import Grid
from hubmerge.selection.pool import Choice

Matrix = NDArray[np.float64]

_POSITIONS = 3.0  # in the list of steps: one length scale
_OCTAVES = 2.0  # of a parameter other than the scale, likewise; of scale and weights it is 1


@dataclass(frozen=True)
class Coupling:
    """By how much log2 of the best scale falls: per position of all steps, per octave of others."""

    steps: float = 0.0
    params: float = 0.0


COUPLINGS = tuple(Coupling(*values) for values in product((0.0, 0.2), (0.0, 0.5)))


@dataclass(frozen=True)
class Space:
    """The points of choices whose parameters are on a grid, for one coupling."""

    grid: Grid
    coupling: Coupling

    def points(self, choices: Sequence[Choice]) -> Matrix:
        """Return the points of choices [choices x dimensions], in length scales."""
        rows = [dict(choice.params) for choice in choices]
        params = [[row[name] for name in self.grid.values] for row in rows]
        return self.combine(choices, np.array(params, np.float64).reshape(len(choices), -1))

    def grid_points(self, choices: Sequence[Choice], grid: Sequence[Mapping[str, float]]) -> Matrix:
        """Return the points of every choice with every point of the grid, which varies fastest."""
        repeated = [choice for choice in choices for _ in grid]
        params = [[point[name] for name in self.grid.values] for point in grid] * len(choices)
        return self.combine(repeated, np.array(params, np.float64).reshape(len(repeated), -1))

    def combine(self, choices: Sequence[Choice], params: Matrix) -> Matrix:
        """Return the points of choices with these parameters [choices x parameters]."""
        positions = np.array([choice.indices for choice in choices], np.float64)
        weights = np.array([choice.weights for choice in choices])
        left_in = np.where(weights == 0, 1, weights)  # 0 is left out, in all choices compared
        parts = [positions / _POSITIONS, np.log2(left_in)]
        logs, names = np.log2(params), list(self.grid.values)
        others = logs[:, [number for number, name in enumerate(names) if name != "scale"]]
        if "scale" in names:
            scale = logs[:, names.index("scale")] + self.coupling.steps * positions.mean(axis=1)
            parts.append((scale + self.coupling.params * others.sum(axis=1))[:, None])
        return np.hstack([*parts, others / _OCTAVES])
