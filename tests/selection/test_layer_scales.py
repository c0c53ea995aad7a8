"""Early, middle and late layers with a scale each, in memory, on disk and in a search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hubmerge.merging.engine import merge
from hubmerge.merging.plan import Expert, MergePlan
from hubmerge.merging.registry import method
from hubmerge.merging.settings import for_tensors, restore_settings
from hubmerge.selection.choice import Choice
from hubmerge.selection.policies import layers
from hubmerge.selection.policy_results import can_scale_layers, policy_order
from hubmerge.selection.pool import Pool
from hubmerge.selection.search import MeasuredChoice

from .builders import Tensors, make_pool, read_tensors
from .test_memory_merge import merge_in_memory, starting_choice

NAMES = ("token_embedding.weight", *(f"layers.{n}.weight" for n in range(5)), "head.weight")


def layered_pool(root: Path, layer_count: int = 5) -> Pool:
    random = np.random.default_rng(0)

    def tensors() -> Tensors:
        names = (*NAMES[: 1 + layer_count], NAMES[-1])
        return {name: random.standard_normal((3, 4)).astype(np.float32) for name in names}

    return make_pool(root, tensors(), [[(1, tensors()), (2, tensors())] for _ in range(2)])


def of_layers(choice: Choice, *scales: float) -> Choice:
    return choice.with_params(**{"scale[@0:5]": [*scales]})


def merge_on_disk(pool: Pool, choice: Choice, name: str, out: Path) -> Tensors:
    opened, sources = map(pool.open, pool.experts(choice)), pool.sources(choice)
    experts = tuple(Expert(e, s.key, s.weight) for e, s in zip(opened, sources, strict=True))
    params, settings = restore_settings(method(name), dict(choice.params), ())
    settings = for_tensors(settings, pool.base_checkpoint.index)
    plan = MergePlan(pool.base_checkpoint, experts, method(name), params, settings=settings)
    merge(plan, out)
    return read_tensors(out)


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "dare"])
def test_a_measured_merge_has_the_bytes_of_the_written_one(tmp_path: Path, name: str) -> None:
    pool = layered_pool(tmp_path)
    choice = of_layers(starting_choice(name, (0, 1), scale=0.4), 0.2, 0.4, 0.9)
    measured = merge_in_memory(pool, choice, name)
    written = merge_on_disk(pool, choice, name, tmp_path / "out")
    assert all(measured[n].tobytes() == written[n].tobytes() for n in NAMES)


def test_scales_between_groups_by_hand(tmp_path: Path) -> None:
    """Layers 0 to 4 have 0.2, 0.3, 0.4, 0.65 and 0.9; what is outside of them keeps 1."""
    pool = layered_pool(tmp_path)
    whole = starting_choice("task_arithmetic", (0, 1), scale=1.0)
    base = read_tensors(pool.base_checkpoint.folder)
    plain = merge_in_memory(pool, whole, "task_arithmetic")
    merged = merge_in_memory(pool, of_layers(whole, 0.2, 0.4, 0.9), "task_arithmetic")
    for name, scale in zip(NAMES, (1, 0.2, 0.3, 0.4, 0.65, 0.9, 1), strict=True):
        change = scale * (plain[name] - base[name])
        np.testing.assert_allclose(merged[name] - base[name], change, atol=1e-6)


class CountingSearch:
    """Each layer group is best at its own factor of the one scale, which is 0.4."""

    best_factors = (1 / 1.5, 1.0, 1.2)

    def __init__(self, pool: Pool) -> None:
        self.pool, self.tried = pool, list[Choice]()

    def error(self, choice: Choice) -> float:
        scales = dict(choice.params).get("scale[@0:5]", (0.4,) * 3)
        pairs = zip(scales, self.best_factors, strict=True)
        return sum(abs(scale - 0.4 * factor) for scale, factor in pairs)

    def better_of(self, choice: Choice, best: MeasuredChoice) -> MeasuredChoice:
        self.tried.append(choice)
        trial: Any = None
        is_better = self.error(choice) < self.error(best.choice)
        return MeasuredChoice(choice, trial) if is_better else best


def test_each_group_gets_the_factor_that_is_best_for_it(tmp_path: Path) -> None:
    trial: Any = None
    search: Any = CountingSearch(layered_pool(tmp_path))
    start = MeasuredChoice(starting_choice("task_arithmetic", (0, 1), scale=0.4), trial)
    chosen = layers(search, start).choice
    assert dict(chosen.params)["scale[@0:5]"] == pytest.approx((0.2667, 0.4, 0.48))
    assert dict(chosen.params)["scale"] == 0.4
    assert len(search.tried) == 12


def test_it_runs_on_request_where_there_are_layers_and_a_scale(tmp_path: Path) -> None:
    pool = layered_pool(tmp_path / "deep")
    assert "layers" not in policy_order(pool)
    assert policy_order(pool, "layers").index("layers") > 0
    assert can_scale_layers(pool, method("ties"))
    assert not can_scale_layers(pool, method("average"))
    assert not can_scale_layers(layered_pool(tmp_path / "flat", 0), method("ties"))
