"""A search in which a surrogate of all trials so far says which choice to try next.

Proposals are the neighbours of the best choices, each with every point of the method's grid. So
steps, scale and density move together. A proposal is raced against the best, as in every policy.
Only trials of this search count, not what a log has from earlier ones, and nothing is drawn at
random: the same trials give the same proposals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hubmerge.selection.moves import Moves
from hubmerge.selection.objective import estimate, value
from hubmerge.selection.pool import Choice
from hubmerge.selection.search import MeasuredChoice, Search
from hubmerge.selection.surrogate import Matrix, Surrogate
from hubmerge.trials import Trial

PATIENCE = 16  # proposals in a row that are not better
_CENTRES = 3  # of the best choices whose neighbours are proposed
_FLOOR = 0.1  # accuracies further below the best count as this far
_POSITIONS = 3.0  # in the list of steps: one length scale
_COUPLINGS = (0.0, 0.25, 0.5)  # log2 of the scale falls by so much from one position to the next
_EQUAL = 1e-9  # expected improvements that differ by less are equal

Trials = Mapping[Choice, Trial]


def search_by_surrogate(
    search: Search, start: MeasuredChoice, moves: Moves, patience: int = PATIENCE
) -> MeasuredChoice:
    """Try what is expected to gain most, until `patience` proposals in a row are not better."""
    best, failures = start, 0
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

    None if every neighbour has been tried.
    """
    known = {best.choice: best.trial}
    known |= {c: trial for c, trial in search.trials.items() if _is_comparable(c, best.choice)}
    neighbours = _neighbours(search, known, best, moves)
    grid = list(search.grid.points)
    expected = _expected_improvement(search, known, best, neighbours, grid)
    lateness = np.repeat([search.pool.lateness(choice) for choice in neighbours], len(grid))
    for index in np.lexsort((lateness, -np.round(expected / _EQUAL))):
        choice: Choice = neighbours[index // len(grid)].with_params(**grid[index % len(grid)])
        if choice not in known:
            return choice
    return None


def _is_comparable(choice: Choice, other: Choice) -> bool:
    """Return whether two choices differ only in what the surrogate knows of."""
    return (choice.keep, choice.intruders, choice.spans) == (
        other.keep,
        other.intruders,
        other.spans,
    ) and [weight == 0 for weight in choice.weights] == [weight == 0 for weight in other.weights]


def _neighbours(search: Search, known: Trials, best: MeasuredChoice, moves: Moves) -> list[Choice]:
    complete = [choice for choice, trial in known.items() if trial.is_complete]
    complete.sort(key=lambda choice: search.rank(MeasuredChoice(choice, known[choice])))
    complete.reverse()
    centres = (best.choice, *complete[:_CENTRES])
    return list(dict.fromkeys(moved for c in centres for moved in moves(search.pool, c)))


def _expected_improvement(
    search: Search,
    known: Trials,
    best: MeasuredChoice,
    neighbours: Sequence[Choice],
    grid: Sequence[Mapping[str, float]],
) -> Matrix:
    """Return it for every neighbour with every point of the grid, the grid varying fastest."""
    names = list(search.grid.values)
    values, variances = _estimates(search, known, best)
    measured = [[dict(choice.params)[name] for name in names] for choice in known]
    proposed = [[point[name] for name in names] for point in grid] * len(neighbours)
    repeated = np.repeat(np.arange(len(neighbours)), len(grid))
    scale = names.index("scale") if "scale" in names else None

    def points_of(coupling: float) -> tuple[Matrix, Matrix]:
        return (
            _points(_steps_and_weights(list(known)), measured, scale, coupling),
            _points(_steps_and_weights(neighbours)[:, repeated], proposed, scale, coupling),
        )

    fits = [
        (Surrogate(points, values, variances), others)
        for points, others in map(points_of, _COUPLINGS if scale is not None else (0.0,))
    ]
    surrogate, points = max(fits, key=lambda fit: fit[0].likelihood)
    return surrogate.expected_improvement(points, value(best.trial, search.objective))


def _estimates(search: Search, known: Trials, best: MeasuredChoice) -> tuple[Matrix, Matrix]:
    """Return values of the objective and their variances.

    A trial that was stopped early is compared with the best on the rows that it has.
    """
    floor = value(best.trial, search.objective) - _FLOOR
    estimates = [estimate(trial, best.trial, search.objective) for trial in known.values()]
    values = np.array([max(guess, floor) for guess, _ in estimates])
    return values, np.array([variance for _, variance in estimates])


def _steps_and_weights(choices: Sequence[Choice]) -> Matrix:
    """Return positions in the lists of steps and weights, [2 x choices x tasks]."""
    return np.array(
        [[choice.indices for choice in choices], [choice.weights for choice in choices]]
    )


def _points(
    steps_and_weights: Matrix, params: Sequence[Sequence[float]], scale: int | None, coupling: float
) -> Matrix:
    """Return positions of steps, and log2 of weights and parameters, in length scales.

    Changes grow with training, so the best scale, parameter number `scale`, falls.
    """
    positions, weights = steps_and_weights
    weights = np.where(weights == 0, 1, weights)  # left out, in all of them
    logs = np.log2(np.array(params, dtype=np.float64).reshape(len(positions), -1))
    if scale is not None:
        logs[:, scale] += coupling * positions.mean(axis=1)
    return np.hstack([positions / _POSITIONS, np.log2(weights), logs])
