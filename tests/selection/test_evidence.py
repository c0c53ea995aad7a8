"""Experts that know nothing: real merges of noise, whose selection must end in no gain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hubmerge.merging.registry import method
from hubmerge.selection.choice import plain_choice
from hubmerge.selection.controls import ControlRuns
from hubmerge.selection.cross_fit import CrossFit, FoldSearch, cross_fit
from hubmerge.selection.evaluator import Evaluator
from hubmerge.selection.evidence import find_outcome, with_evidence
from hubmerge.selection.folds import folds
from hubmerge.selection.grids import find_grid
from hubmerge.selection.memory_merge import MemoryMerger
from hubmerge.selection.policy_results import LAST, PolicyResult
from hubmerge.selection.procedure import Procedure
from hubmerge.selection.search import Budget, MeasuredChoice
from hubmerge.trials import TrialLog
from tests.cards.builders import lock

from .builders import make_pool
from .test_search import ROWS, THRESHOLDS, FakeModel, FakeSplit, SearchSetup

NOISE = {1: 0.05, 2: 0.2, 4: 1.0, 8: 4.0}  # of each step: late steps only break the base


def noise_evaluator(root: Path, count: int = 2, name: str = "task_arithmetic") -> Evaluator:
    random = np.random.default_rng(0)
    values = THRESHOLDS + random.normal(0.3, 1.0, (2, ROWS))
    base = {"x": values.astype(np.float32)}
    experts = [
        [
            (step, {"x": (values + random.normal(0, size, (2, ROWS))).astype(np.float32)})
            for step, size in NOISE.items()
        ]
        for _ in range(count)
    ]
    pool, model = make_pool(root, base, experts), FakeModel(base["x"])
    splits: Any = [FakeSplit(task, number % 2, model) for number, task in enumerate(pool.tasks)]
    used = method(name)
    log = TrialLog(root / "trials.jsonl")
    return Evaluator(pool, MemoryMerger(pool, used), used, splits, log, "validation")


def test_noise_that_beats_worse_noise_is_no_gain(tmp_path: Path) -> None:
    evaluator = noise_evaluator(tmp_path)
    procedure = Procedure(find_grid("task_arithmetic"), (LAST, "uniform", "coordinate"), LAST)
    chosen = procedure.choose(procedure.run(evaluator, Budget()))
    fit = cross_fit(procedure, evaluator, lambda number: (Budget(), None))
    assert fit is not None
    gain = fit.gains(LAST, chosen.name, 0)[chosen.name]
    assert find_outcome(gain) == "gain"  # over the last steps, which are worse than the base
    controls = ControlRuns(fit, evaluator, chosen.result.choice, procedure.grid, Budget(), 0).run()
    written = with_evidence(lock(outcome="gain", conclusive=True), fit, controls)
    assert written.outcome == "inconclusive"
    assert not written.conclusive
    older = lock(outcome="gain", conclusive=True, rival="locked")
    fit.searches[0].results["locked"] = fit.searches[0].results[LAST]
    fit.searches[1].results["locked"] = fit.searches[1].results[LAST]
    assert with_evidence(older, fit, controls).conclusive
    assert written.cross_fit is not None
    assert written.cross_fit.accuracy - written.cross_fit.rival > 0
    by_kind = {control.kind: control for control in written.controls}
    assert by_kind["base"].gain[1] <= 0
    assert by_kind["without"].gain[1] <= 0


@pytest.mark.parametrize(
    ("name", "left_out", "tasks"),
    [("average", (2,), "123"), ("average", (1, 2), "23"), ("model_stock", (2,), "3")],
)
def test_no_control_has_fewer_experts_than_the_method_takes(
    tmp_path: Path, name: str, left_out: tuple[int, ...], tasks: str
) -> None:
    """What leaves experts out already is compared only with merges that there are."""
    evaluator = noise_evaluator(tmp_path, 3, name)
    choice = plain_choice((1, 1, 1), {})
    for task in left_out:
        choice = choice.with_weight(task, 0.0)
    soup = PolicyResult("greedy-soup", MeasuredChoice(choice, evaluator.measure(choice)), 1)
    searches = tuple(FoldSearch(fold, {soup.name: soup}, soup) for fold in folds(2))
    fit = CrossFit(evaluator.pool, evaluator.measure, searches)
    controls = ControlRuns(fit, evaluator, choice, find_grid(name), Budget(), 0).run()
    ids = [task.id for task in evaluator.pool.tasks]
    without = [control.name for control in controls.measured if control.kind == "without"]
    assert without == [ids[int(number) - 1] for number in tasks]
    assert controls.predicted_gain is None  # of what number of experts would not be known


def test_an_expert_of_weight_zero_is_left_out_of_a_merge(tmp_path: Path) -> None:
    """The merge without an expert is that of the other one alone, with the same recipe."""
    setup = SearchSetup(tmp_path)
    evaluator = setup.search().evaluator
    both = plain_choice((2, 1), {"scale": 1.0})
    without = both.with_weight(1, 0.0)
    (name, values), *others = evaluator.merger.merged_tensors(without)
    alone = setup.pool.open(setup.pool.candidates[0][2]).read("x")
    assert (name, others) == ("x", [])
    np.testing.assert_array_equal(values, alone)
    assert len(setup.pool.parts(without)) == 1
    assert evaluator.recipe(without) != evaluator.recipe(both)


def test_one_expert_and_the_base_are_measured_on_all_tasks(tmp_path: Path) -> None:
    evaluator = SearchSetup(tmp_path).search().evaluator
    choice = plain_choice((2, 2), {"scale": 1.0})
    base = evaluator.measure_unmerged(choice, None)
    first = evaluator.measure_unmerged(choice, 0)
    own = evaluator.measure_expert(0, 2)
    tasks = [task.id for task in evaluator.pool.tasks]
    assert [*base.rows] == [*first.rows] == tasks
    assert first.accuracies[tasks[0]] == own.accuracy > base.accuracies[tasks[0]]
    assert first.accuracies[tasks[1]] <= base.accuracies[tasks[1]]
    assert evaluator.find_expert_accuracy(0, 2) == own.accuracy  # not the one over all tasks


def test_equal_common_steps_go_to_the_earliest(tmp_path: Path) -> None:
    evaluator = noise_evaluator(tmp_path)
    first = evaluator.pool.candidates
    same = tuple(
        tuple(replace(steps[0], source=replace(steps[0].source, step=s.step)) for s in steps)
        for steps in first
    )
    pool = replace(evaluator.pool, candidates=same)
    merger = MemoryMerger(pool, evaluator.method)
    equal = Evaluator(
        pool, merger, evaluator.method, evaluator._splits, TrialLog(tmp_path / "b"), "validation"
    )
    procedure = Procedure(find_grid("task_arithmetic"), (LAST, "uniform"), LAST, "uniform")
    chosen = procedure.choose(procedure.run(equal, Budget()))
    assert pool.steps(chosen.result.choice) == (1, 1)
