"""Cross-fitted gains and controls in simulated worlds, whose true accuracies are known."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import pytest

from hubmerge.selection import noise
from hubmerge.selection.budget_shares import BudgetShares
from hubmerge.selection.controls import ControlRuns, Controls, predict_gain
from hubmerge.selection.cross_fit import CrossFit, cross_fit
from hubmerge.selection.evaluator import Evaluator
from hubmerge.selection.evidence import find_outcome
from hubmerge.selection.fold_gain import fold_gain
from hubmerge.selection.grids import find_grid
from hubmerge.selection.policy_results import LAST, PolicyResult
from hubmerge.selection.procedure import Procedure
from hubmerge.selection.search import Budget

from .simulated_worlds import METHOD, World, make_evaluator

NO_SIGNAL = World(40, 0.85, own_accuracy=0.6, base_accuracy=0.6)
SIGNAL = World(200, 0.95, height=0.15)
PROCEDURE = Procedure(find_grid(METHOD.name), (LAST, "uniform", "coordinate"), LAST)


Fitted = tuple[Evaluator, PolicyResult, PolicyResult, CrossFit]


def run(world: World, seed: int, shares: BudgetShares | None = None) -> Fitted:
    """Return the evaluator, the choice and the rival on all rows, and the cross-fit."""
    if shares is not None:
        return fitted(world, seed, shares)
    # A search takes seconds: each is made once, and every test gets a copy that it may go on with.
    return copy.deepcopy(fitted_once(world, seed))


@cache
def fitted_once(world: World, seed: int) -> Fitted:
    return fitted(world, seed, BudgetShares())


def fitted(world: World, seed: int, shares: BudgetShares) -> Fitted:
    evaluator = make_evaluator(world, seed)
    results = PROCEDURE.run(evaluator, shares.search())
    fit = cross_fit(PROCEDURE, evaluator, shares.fold)
    assert fit is not None
    return evaluator, PROCEDURE.choose(results), results.results[LAST], fit


@pytest.mark.slow
def test_without_any_gain_the_rows_that_chose_see_one_and_the_others_do_not() -> None:
    same, held_out = [], []
    for seed in range(4):
        _, chosen, last, fit = run(NO_SIGNAL, seed)
        same.append(noise.difference(chosen.result.trial, last.result.trial, 0))
        held_out.append(fit.gains(LAST, "select", 0)["select"])
    assert any(gain.low > 0 for gain in same)
    assert sum(gain.value for gain in same) / 4 > 0.04
    assert sum(low > 0 for _, low, _ in held_out) <= 1
    assert abs(sum(value for value, _, _ in held_out) / 4) < 0.04


def test_a_true_gain_is_found() -> None:
    _, chosen, last, fit = run(SIGNAL, 0)
    true = SIGNAL.true_accuracy
    truth = true(chosen.result.choice) - true(last.result.choice)
    value, low, high = fit.gains(LAST, chosen.name, 0)[chosen.name]
    assert low > 0
    assert abs(value - truth) < high - low  # four standard errors
    rival = fit.policy(LAST)
    assert rival is not None
    assert value == pytest.approx(fit.chosen().accuracy - rival.accuracy)


def test_controls_of_experts_without_signal() -> None:
    """A merge of them is no better than the base, and no expert adds anything."""
    controls, fit = measure_controls(NO_SIGNAL)
    gains = {c.kind: fold_gain(fit.chosen(), c.trial, 0) for c in controls.measured}
    assert find_outcome(gains["base"]) != "gain"
    assert find_outcome(gains["without"]) != "gain"


def test_controls_of_experts_that_know_their_task() -> None:
    controls, fit = measure_controls(SIGNAL)
    kinds = [control.kind for control in controls.measured]
    assert kinds == ["base", "expert", *["without"] * 4, *["random"] * 3]
    gains = [fold_gain(fit.chosen(), c.trial, 0) for c in controls.measured]
    assert all(find_outcome(gain) == "gain" for gain in gains[:6])
    assert all(value > 0 for value, _, _ in gains[6:])
    assert controls.left_out == ()
    assert controls.predicted_gain is not None
    assert controls.predicted_gain > 0


def test_controls_that_the_budget_does_not_reach_are_listed() -> None:
    evaluator, chosen, _, fit = run(SIGNAL, 0)
    most = evaluator.merges + 2
    controls = ControlRuns(
        fit, evaluator, chosen.result.choice, PROCEDURE.grid, Budget(most), 0
    ).run()
    assert [control.kind for control in controls.measured][:1] == ["base"]
    assert controls.left_out[0] == "expert"
    assert evaluator.merges <= most


def test_the_parts_of_a_budget_add_up() -> None:
    shares = BudgetShares(merges=60)
    evaluator, chosen, _, fit = run(SIGNAL, 0, shares)
    assert evaluator.merges <= 45
    budget = shares.controls()
    ControlRuns(fit, evaluator, chosen.result.choice, PROCEDURE.grid, budget, 0).run()
    assert evaluator.merges <= 60
    assert [shares.fold(number)[1] for number in (0, 1)] == [37, 45]


def test_a_task_with_three_rows_cannot_be_divided() -> None:
    evaluator = make_evaluator(replace(NO_SIGNAL, rows=3), 0)
    PROCEDURE.run(evaluator, Budget())
    assert cross_fit(PROCEDURE, evaluator, BudgetShares().fold) is None


def test_a_policy_that_the_budget_of_a_fold_does_not_reach_is_not_judged() -> None:
    asked = replace(PROCEDURE, policies=(LAST, "rescale"), requested="rescale")
    evaluator = make_evaluator(NO_SIGNAL, 0)
    assert cross_fit(asked, evaluator, lambda number: (Budget(0), 0)) is None


@pytest.mark.parametrize(("gain", "outcome"), [
    ((0.02, 0.01, 0.03), "gain"),
    ((0.02, -0.01, 0.05), "inconclusive"),
    ((-0.02, -0.03, -0.01), "loss"),
    ((0.0, 0.0, 0.0), "inconclusive"),
    (None, "inconclusive"),
])  # fmt: skip
def test_the_outcome_follows_from_the_interval(
    gain: tuple[float, float, float] | None, outcome: str
) -> None:
    assert find_outcome(gain) == outcome


def test_the_scaling_law_predicts_what_it_was_fitted_to() -> None:
    """Error 0.3 + 0.4 / (k + 1): 0.7, 0.5, 0.4 at 0, 1 and 3 experts, and 0.38 at 4."""
    assert predict_gain({0: 0.3, 1: 0.5, 3: 0.6}) == pytest.approx(0.4 / 4 - 0.4 / 5)
    assert predict_gain({0: 0.6, 1: 0.5, 3: 0.4}) == 0  # experts that do harm add nothing
    assert predict_gain({0: 0.3, 3: 0.6}) is None


def measure_controls(world: World) -> tuple[Controls, CrossFit]:
    evaluator, chosen, _, fit = run(world, 0)
    runs = ControlRuns(fit, evaluator, chosen.result.choice, PROCEDURE.grid, Budget(), 0)
    return runs.run(), fit
