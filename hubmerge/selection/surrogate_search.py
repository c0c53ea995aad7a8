"""A search in which a surrogate of all trials so far says which choice to try next.

Proposals are the neighbours of good choices, each with the points of the method's grid that have a
similar scale. So steps, scale and density move together. A proposal is raced against the best, as
in every policy. Only trials of this search count, not what a log has from earlier ones, and nothing
is drawn at random: the same trials give the same proposals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hubmerge.selection.choice import Choice
from hubmerge.selection.memory_merge import is_of_layers
from hubmerge.selection.moves import Moves, Probes
from hubmerge.selection.objective import value
from hubmerge.selection.search import MeasuredChoice, Search
from hubmerge.selection.search_space import (
    COUPLINGS,
    Matrix,
    Space,
    choice_coordinates,
    param_matrix,
)
from hubmerge.selection.surrogate import Surrogate
from hubmerge.trials import Trial

PATIENCE = 24  # proposals in a row that are not better
_CENTRES = 3  # good choices whose neighbours are proposed
_APART = 3  # positions in the lists of steps, at least, between two of them
_NEAR = 0.75  # octaves between the scale of a proposal and that of the choice it comes from
_FLOOR = 0.1  # accuracies further below the best count as this far
_EQUAL = 1e-9  # expected improvements that differ by less are equal

Trials = Mapping[Choice, Trial]


def search_by_surrogate(
    search: Search,
    start: MeasuredChoice,
    moves: Moves,
    patience: int = PATIENCE,
    probes: Probes | None = None,
) -> MeasuredChoice:
    """Try what is expected to gain most, until `patience` proposals in a row are not better.

    Before that, every probe of the best choice is tried once: what they gain and lose shows the
    surrogate the way.
    """
    best, failures = start, 0
    for probe in probes(search.pool) if probes else ():
        probed = probe(best.choice)
        if probed != best.choice:
            best = search.better_of(probed, best)
    while failures < patience:
        choice = propose(search, best, moves)
        if choice is None:
            break
        better = search.better_of(choice, best)
        failures = failures + 1 if better is best else 0
        best = better
    return best


def propose(search: Search, best: MeasuredChoice, moves: Moves) -> Choice | None:
    """Return the untried neighbour with the largest expected improvement, the earliest of equals.

    None if there is none from which any improvement is expected.
    """
    known = {best.choice: best.trial} | _comparable(search.trials, best.choice)
    neighbours = _neighbours(search, known, best, moves)
    grid = list(search.grid.points)
    is_near = _is_near(neighbours, grid)
    surrogate, space = _fit(search, known, best)
    params = param_matrix(search.grid, grid)
    coordinates = choice_coordinates(search.grid, neighbours).with_grid(params).where(is_near)
    reached = value(best.trial, search.objective)
    expected = surrogate.expected_improvement(space.points(coordinates), reached)
    lateness = np.repeat([search.pool.lateness(choice) for choice in neighbours], len(grid))
    numbers = np.flatnonzero(is_near)
    for index in np.lexsort((lateness[is_near], -np.round(expected / _EQUAL))):
        if expected[index] < _EQUAL:
            break
        neighbour, point = divmod(int(numbers[index]), len(grid))
        choice: Choice = neighbours[neighbour].with_params(**grid[point])
        if choice not in known:
            return choice
    return None


def _fit(search: Search, known: Trials, best: MeasuredChoice) -> tuple[Surrogate, Space]:
    """Return the surrogate of all trials with the coupling that makes them likeliest."""
    values, variances = _estimates(search, known, best)
    coordinates = choice_coordinates(search.grid, list(known))
    fits = []
    for coupling in COUPLINGS if "scale" in search.grid.values else COUPLINGS[:1]:
        space = Space(search.grid, coupling)
        fits.append((Surrogate(space.points(coordinates), values, variances), space))
    return max(fits, key=lambda fit: fit[0].likelihood)


def _comparable(trials: Trials, choice: Choice) -> dict[Choice, Trial]:
    """Return the trials of choices that differ only in what the surrogate knows of."""
    same = _unknown(choice)
    return {other: trial for other, trial in trials.items() if _unknown(other) == same}


def _unknown(choice: Choice) -> tuple[object, ...]:
    """Return what the surrogate does not know of."""
    of_layers = [pair for pair in choice.params if is_of_layers(pair[0])]
    left_out = [not weight for weight in choice.weights]
    return choice.keep, choice.intruders, choice.spans, choice.by_loss, of_layers, left_out


def _is_near(
    neighbours: Sequence[Choice], grid: Sequence[Mapping[str, float]]
) -> NDArray[np.bool_]:
    """Return, for every neighbour with every point, whether its scale is near the point's."""
    if not grid or "scale" not in grid[0]:
        return np.ones(len(neighbours) * len(grid), np.bool_)
    own = np.log2([dict(choice.params)["scale"] for choice in neighbours])
    scales = np.log2([point["scale"] for point in grid])
    return np.asarray(np.abs(own[:, None] - scales[None, :]) <= _NEAR).reshape(-1)


def _neighbours(search: Search, known: Trials, best: MeasuredChoice, moves: Moves) -> list[Choice]:
    """Return the neighbours of the best choice and of other good ones that are not near it."""
    complete = [choice for choice, trial in known.items() if trial.is_complete]
    complete.sort(key=lambda choice: search.rank(MeasuredChoice(choice, known[choice])))
    centres = [best.choice]
    for choice in reversed(complete):
        if len(centres) < _CENTRES and all(_steps_apart(choice, c) >= _APART for c in centres):
            centres.append(choice)
    return list(dict.fromkeys(moved for c in centres for moved in moves(search.pool, c)))


def _steps_apart(choice: Choice, other: Choice) -> int:
    return sum(abs(a - b) for a, b in zip(choice.indices, other.indices, strict=True))


def _estimates(search: Search, known: Trials, best: MeasuredChoice) -> tuple[Matrix, Matrix]:
    """Return values of the objective and their variances.

    A trial that was stopped early is compared with the best on the rows that it has. What is
    certainly poor counts as exactly `_FLOOR` behind.
    """
    floor = value(best.trial, search.objective) - _FLOOR
    pairs = [search.estimate(choice, trial, best.trial) for choice, trial in known.items()]
    guesses, variances = np.array(pairs).T
    doubt = np.maximum(np.sqrt(variances) - np.maximum(floor - guesses, 0) / 2, 0)
    return np.maximum(guesses, floor), doubt**2
