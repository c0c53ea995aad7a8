"""Searching a small pool whose best choice is known: late steps help their task and harm others.

Each row of task t reads one number of block t of a single tensor. An expert raises its own block
and lowers the others; a row is correct if its number is high enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hubmerge.merging.registry import method
from hubmerge.selection import noise
from hubmerge.selection.choice import plain_choice
from hubmerge.selection.evaluator import Evaluator
from hubmerge.selection.grids import GRIDS
from hubmerge.selection.memory_merge import MemoryMerger
from hubmerge.selection.policies import coordinate, last, uniform, weights
from hubmerge.selection.policy_results import LAST, PolicyResults, policy_order
from hubmerge.selection.pool import Pool
from hubmerge.selection.report import earliest_of_tied, is_tied, make_swaps
from hubmerge.selection.row_jobs import RowEvaluator
from hubmerge.selection.search import Budget, OutOfBudget, Search
from hubmerge.selection.task_split import EvaluatedRows
from hubmerge.tasks.task import Task
from hubmerge.trials import TrialLog

from .builders import make_pool

ROWS = 200
GAINS = {1: 1.0, 2: 2.0, 4: 3.0, 8: 3.2}
HARMS = ({1: 0.0, 2: 0.1, 4: 0.4, 8: 2.0}, {1: 0.0, 2: 0.1, 4: 1.8, 8: 3.0})  # of each expert
THRESHOLDS = np.linspace(0, 3, ROWS)


class FakeModel:
    """A model with a single tensor, into which merges are loaded."""

    classifier = None

    def __init__(self, base: np.ndarray) -> None:
        self.base = self.now = base

    def load_tensor(self, name: str, values: np.ndarray) -> None:
        if name == "x":
            self.now = values

    def finish_merge(self, loaded: set[str]) -> None:
        if "x" not in loaded:
            self.now = self.base


class FakeSplit:
    """A task whose rows read numbers of its block; `evaluated` counts the evaluated rows.

    `counted` are the rows whose texts were counted.
    """

    def __init__(self, task: Task, number: int, loaded_model: FakeModel) -> None:
        self.task, self.number, self.loaded_model = task, number, loaded_model
        self.row_order = np.random.default_rng(number).permutation(ROWS).tolist()
        self.evaluated = self.counted = 0

    def row_count(self, share: float) -> int:
        return max(1, round(share * ROWS))

    def evaluate(self, rows: Sequence[int], folder: Path, head: None) -> EvaluatedRows:
        self.evaluated += len(rows)
        block = self.loaded_model.now[self.number]
        bits = "".join("01"[bool(block[row] >= THRESHOLDS[row])] for row in rows)
        return EvaluatedRows(bits)

    def count_texts(self, evaluated: EvaluatedRows) -> None:
        self.counted += len(evaluated.values)


def expert_tensors(task: int, step: int) -> dict[str, np.ndarray]:
    values = np.full((2, ROWS), -HARMS[task][step], np.float32)
    values[task] = GAINS[step]
    return {"x": values}


class SearchSetup:
    """Two tasks, where the experts of the second do more harm, and a search by task arithmetic."""

    def __init__(self, root: Path, log: Path | None = None) -> None:
        base = {"x": np.zeros((2, ROWS), np.float32)}
        experts = [[(step, expert_tensors(task, step)) for step in GAINS] for task in (0, 1)]
        self.pool: Pool = make_pool(root, base, experts, own=[[0.4, 0.6, 0.9, 0.95]] * 2)
        self.model, self.method = FakeModel(base["x"]), method("task_arithmetic")
        self.splits: Any = [
            FakeSplit(task, number, self.model) for number, task in enumerate(self.pool.tasks)
        ]
        self.log = TrialLog(log or root / "trials.jsonl")

    def search(
        self,
        merges: int | None = None,
        exhaustive: bool = False,
        rows: RowEvaluator | None = None,
    ) -> Search:
        merger, splits = MemoryMerger(self.pool, self.method), self.splits
        evaluator = Evaluator(self.pool, merger, self.method, splits, self.log, "validation", rows)
        grid = GRIDS[self.method.name]
        return Search(evaluator, grid, Budget(merges), exhaustive=exhaustive)


@pytest.fixture
def setup(tmp_path: Path) -> SearchSetup:
    return SearchSetup(tmp_path)


def test_separate_steps_beat_the_best_common_step(setup: SearchSetup) -> None:
    search = setup.search()
    common = max(uniform(search), key=lambda measured: measured.accuracy)
    separate = coordinate(search, common)
    assert separate.accuracy > common.accuracy > last(search).accuracy
    assert setup.pool.steps(separate.choice) == (4, 2)  # the harmful expert is stopped earlier


def test_weights_are_tried_too(setup: SearchSetup) -> None:
    search = setup.search()
    start = last(search)
    weighted = weights(search, start)
    assert weighted.accuracy > start.accuracy
    assert weighted.choice.indices == start.choice.indices


def test_a_climb_is_as_good_as_the_whole_grid(tmp_path: Path) -> None:
    quick, exhaustive = SearchSetup(tmp_path / "quick"), SearchSetup(tmp_path / "whole")
    climbed, swept = quick.search(), exhaustive.search(exhaustive=True)
    assert last(climbed).accuracy == pytest.approx(last(swept).accuracy, abs=0.005)
    assert climbed.evaluator.merges < swept.evaluator.merges / 2


def test_a_race_stops_a_poor_challenger_early_and_keeps_a_winner(setup: SearchSetup) -> None:
    search = setup.search()
    best = search.measure_all_rows(plain_choice((2, 1), {"scale": 1.0}))
    poor = best.choice.with_params(scale=0.05)
    before = sum(split.evaluated for split in setup.splits)
    assert search.better_of(poor, best) is best
    assert sum(split.evaluated for split in setup.splits) - before == 2 * ROWS // 8
    assert search.better_of(best.choice, search.measure_all_rows(poor)).choice == best.choice


def test_trials_in_the_log_are_not_measured_again(tmp_path: Path) -> None:
    first = SearchSetup(tmp_path / "a")
    again = SearchSetup(tmp_path / "b", log=first.log.path)
    search = first.search()
    chosen = coordinate(search, last(search))
    search = again.search()
    chosen_again = coordinate(search, last(search))
    assert chosen_again.choice == chosen.choice
    assert sum(split.evaluated for split in again.splits) == 0
    assert search.evaluator.merges > 10  # they count, so that a budget ends at the same point


def test_complete_trials_in_the_log_change_no_decision(tmp_path: Path) -> None:
    """A challenger with a complete trial in the log is still raced on its first rows."""
    complete = SearchSetup(tmp_path / "a")
    raced = SearchSetup(tmp_path / "b", log=complete.log.path)
    fresh = SearchSetup(tmp_path / "c")
    for choice in (plain_choice((a, b), {"scale": 0.4}) for a in range(4) for b in range(4)):
        complete.search().measure_all_rows(choice)
    searches = [raced.search(), fresh.search()]
    chosen = [coordinate(search, last(search)) for search in searches]
    assert chosen[0].choice == chosen[1].choice
    assert searches[0].evaluator.rows_by_recipe == searches[1].evaluator.rows_by_recipe


def test_a_budget_ends_the_search_and_keeps_the_results(setup: SearchSetup) -> None:
    search = setup.search(merges=9)
    results = PolicyResults(search)
    for name in policy_order(setup.pool):
        results.run(name)
    assert search.evaluator.merges == 9
    assert results.cut[0] in ("best-expert", "proxy", "uniform")
    assert LAST in results.results
    with pytest.raises(OutOfBudget):
        search.measure_all_rows(plain_choice((0, 0), {"scale": 0.01}))


def test_every_policy_has_a_result(setup: SearchSetup) -> None:
    results = PolicyResults(setup.search())
    for name in policy_order(setup.pool):
        results.run(name)
    best = {name: result.result for name, result in results.results.items()}
    assert [*best] == [
        "last", "best-expert", "proxy", "uniform", "coordinate", "average-last", "weights", "joint",
    ]  # fmt: skip
    assert setup.pool.steps(best["last"].choice) == (8, 8)
    assert setup.pool.steps(best["best-expert"].choice) == (8, 8)
    assert best["proxy"].accuracy > best["last"].accuracy
    assert best["joint"].accuracy >= best["coordinate"].accuracy > best["uniform"].accuracy
    assert [setup.pool.steps(result.choice)[0] for result in results.uniform][:4] == [4, 2, 8, 1]


def test_the_earliest_of_equals_wins(setup: SearchSetup) -> None:
    results = PolicyResults(setup.search())
    for name in (LAST, "uniform", "coordinate"):
        results.run(name)
    policies = list(results.results.values())
    best = max(policies, key=lambda policy: policy.result.accuracy)
    assert earliest_of_tied(policies, setup.pool, band=0).name == best.name
    earliest = earliest_of_tied(policies, setup.pool, band=1e9)
    steps = [sum(setup.pool.steps(policy.result.choice)) for policy in policies]
    assert sum(setup.pool.steps(earliest.result.choice)) == min(steps)


def test_the_neighbours_of_a_choice(setup: SearchSetup) -> None:
    results = PolicyResults(setup.search())
    results.run(LAST)
    results.run("coordinate")
    chosen = results.results["coordinate"].result
    swaps = make_swaps(results, chosen, band=1.0)
    for task, index in zip(setup.pool.tasks, chosen.choice.indices, strict=True):
        row = swaps[task.id]
        assert row[index].merged == pytest.approx(chosen.accuracy)
        assert row[index].tied
        assert all(
            swap.merged is None or swap.merged <= chosen.accuracy + 1e-9 or not swap.tied
            for swap in row
        )
    assert {swap.own for swap in swaps[setup.pool.tasks[0].id]} == {0.4, 0.6, 0.9, 0.95}


def test_with_one_checkpoint_each_only_weights_and_rescale_run(tmp_path: Path) -> None:
    base = {"x": np.zeros((2, ROWS), np.float32)}
    setup = SearchSetup(tmp_path / "many")
    experts = [[(8, expert_tensors(task, 8))] for task in (0, 1)]
    setup.pool = make_pool(tmp_path / "one", base, experts)
    search = setup.search()
    results = PolicyResults(search)
    for name in policy_order(setup.pool):
        results.run(name)
    assert list(results.results) == ["last", "weights", "rescale"]
    assert results.results["rescale"].result.accuracy > results.results["last"].result.accuracy


def test_a_trial_on_other_rows_is_not_reused(tmp_path: Path) -> None:
    setup = SearchSetup(tmp_path)
    choice = plain_choice((0, 0), {"scale": 0.4})
    setup.search().measure_all_rows(choice)
    setup.splits[0].row_order = setup.splits[0].row_order[:100]
    before = setup.splits[0].evaluated
    setup.search().measure_all_rows(choice)
    assert setup.splits[0].evaluated - before == 100
    assert setup.splits[0].counted == setup.splits[0].evaluated


def test_results_depend_on_requests_and_not_on_the_log(setup: SearchSetup) -> None:
    choice = plain_choice((0, 0), {"scale": 0.4})
    setup.search().measure_all_rows(choice)
    again = setup.search().evaluator
    assert again.find_trial(choice) is None
    part = again.measure(choice, 0.25)
    assert part.rows_measured == 2 * ROWS // 4
    assert again.find_trial(choice) == part


def test_a_single_expert_is_measured_separately_for_each_task(setup: SearchSetup) -> None:
    evaluator = setup.search().evaluator
    accuracy = evaluator.measure_expert(0, 1).accuracy
    swapped = replace(setup.pool, candidates=setup.pool.candidates[::-1])
    swapped_evaluator = Evaluator(
        swapped,
        MemoryMerger(swapped, setup.method),
        setup.method,
        setup.splits,
        setup.log,
        "validation",
    )
    assert (
        swapped_evaluator.measure_expert(1, 1).accuracy != accuracy
    )  # the same expert on the other task


def test_tied_is_within_the_noise(setup: SearchSetup) -> None:
    search = setup.search()
    best = coordinate(search, last(search))
    assert is_tied(best, best, band=0)
    far = search.measure_all_rows(plain_choice((0, 0), {"scale": 0.05}))
    assert not is_tied(far, best, band=1)
    assert noise.difference(best.trial, far.trial, 0).low > 0


def test_the_order_of_policies(setup: SearchSetup) -> None:
    pool = setup.pool
    assert policy_order(pool) == [
        "last", "best-expert", "proxy", "uniform", "coordinate", "average-last", "weights", "joint",
    ]  # fmt: skip
    stopped = replace(
        pool,
        candidates=tuple(
            (*steps[:-1], replace(steps[-1], stopped_early=True)) for steps in pool.candidates
        ),
    )
    assert policy_order(stopped)[:6] == [
        "last", "early-stop", "best-expert", "proxy", "coordinate", "uniform",
    ]  # fmt: skip
    assert policy_order(pool, "rescale")[:2] == ["last", "rescale"]
    order = policy_order(pool, "weights", is_locked=True)
    assert order[:4] == ["last", "locked", "uniform", "weights"]
    assert policy_order(stopped, "coordinate")[4] == "coordinate"
