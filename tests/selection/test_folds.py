"""Folds are views of trials: which rows they hold, and what a search on them can see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hubmerge.selection.choice import plain_choice
from hubmerge.selection.evaluator import Evaluator
from hubmerge.selection.folds import Fold, FoldEvaluator, folds, pool_trials
from hubmerge.selection.grids import find_grid
from hubmerge.selection.policy_results import LAST
from hubmerge.selection.procedure import Procedure
from hubmerge.selection.search import Budget, OutOfBudget
from hubmerge.selection.task_split import EvaluatedRows

from .builders import make_trial
from .simulated_worlds import METHOD, World, make_evaluator

CHOICE = plain_choice((1, 2, 3, 4), {"scale": 0.5})
PROCEDURE = Procedure(find_grid(METHOD.name), (LAST, "uniform", "coordinate"), LAST)


@pytest.fixture
def full() -> Evaluator:
    return make_evaluator(World(40, 0.85), 0)


def test_a_search_sees_the_rows_outside_its_fold() -> None:
    trial = make_trial("one", a="11010", b="01")
    first, second = Fold(0, 2).search_rows(trial), Fold(1, 2).search_rows(trial)
    assert (first.rows["a"].bits, first.rows["a"].of) == ("11", 2)
    assert (second.rows["a"].bits, second.rows["a"].of) == ("100", 3)
    assert (first.rows["b"].bits, second.rows["b"].bits) == ("1", "0")


@pytest.mark.parametrize("count", [2, 3, 5])
def test_folds_hold_every_row_once(count: int) -> None:
    """Each row, the only one that is right, is hidden from the search of one fold."""
    for row in range(16):
        trial = make_trial("one", a="0" * row + "1" + "0" * (15 - row))
        seen = ["1" in fold.search_rows(trial).rows["a"].bits for fold in folds(count)]
        assert seen == [number != row % count for number in range(count)]


def test_a_pooled_trial_has_the_rows_of_each_fold_from_its_own_trial() -> None:
    pooled = pool_trials([make_trial("one", a="11111"), make_trial("other", a="00000")])
    assert pooled.rows["a"].bits == "10101"
    same = make_trial("one", a="11010")
    assert pool_trials([same, same]) == same


def test_rows_of_the_fold_cannot_change_what_its_search_chooses() -> None:
    """All rows of fold 0 are turned around, and the search outside it makes the same choice."""
    chosen = []
    for is_turned in (False, True):
        evaluator = make_evaluator(World(40, 0.85), 3)
        if is_turned:
            for split in evaluator._splits:
                _turn_rows(split, Fold(0, 2))
        results = PROCEDURE.run(FoldEvaluator(evaluator, Fold(0, 2)), Budget())
        chosen.append(PROCEDURE.choose(results).result.choice)
    assert chosen[0] == chosen[1]


def _turn_rows(split: Any, fold: Fold) -> None:
    evaluate = split.evaluate

    def turned(rows: Sequence[int], folder: Path, head: None) -> EvaluatedRows:
        bits = evaluate(rows, folder, head).values
        return EvaluatedRows(
            "".join(
                "10"[int(bit)] if row % fold.count == fold.number else bit
                for row, bit in zip(rows, bits, strict=True)
            )
        )

    split.evaluate = turned


def test_a_fold_measures_nothing_that_was_measured_before(full: Evaluator) -> None:
    full.measure(CHOICE)
    fold = FoldEvaluator(full, Fold(1, 2), limit=1)
    assert fold.measure(CHOICE, 0.5).rows_measured == 4 * 10
    assert (fold.rows, fold.row_counts[full.pool.tasks[0].id]) == (80, 20)
    assert (fold.merges, full.merges) == (1, 1)
    with pytest.raises(OutOfBudget):
        fold.measure(CHOICE.with_params(scale=0.3))


def test_the_smallest_share_has_a_row_of_each_task(full: Evaluator) -> None:
    for fold in folds(2):
        trial = FoldEvaluator(full, fold).measure(CHOICE, 0.001)
        assert all(len(results.bits) == 1 for results in trial.rows.values())
