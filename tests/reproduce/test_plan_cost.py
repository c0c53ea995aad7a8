"""The cost of a plan, worked out by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from hubmerge.reproduce.plan_cost import DurationEstimator, RemainingTime, plan_costs
from hubmerge.reproduce.store import ResultStore
from hubmerge.reproduce.unit import Unit

_ASSUMED = SimpleNamespace(seconds_per_step=0.5, seconds_per_merge=8.0, bytes_per_step=1e6)


def train(name: str, steps: int) -> Unit:
    return Unit("train", {"name": name, "pushed": [1, 2, steps]}, name, steps=steps)


UNITS = [Unit("base", {}, "base"), train("a", 100), train("b", 300), Unit("merge", {}, "merge")]


def pace() -> DurationEstimator:
    return DurationEstimator({unit.key: "vision" for unit in UNITS}, {"vision": _ASSUMED})


def test_costs_are_assumed_before_anything_is_measured() -> None:
    base, training, merge = plan_costs(UNITS, {}, pace())
    assert (base.seconds, merge.seconds) == (0.0, 8.0)
    assert (training.units, training.known, training.steps) == (2, 0, 400)
    assert (training.seconds, training.commits, training.bytes) == (200.0, 6, 6e6)
    assert not training.measured


def test_measured_units_give_the_estimate_for_the_others(tmp_path: Path) -> None:
    store = ResultStore(tmp_path, "c")
    store.put(UNITS[1], {}, 20.0)  # a fifth of a second a step
    _, training, _ = plan_costs(UNITS, store.records(UNITS), pace())
    assert (training.known, training.steps, training.commits) == (1, 300, 3)
    assert training.seconds == pytest.approx(60.0)
    assert training.measured


def test_the_remaining_time_falls_as_units_end() -> None:
    costs = pace()
    left = RemainingTime(UNITS, costs)
    assert left.seconds == pytest.approx(208.0)
    costs.record(UNITS[1], 10.0)
    left.remove(UNITS[1])
    assert left.seconds == pytest.approx(300 * 0.1 + 8)
    left.remove(UNITS[2])
    left.remove(UNITS[3])
    assert left.seconds == pytest.approx(0.0)
