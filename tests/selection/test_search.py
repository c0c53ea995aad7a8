"""Searching in a small world whose best choice is known: late steps help their task, harm others.

Task t's rows look at one number each, of block t of a single tensor. An expert raises its own block
and lowers the others; a row is right when its number is high enough.
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
from hubmerge.selection.evaluator import Evaluator
from hubmerge.selection.grids import GRIDS
from hubmerge.selection.memory_merge import Blender
from hubmerge.selection.policies import coordinate, last, uniform, weights
from hubmerge.selection.policy_results import LAST, Board, order
from hubmerge.selection.pool import Pool, plain_choice
from hubmerge.selection.report import earliest, swaps, tied
from hubmerge.selection.search import Budget, OutOfBudget, Search
from hubmerge.tasks.task import Task
from hubmerge.trials import TrialLog

from .worlds import make_pool

ROWS = 200
GAINS = {1: 1.0, 2: 2.0, 4: 3.0, 8: 3.2}
HARMS = ({1: 0.0, 2: 0.1, 4: 0.4, 8: 2.0}, {1: 0.0, 2: 0.1, 4: 1.8, 8: 3.0})  # of each expert
TOUGH = np.linspace(0, 3, ROWS)


class Dressed:
    """What a merge is put on: the one tensor."""

    def __init__(self, base: np.ndarray) -> None:
        self.base = self.now = base

    def wear(self, merged: dict[str, np.ndarray]) -> None:
        self.now = merged.get("x", self.base)


class Stage:
    """A task whose rows look at their block."""

    def __init__(self, task: Task, number: int, dressed: Dressed) -> None:
        self.task, self.number, self.dressed = task, number, dressed
        self.order = np.random.default_rng(number).permutation(ROWS).tolist()
        self.asked = 0

    def count(self, share: float) -> int:
        return max(1, round(share * ROWS))

    def ask(self, rows: Sequence[int], folder: Path) -> str:
        self.asked += len(rows)
        block = self.dressed.now[self.number]
        return "".join("01"[bool(block[row] >= TOUGH[row])] for row in rows)


def tensor(number: int, step: int) -> dict[str, np.ndarray]:
    values = np.full((2, ROWS), -HARMS[number][step], np.float32)
    values[number] = GAINS[step]
    return {"x": values}


class World:
    """Two tasks, of which the second's experts do more harm; a search by averaging or by sums."""

    def __init__(self, root: Path, log: Path | None = None) -> None:
        base = {"x": np.zeros((2, ROWS), np.float32)}
        experts = [[(step, tensor(number, step)) for step in GAINS] for number in (0, 1)]
        self.pool: Pool = make_pool(root, base, experts, own=[[0.4, 0.6, 0.9, 0.95]] * 2)
        self.dressed, self.method = Dressed(base["x"]), method("task_arithmetic")
        self.stages: Any = [Stage(task, t, self.dressed) for t, task in enumerate(self.pool.tasks)]
        self.log = TrialLog(log or root / "trials.jsonl")

    def search(self, merges: int | None = None, exhaustive: bool = False) -> Search:
        blender = Blender(self.pool, self.method)
        arena = Evaluator(self.pool, blender, self.method, self.stages, self.log, "validation")
        grid = GRIDS[self.method.name]
        return Search(arena, grid, Budget(merges), exhaustive=exhaustive)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_steps_of_their_own_beat_the_best_common_step(world: World) -> None:
    search = world.search()
    common = max(uniform(search), key=lambda one: one.accuracy)
    own = coordinate(search, common)
    assert own.accuracy > common.accuracy > last(search).accuracy
    assert world.pool.steps(own.choice) == (4, 2)  # the one that does harm, earlier


def test_weights_are_tried_too(world: World) -> None:
    search = world.search()
    start = last(search)
    weighed = weights(search, start)
    assert weighed.accuracy > start.accuracy
    assert weighed.choice.places == start.choice.places


