"""Repositories of one task with several seeds: their spread enters the interval."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from hubmerge.selection.choice import Choice, plain_choice
from hubmerge.selection.cross_fit import CrossFit, FoldSearch
from hubmerge.selection.evaluator import Evaluator
from hubmerge.selection.folds import folds
from hubmerge.selection.policy_results import LAST, PolicyResult
from hubmerge.selection.search import Budget, MeasuredChoice
from hubmerge.selection.seed_spread import SeedSpread, find_seed_spread
from hubmerge.trials import Trial

from .simulated_worlds import World, make_evaluator

CHOSEN, RIVAL = (plain_choice(indices, {"scale": 0.5}) for indices in ((2, 2, 2, 2), (6, 6, 6, 6)))


def cross_fit_of_seeds(seeds: tuple[int | None, ...]) -> tuple[CrossFit, Evaluator]:
    """Both halves chose CHOSEN over RIVAL; neighbours in the first task are one step, two seeds."""
    evaluator = make_evaluator(World(100, 0.85), 0)
    first = evaluator.pool.candidates[0]
    twins = tuple(
        replace(c, source=replace(c.source, step=first[n // 2 * 2].step), seed=seeds[n % 2])
        for n, c in enumerate(first)
    )
    evaluator.pool = replace(evaluator.pool, candidates=(twins, *evaluator.pool.candidates[1:]))
    searches = []
    for fold in folds(2):
        results = {LAST: _result(RIVAL, evaluator.measure(RIVAL))}
        searches.append(FoldSearch(fold, results, _result(CHOSEN, evaluator.measure(CHOSEN))))
    return CrossFit(evaluator.pool, evaluator.measure, tuple(searches)), evaluator


def _result(choice: Choice, trial: Trial) -> PolicyResult:
    return PolicyResult("any", MeasuredChoice(choice, trial), 0)


def test_the_spread_is_the_deviation_of_the_gain_between_seeds() -> None:
    fit, evaluator = cross_fit_of_seeds((0, 1))
    measure = evaluator.measure
    gains = [
        measure(CHOSEN.with_candidate(0, 2 + seed)).accuracy
        - measure(RIVAL.with_candidate(0, 6 + seed)).accuracy
        for seed in (0, 1)
    ]
    spread = find_seed_spread(fit, evaluator, LAST, Budget())
    assert spread is not None
    assert spread.freedom == 1
    assert spread.deviation == pytest.approx(abs(gains[0] - gains[1]) / math.sqrt(2))


@pytest.mark.parametrize("seeds", [(None, None), (0, 0), (0, None)])
def test_without_a_second_seed_there_is_no_spread(seeds: tuple[int | None, ...]) -> None:
    assert find_seed_spread(*cross_fit_of_seeds(seeds), LAST, Budget()) is None


def test_a_budget_that_ends_leaves_the_seeds_out() -> None:
    fit, evaluator = cross_fit_of_seeds((0, 1))
    assert find_seed_spread(fit, evaluator, LAST, Budget(evaluator.merges)) is None


def test_the_spread_widens_the_interval_and_keeps_the_gain() -> None:
    value, low, high = SeedSpread(0.01, 4).widen((0.05, 0.02, 0.09))
    assert value == 0.05
    assert low == pytest.approx(0.05 - math.hypot(0.03, 0.02776), abs=1e-5)
    assert high == pytest.approx(0.05 + math.hypot(0.04, 0.02776), abs=1e-5)
    # 2.0086 is the 97.5 % quantile at 50 degrees of freedom, not 1.96.
    assert SeedSpread(0.01, 50).widen((0.0, 0.0, 0.0))[2] == pytest.approx(0.020086, abs=1e-6)
