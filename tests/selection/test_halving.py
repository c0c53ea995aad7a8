"""Successive halving, and the starts that it compares, with fake measurements."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.selection.candidate import Candidate
from hubmerge.selection.halving import Measure, horizons, race, race_cost
from hubmerge.selection.moe_starts import find_starts
from hubmerge.selection.pool import Pool
from hubmerge.selection.search import OutOfBudget
from tests.selection.builders import Tensors, make_pool

TENSORS: Tensors = {"w": np.zeros(1, np.float32)}


def fake_measure(
    accuracies: Mapping[str, float], calls: list[tuple[str, int]], budget: int = 10**9
) -> Measure:
    """Return each start's accuracy at any horizon, until `budget` training steps are used."""

    def measure(name: str, horizon: int) -> float:
        if sum(steps for _, steps in calls) + horizon > budget:
            raise OutOfBudget
        calls.append((name, horizon))
        return accuracies[name]

    return measure


def test_the_better_half_goes_on_and_protected_starts_are_measured_once() -> None:
    accuracies = {"a": 0.1, "b": 0.7, "c": 0.5, "d": 0.6, "e": 0.2, "null": 0.0, "last": 0.0}
    calls: list[tuple[str, int]] = []
    first, *rounds = race("abcde", ["null", "last"], (10, 20, 40), fake_measure(accuracies, calls))
    assert (first.horizon, first.kept) == (40, ("null", "last"))  # the worst, and kept
    assert [one_round.horizon for one_round in rounds] == [10, 20, 40]
    assert [one_round.kept for one_round in rounds] == [("b", "c", "d"), ("b", "d"), ("b", "d")]
    assert calls[:2] == [("null", 40), ("last", 40)]
    assert sum(steps for _, steps in calls) == race_cost(5, 2, (10, 20, 40)) == 80 + 50 + 60 + 80


def test_among_equals_the_first_goes_on() -> None:
    _, first, _ = race("wxyz", ["null"], (1, 2), lambda name, horizon: 0.5)
    assert first.kept == ("w", "x")


def test_a_budget_ends_the_race_without_losing_a_measurement() -> None:
    accuracies = {"a": 0.1, "b": 0.7, "c": 0.5, "null": 0.6}
    calls: list[tuple[str, int]] = []
    _, first, second = race(
        "abc", ["null"], (1, 2), fake_measure(accuracies, calls, budget=2 + 3 + 3)
    )
    assert first.kept == ("b", "c")
    assert (second.accuracies, second.kept) == ({"b": 0.7}, ())
    with pytest.raises(OutOfBudget):
        list(race("abc", ["null"], (1, 2), fake_measure(accuracies, [], budget=1)))


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
def test_the_best_start_always_reaches_the_last_round(
    accuracies: Sequence[float], full: int
) -> None:
    names, steps_by_round = (
        [str(index) for index in range(len(accuracies))],
        horizons(full, len(accuracies)),
    )
    values = {"null": 0.5, **dict(zip(names, accuracies, strict=True))}
    calls: list[tuple[str, int]] = []
    rounds = list(race(names, ["null"], steps_by_round, fake_measure(values, calls)))
    assert names[accuracies.index(max(accuracies))] in rounds[-1].kept
    assert sum(steps for _, steps in calls) == race_cost(len(names), 1, steps_by_round)
    sizes = [len(names), *(len(one_round.kept) for one_round in rounds[1:])]
    assert all(after == -(-before // 2) for before, after in itertools.pairwise(sizes[:-1]))
    assert sizes[-1] == sizes[-2]  # the last round drops nothing


def pool_of(
    root: Path, *experts: Sequence[int], own: Sequence[Sequence[float]] | None = None
) -> Pool:
    return make_pool(root, TENSORS, [[(step, TENSORS) for step in steps] for steps in experts], own)


def with_early_stop(pool: Pool, *steps: int) -> Pool:
    """Return the pool with an early-stopped candidate of each task at these steps."""
    grown = []
    for candidates, step in zip(pool.candidates, steps, strict=True):
        source = replace(
            candidates[0].source, label=f"{candidates[0].source.label}-stopped", step=step
        )
        grown.append(
            tuple(
                sorted([*candidates, Candidate(source, stopped_early=True)], key=lambda c: c.step)
            )
        )
    return replace(pool, candidates=tuple(grown))


def test_every_start_is_listed_once_and_the_earliest_first(tmp_path: Path) -> None:
    own = [[0.1, 0.9, 0.2, 0.3], [0.1, 0.2, 0.9]]
    starts = find_starts(pool_of(tmp_path, (2, 16, 64, 128), (16, 64, 128), own=own))
    # The second expert has no step 2. The best steps are 16 and 128: between 16 and 64.
    assert starts.indices == {
        "step16": (1, 0), "best-expert": (1, 2), "step64": (2, 1), "last": (3, 2),
    }  # fmt: skip
    assert (starts.null, starts.last) == ("step16", "last")  # an eighth of 128
    assert starts.challengers == ("best-expert", "step64")
    assert starts.names["step128"] == "last"


def test_an_expert_without_a_step_starts_from_the_nearest_earlier_one(tmp_path: Path) -> None:
    starts = find_starts(pool_of(tmp_path, (1, 2, 4), (1, 4)))
    assert starts.indices == {"step1": (0, 0), "step2": (1, 0), "last": (2, 1)}


def test_the_null_is_early_stopping_if_every_run_was_stopped(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, (8, 64), (8, 64))
    starts = find_starts(with_early_stop(pool, 20, 30))
    assert starts.indices == {"step8": (0, 0), "early-stop": (1, 1), "last": (2, 2)}
    assert starts.null == "early-stop"
    starts = find_starts(with_early_stop(pool, 70, 80))
    assert (starts.null, starts.last) == ("early-stop", "early-stop")
    assert starts.challengers == ("step8", "step64")