def test_a_climb_finds_what_the_whole_grid_has(tmp_path: Path) -> None:
    quick, whole = World(tmp_path / "quick"), World(tmp_path / "whole")
    climbed, tried = quick.search(), whole.search(exhaustive=True)
    assert last(climbed).accuracy == pytest.approx(last(tried).accuracy, abs=0.005)
    assert climbed.arena.merges < tried.arena.merges / 2


def test_a_race_asks_the_hopeless_little_and_loses_no_winner(world: World) -> None:
    search = world.search()
    best = search.whole(plain_choice((2, 1), {"scale": 1.0}))
    hopeless = best.choice.setting(scale=0.05)
    before = sum(stage.asked for stage in world.stages)
    assert search.better(hopeless, best) is best
    assert sum(stage.asked for stage in world.stages) - before == 2 * ROWS // 8
    assert search.better(best.choice, search.whole(hopeless)).choice == best.choice


def test_what_is_known_is_not_asked_again(tmp_path: Path) -> None:
    first, again = World(tmp_path / "a"), World(tmp_path / "b", log=tmp_path / "a" / "trials.jsonl")
    one = coordinate(first.search(), last(first.search()))
    search = again.search()
    other = coordinate(search, last(search))
    assert other.choice == one.choice
    assert sum(stage.asked for stage in again.stages) == 0
    assert search.arena.merges > 10  # asked for all the same: a budget ends at the same place


def test_half_a_race_in_the_log_changes_no_decision(tmp_path: Path) -> None:
    """A trial that was measured whole elsewhere is raced on the same first rows."""
    whole, raced = World(tmp_path / "a"), World(tmp_path / "b", log=tmp_path / "a" / "trials.jsonl")
    fresh = World(tmp_path / "c")
    for choice in (plain_choice((a, b), {"scale": 0.4}) for a in range(4) for b in range(4)):
        whole.search().whole(choice)
    searches = [raced.search(), fresh.search()]
    found = [coordinate(search, last(search)) for search in searches]
    assert found[0].choice == found[1].choice
    assert searches[0].arena.asked == searches[1].arena.asked


def test_a_budget_ends_the_search_and_keeps_what_was_found(world: World) -> None:
    search = world.search(merges=9)
    board = Board(search)
    for name in order(world.pool):
        board.run(name)
    assert search.arena.merges == 9
    assert board.cut[0] in ("best-expert", "proxy", "uniform")
    assert LAST in board.found
    with pytest.raises(OutOfBudget):
        search.whole(plain_choice((0, 0), {"scale": 0.01}))


def test_policies_side_by_side(world: World) -> None:
    board = Board(world.search())
    for name in order(world.pool):
        board.run(name)
    found = {name: one.found for name, one in board.found.items()}
    assert [*found] == [
        "last", "best-expert", "proxy", "uniform", "coordinate", "weights", "joint",
    ]  # fmt: skip
    assert world.pool.steps(found["last"].choice) == (8, 8)
    assert world.pool.steps(found["best-expert"].choice) == (8, 8)
    assert found["proxy"].accuracy > found["last"].accuracy
    assert found["joint"].accuracy >= found["coordinate"].accuracy > found["uniform"].accuracy
    assert [world.pool.steps(one.choice)[0] for one in board.uniform] == [8, 4, 2, 1]


def test_the_earliest_of_equals_wins(world: World) -> None:
    board = Board(world.search())
    for name in (LAST, "uniform", "coordinate"):
        board.run(name)
    policies_found = list(board.found.values())
    best = max(policies_found, key=lambda one: one.found.accuracy)
    assert earliest(policies_found, world.pool, band=0).name == best.name
    everything_is_equal = earliest(policies_found, world.pool, band=1e9)
    steps = [sum(world.pool.steps(one.found.choice)) for one in policies_found]
    assert sum(world.pool.steps(everything_is_equal.found.choice)) == min(steps)


