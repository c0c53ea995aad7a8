"""Successive halving and the starts that it races, against hand-made oracles."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.selection.halving import Ask, cost, horizons, race
from hubmerge.selection.moe_starts import arms_of
from hubmerge.selection.pool import Candidate, Pool
from hubmerge.selection.search import OutOfBudget
from tests.selection.worlds import Tensors, make_pool

TENSORS: Tensors = {"w": np.zeros(1, np.float32)}


def oracle(worth: Mapping[str, float], asked: list[tuple[str, int]], most: int = 10**9) -> Ask:
    """Tells each start's worth, whatever the horizon, until so many steps are asked for."""

    def ask(name: str, horizon: int) -> float:
        if sum(steps for _, steps in asked) + horizon > most:
            raise OutOfBudget
        asked.append((name, horizon))
        return worth[name]

    return ask


def test_the_better_half_goes_on_and_the_sure_are_asked_once() -> None:
    worth = {"a": 0.1, "b": 0.7, "c": 0.5, "d": 0.6, "e": 0.2, "null": 0.0, "last": 0.0}
    asked: list[tuple[str, int]] = []
    first, *rungs = race("abcde", ["null", "last"], (10, 20, 40), oracle(worth, asked))
    assert (first.horizon, first.kept) == (40, ("null", "last"))  # the worst, and kept
    assert [rung.horizon for rung in rungs] == [10, 20, 40]
    assert [rung.kept for rung in rungs] == [("b", "c", "d"), ("b", "d"), ("b", "d")]
    assert asked[:2] == [("null", 40), ("last", 40)]
    assert sum(steps for _, steps in asked) == cost(5, 2, (10, 20, 40)) == 80 + 50 + 60 + 80


def test_of_equals_the_first_goes_on() -> None:
    _, first, _ = race("wxyz", ["null"], (1, 2), lambda name, horizon: 0.5)
    assert first.kept == ("w", "x")


def test_a_budget_ends_the_race_and_nothing_that_was_asked_is_lost() -> None:
    worth = {"a": 0.1, "b": 0.7, "c": 0.5, "null": 0.6}
    asked: list[tuple[str, int]] = []
    _, first, second = race("abc", ["null"], (1, 2), oracle(worth, asked, most=2 + 3 + 3))
    assert first.kept == ("b", "c")
    assert (second.accuracies, second.kept) == ({"b": 0.7}, ())
    with pytest.raises(OutOfBudget):
        list(race("abc", ["null"], (1, 2), oracle(worth, [], most=1)))


@pytest.mark.parametrize(("full", "challengers", "expected"), [
    (300, 12, (38, 75, 150, 300)), (4000, 100, (500, 1000, 2000, 4000)),
    (300, 5, (75, 150, 300)), (300, 2, (150, 300)), (300, 1, (300,)), (300, 0, (300,)),
    (4, 12, (1, 2, 4)), (1, 12, (1,)), (0, 12, (0,)),
])  # fmt: skip
def test_horizons_double_up_to_the_end(
    full: int, challengers: int, expected: tuple[int, ...]
) -> None:
    assert horizons(full, challengers) == expected


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(0, 4000))
def test_the_best_of_a_steady_oracle_is_never_lost(worth: Sequence[float], full: int) -> None:
    names, rungs_at = [str(place) for place in range(len(worth))], horizons(full, len(worth))
    values = {"null": 0.5, **dict(zip(names, worth, strict=True))}
    asked: list[tuple[str, int]] = []
    rungs = list(race(names, ["null"], rungs_at, oracle(values, asked)))
    assert names[worth.index(max(worth))] in rungs[-1].kept
    assert sum(steps for _, steps in asked) == cost(len(names), 1, rungs_at)
    sizes = [len(names), *(len(rung.kept) for rung in rungs[1:])]
    assert all(after == -(-before // 2) for before, after in itertools.pairwise(sizes[:-1]))
    assert sizes[-1] == sizes[-2]  # the last rung drops nobody


def pool_of(
    root: Path, *experts: Sequence[int], own: Sequence[Sequence[float]] | None = None
) -> Pool:
    return make_pool(root, TENSORS, [[(step, TENSORS) for step in its] for its in experts], own)


def stopped(pool: Pool, *steps: int) -> Pool:
    """The pool with one more candidate of each task, where early stopping ended a run."""
    grown = []
    for its, step in zip(pool.candidates, steps, strict=True):
        one = replace(its[0].source, label=f"{its[0].source.label}-stopped", step=step)
        grown.append(tuple(sorted([*its, Candidate(one, stopped=True)], key=lambda c: c.step)))
    return replace(pool, candidates=tuple(grown))


def test_every_start_once_earliest_first(tmp_path: Path) -> None:
    own = [[0.1, 0.9, 0.2, 0.3], [0.1, 0.2, 0.9]]
    arms = arms_of(pool_of(tmp_path, (2, 16, 64, 128), (16, 64, 128), own=own))
    # Of step 2 the second has nothing; the best of each is at 16 and at 128: between 16 and 64.
    assert arms.places == {
        "step16": (1, 0), "best-expert": (1, 2), "step64": (2, 1), "last": (3, 2),
    }  # fmt: skip
    assert (arms.null, arms.last) == ("step16", "last")  # an eighth of 128
    assert arms.challengers == ("best-expert", "step64")
    assert arms.names["step128"] == "last"


def test_who_lacks_a_step_starts_at_its_nearest_earlier_one(tmp_path: Path) -> None:
    arms = arms_of(pool_of(tmp_path, (1, 2, 4), (1, 4)))
    assert arms.places == {"step1": (0, 0), "step2": (1, 0), "last": (2, 1)}


def test_the_null_is_early_stopping_where_every_run_was_stopped(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, (8, 64), (8, 64))
    arms = arms_of(stopped(pool, 20, 30))
    assert arms.places == {"step8": (0, 0), "early-stop": (1, 1), "last": (2, 2)}
    assert arms.null == "early-stop"
    arms = arms_of(stopped(pool, 70, 80))
    assert (arms.null, arms.last) == ("early-stop", "early-stop")
    assert arms.challengers == ("step8", "step64")
