"""Choices as points, for a surrogate: distances in which similar merges are near each other.

Steps count by their position in a task's list; weights and parameters by their log2. The best scale
falls where steps are later and where other parameters, such as a density, are larger; a `Coupling`
says by how much, so that merges that are alike are near each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hubmerge.selection.choice import Choice
from hubmerge.selection.grids import Grid

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
class Coordinates:
    """Choices as numbers, before any coupling.

    Positions and weights are [choices x tasks], parameters [choices x parameters of the grid].
    """

    positions: Matrix
    weights: Matrix
    params: Matrix

    def with_grid(self, params: Matrix) -> Coordinates:
        """Return every choice with every row of `params`, which varies fastest."""
        repeats, copies = len(params), len(self.positions)
        return Coordinates(
            np.repeat(self.positions, repeats, axis=0),
            np.repeat(self.weights, repeats, axis=0),
            np.tile(params, (copies, 1)),
        )

    def where(self, chosen: NDArray[np.bool_]) -> Coordinates:
        """Return only the chosen ones."""
        return Coordinates(self.positions[chosen], self.weights[chosen], self.params[chosen])


def choice_coordinates(grid: Grid, choices: Sequence[Choice]) -> Coordinates:
    """Return the coordinates of choices, whose parameters include those of the grid."""
    return Coordinates(
        np.array([choice.indices for choice in choices], np.float64),
        np.array([choice.weights for choice in choices], np.float64),
        param_matrix(grid, [dict(choice.params) for choice in choices]),
    )


def param_matrix(grid: Grid, points: Sequence[Mapping[str, Any]]) -> Matrix:
    """Return the values of the grid's parameters at each point [points x parameters]."""
    rows = [[point[name] for name in grid.values] for point in points]
    return np.array(rows, np.float64).reshape(len(points), len(grid.values))


@dataclass(frozen=True)
class Space:
    """The points of choices whose parameters are on a grid, for one coupling."""

    grid: Grid
    coupling: Coupling

    def points(self, coordinates: Coordinates) -> Matrix:
        """Return the points of choices [choices x dimensions], in length scales."""
        positions, weights, params = coordinates.positions, coordinates.weights, coordinates.params
        left_in = np.where(weights == 0, 1, weights)  # 0 is left out, in all choices compared
        parts = [positions / _POSITIONS, np.log2(left_in)]
        logs, names = np.log2(params), list(self.grid.values)
        others = logs[:, [number for number, name in enumerate(names) if name != "scale"]]
        if "scale" in names:
            scale = logs[:, names.index("scale")] + self.coupling.steps * positions.mean(axis=1)
            parts.append((scale + self.coupling.params * others.sum(axis=1))[:, None])
        return np.hstack([*parts, others / _OCTAVES])