def test_the_neighbours_of_a_choice(world: World) -> None:
    board = Board(world.search())
    board.run(LAST)
    board.run("coordinate")
    chosen = board.found["coordinate"].found
    told = swaps(board, chosen, band=1.0)
    for task, place in zip(world.pool.tasks, chosen.choice.places, strict=True):
        row = told[task.id]
        assert row[place].merged == pytest.approx(chosen.accuracy)
        assert row[place].tied
        assert all(
            s.merged is None or s.merged <= chosen.accuracy + 1e-9 or not s.tied for s in row
        )
    assert {swap.own for swap in told[world.pool.tasks[0].id]} == {0.4, 0.6, 0.9, 0.95}


def test_of_one_checkpoint_each_early_stopping_is_made_up_for(tmp_path: Path) -> None:
    base = {"x": np.zeros((2, ROWS), np.float32)}
    world = World(tmp_path / "many")
    experts = [[(8, tensor(number, 8))] for number in (0, 1)]
    world.pool = make_pool(tmp_path / "one", base, experts)
    search = world.search()
    board = Board(search)
    for name in order(world.pool):
        board.run(name)
    assert list(board.found) == ["last", "weights", "rescale"]
    assert board.found["rescale"].found.accuracy > board.found["last"].found.accuracy


def test_trials_of_other_rows_are_not_taken_for_these(tmp_path: Path) -> None:
    world = World(tmp_path)
    choice = plain_choice((0, 0), {"scale": 0.4})
    world.search().whole(choice)
    world.stages[0].order = world.stages[0].order[:100]
    before = world.stages[0].asked
    world.search().whole(choice)
    assert world.stages[0].asked - before == 100


def test_what_is_told_hangs_on_what_was_asked_and_not_on_the_log(world: World) -> None:
    choice = plain_choice((0, 0), {"scale": 0.4})
    world.search().whole(choice)
    again = world.search().arena
    assert again.known(choice) is None
    part = again.measure(choice, 0.25)
    assert part.measured == 2 * ROWS // 4
    assert again.known(choice) == part


def test_a_candidate_alone_is_known_by_its_task_too(world: World) -> None:
    arena = world.search().arena
    ours = arena.alone(0, 1).accuracy
    swapped = replace(world.pool, candidates=world.pool.candidates[::-1])
    other = Evaluator(
        swapped, Blender(swapped, world.method), world.method, world.stages, world.log, "validation"
    )
    assert other.alone(1, 1).accuracy != ours  # the same expert, at the other task


def test_tied_is_within_the_noise(world: World) -> None:
    search = world.search()
    best = coordinate(search, last(search))
    assert tied(best, best, band=0)
    far = search.whole(plain_choice((0, 0), {"scale": 0.05}))
    assert not tied(far, best, band=1)
    assert noise.difference(best.trial, far.trial, 0).is_clear


def test_every_policy_has_a_place_in_the_order(world: World) -> None:
    pool = world.pool
    assert order(pool) == [
        "last", "best-expert", "proxy", "uniform", "coordinate", "weights", "joint",
    ]  # fmt: skip
    stopped = replace(
        pool,
        candidates=tuple((*its[:-1], replace(its[-1], stopped=True)) for its in pool.candidates),
    )
    assert order(stopped)[:6] == [
        "last", "early-stop", "best-expert", "proxy", "coordinate", "uniform",
    ]  # fmt: skip
    assert order(pool, "rescale")[:2] == ["last", "rescale"]
    assert order(pool, "weights", is_locked=True)[:4] == ["last", "locked", "uniform", "weights"]
    assert order(stopped, "coordinate")[4] == "coordinate"


def test_a_part_of_the_budget_is_kept_for_the_neighbours(world: World) -> None:
    search = world.search(merges=12)
    search.budget.reserve(4)
    board = Board(search)
    board.run(LAST)
    board.run("coordinate")
    assert search.arena.merges == 9  # no more than a quarter is kept back
    search.budget.release()
    board.look_around(board.found["coordinate"].found)
    assert 9 < search.arena.merges <= 12
