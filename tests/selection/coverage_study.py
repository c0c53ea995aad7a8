"""How often a selection is right about its gain, over many simulated worlds.

    python -m tests.selection.coverage_study --worlds 400 --rows 100 --correlation 0.85

Three ways to judge the same searches are compared: on the rows that they chose by (`same rows`), by
the bootstrap of the largest gain over every logged trial (`maximum`), and by cross-fitting, which
is what `hubmerge select` reports. `known` compares the truly best choice, as if it had been known
beforehand: no selection can be conclusive more often. The output is one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from hubmerge.selection import noise
from hubmerge.selection.cross_fit import CrossFit, cross_fit
from hubmerge.selection.grids import find_grid
from hubmerge.selection.policy_results import LAST, policy_order
from hubmerge.selection.pool import Choice, plain_choice
from hubmerge.selection.procedure import Procedure
from hubmerge.selection.search import Budget
from hubmerge.trials import Trial

from .simulated_worlds import METHOD, TASKS, World, make_evaluator

_RESAMPLES = 400


@dataclass(frozen=True)
class Outcome:
    """A gain over the last steps with its interval, and the true one; in points."""

    gain: float
    low: float
    high: float
    truth: float


@dataclass(frozen=True)
class WorldResult:
    """What one world gave: an outcome for each way to judge, and how many merges were measured.

    `locked_truth` is the true gain of the choice that was made on all rows.
    """

    same_rows: Outcome
    cross_fitted: Outcome
    known: Outcome
    maximum_low: float
    locked_truth: float
    merges: int
    fold_merges: int


def simulate(world: World, seed: int, budget: int | None = None) -> WorldResult:
    """Run the selection of one world on all rows and on each fold."""
    evaluator = make_evaluator(world, seed)
    policies = tuple(policy_order(evaluator.pool))
    procedure = Procedure(find_grid(METHOD.name), policies, LAST)
    results = procedure.run(evaluator, Budget(budget))
    chosen, last = procedure.choose(results).result, results.results[LAST].result
    merges, trials = evaluator.merges, evaluator.complete_trials
    fit = cross_fit(procedure, evaluator, lambda number: (Budget(budget), None))
    assert fit is not None
    best = plain_choice((world.peak,) * len(TASKS), {"scale": 0.5})
    known = evaluator.measure(best)
    return WorldResult(
        same_rows=_outcome(chosen.trial, last.trial, _gain(world, chosen.choice, last.choice)),
        cross_fitted=_cross_fitted(world, fit),
        known=_outcome(known, last.trial, _gain(world, best, last.choice)),
        maximum_low=_maximum_low(chosen.trial, last.trial, trials),
        locked_truth=100 * _gain(world, chosen.choice, last.choice),
        merges=merges,
        fold_merges=evaluator.merges - merges,
    )


def _cross_fitted(world: World, fit: CrossFit) -> Outcome:
    rival = fit.policy(LAST)
    assert rival is not None
    truths = [
        _gain(world, search.chosen.result.choice, search.results[LAST].result.choice)
        for search in fit.searches
    ]
    return _outcome(fit.chosen(), rival, sum(truths) / len(truths))


def _gain(world: World, choice: Choice, rival: Choice) -> float:
    return world.true_accuracy(choice) - world.true_accuracy(rival)


def _outcome(trial: Trial, rival: Trial, truth: float) -> Outcome:
    gain = noise.difference(trial, rival, 0)
    return Outcome(100 * gain.value, 100 * gain.low, 100 * gain.high, 100 * truth)


def _maximum_low(chosen: Trial, rival: Trial, trials: list[Trial]) -> float:
    """Return the gain minus the 97.5 % quantile of the largest resampled error of any trial."""
    random, errors = np.random.default_rng(0), np.zeros((len(trials), _RESAMPLES))
    for task, results in rival.rows.items():
        bits = np.array([[*trial.rows[task].correct] for trial in trials], float)
        gains = bits - np.array(results.correct, float)
        rows = gains.shape[1]
        drawn = random.multinomial(rows, np.ones(rows) / rows, _RESAMPLES) / rows
        errors += (gains - gains.mean(1, keepdims=True)) @ drawn.T / len(rival.rows)
    largest = float(np.quantile(errors.max(0), 0.975))
    return 100 * (noise.gain(chosen, rival) - largest)


def summarize(results: list[WorldResult]) -> dict[str, float]:
    """Return shares of worlds, and means in points."""
    fits = [result.cross_fitted for result in results]
    same = [result.same_rows for result in results]
    locked = [result.locked_truth for result in results]
    return {
        "worlds": len(results),
        "true_gain": _mean(locked),
        "same_rows_conclusive": _mean(o.low > 0 for o in same),
        "same_rows_covers": _mean(_covers(o, o.truth) for o in same),
        "same_rows_bias": _mean(o.gain - o.truth for o in same),
        "maximum_conclusive": _mean(result.maximum_low > 0 for result in results),
        "conclusive": _mean(o.low > 0 for o in fits),
        "loss": _mean(o.high < 0 for o in fits),
        "covers": _mean(_covers(o, o.truth) for o in fits),
        "covers_locked": _mean(map(_covers, fits, locked)),
        "bias": _mean(o.gain - o.truth for o in fits),
        "bias_stderr": float(np.std([o.gain - o.truth for o in fits])) / len(fits) ** 0.5,
        "bias_locked": _mean(o.gain - truth for o, truth in zip(fits, locked, strict=True)),
        "known_conclusive": _mean(result.known.low > 0 for result in results),
        "merges": _mean(result.merges for result in results),
        "fold_merges": _mean(result.fold_merges for result in results),
    }


def _covers(outcome: Outcome, truth: float) -> bool:
    return outcome.low <= truth <= outcome.high


def _mean(values: Iterable[float]) -> float:
    return round(float(np.mean([*values])), 4)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=400)
    parser.add_argument("--first", type=int, default=0, help="Seed of the first world.")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--correlation", type=float, default=0.95)
    parser.add_argument("--height", type=float, default=0.0, help="Points that can be gained.")
    parser.add_argument("--budget", type=int)
    arguments = parser.parse_args()
    world = World(arguments.rows, arguments.correlation, arguments.height / 100)
    seeds = range(arguments.first, arguments.first + arguments.worlds)
    results = [simulate(world, seed, arguments.budget) for seed in seeds]
    settings = asdict(world) | {"budget": arguments.budget, "first": arguments.first}
    print(json.dumps(settings | summarize(results)))
