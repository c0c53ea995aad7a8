"""The mean of several steps, and experts that are left out, in memory and on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from hubmerge.errors import CheckpointError
from hubmerge.merging.engine import merge
from hubmerge.merging.plan import Expert, MergePlan
from hubmerge.merging.registry import METHODS, method, parse_params
from hubmerge.selection.policies import average_last, greedy_soup, last
from hubmerge.selection.pool import Choice, Pool, plain_choice
from hubmerge.weights.averaged import average_checkpoints, averaged_key
from hubmerge.weights.match_options import DEFAULT_OPTIONS
from tests.weights.adapters import save_adapter, write_base

from .builders import Tensors, make_pool, read_tensors, save_checkpoint
from .test_memory_merge import SHAPES, make_experts, merge_in_memory, starting_choice
from .test_search import SearchSetup


def merge_on_disk(pool: Pool, choice: Choice, name: str, out: Path) -> Tensors:
    """Merge with the engine, from checkpoints that are averaged as a lock's are."""
    experts = []
    included = [e for e, w in zip(pool.experts(choice), choice.weights, strict=True) if w]
    for candidate, source in zip(included, pool.sources(choice), strict=True):
        members = candidate.members or (candidate,)
        opened = [pool.open(member) for member in members]
        checkpoint, key = opened[0], source.key
        if len(opened) > 1:
            checkpoint = average_checkpoints(pool.base_checkpoint, opened, DEFAULT_OPTIONS)
            key = averaged_key([member.source.key for member in members])
        experts.append(Expert(checkpoint, key, source.weight))
    params = parse_params(method(name), dict(choice.params))
    merge(MergePlan(pool.base_checkpoint, tuple(experts), method(name), params), out)
    return read_tensors(out)


def test_the_mean_of_two_steps_by_hand(tmp_path: Path) -> None:
    base = {"x": np.zeros(2, np.float32)}
    steps = [(1, {"x": np.array([1, 2], np.float32)}), (2, {"x": np.array([3, 8], np.float32)})]
    pool = make_pool(tmp_path, base, [steps, steps])
    choice = plain_choice((1, 0), {"scale": 1.0}).with_window(0, 1, 2)
    assert [candidate.step for candidate in pool.experts(choice)[0].members] == [1, 2]
    mean, single = pool.sources(choice)
    assert mean.steps_text == "1+2"
    assert single.averaged == ()
    # The mean of [1, 2] and [3, 8], and [1, 2].
    merged = merge_in_memory(pool, choice, "task_arithmetic")
    assert merged["x"].tolist() == [3, 7]
    assert len(pool.parts(choice)) == 3


def test_the_mean_of_two_adapters_by_hand(tmp_path: Path) -> None:
    """B A of one step is [[1, 0], [0, 0]], and of the other [[0, 0], [0, 4]]."""
    base = write_base(tmp_path / "base", {"q.weight": np.ones((2, 2), np.float32)})
    steps = [
        save_adapter(
            tmp_path / str(number),
            {
                "q.lora_A.weight": np.eye(2, dtype=np.float32)[[number]],
                "q.lora_B.weight": size * np.eye(2, dtype=np.float32)[:, [number]],
            },
        )
        for number, size in enumerate((1, 4))
    ]
    mean = average_checkpoints(base, steps, DEFAULT_OPTIONS)
    assert mean.kind == "full"
    assert mean.read("q.weight").tolist() == [[1.5, 1.0], [1.0, 3.0]]


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_measured_average_has_the_bytes_of_the_written_one(
    tmp_path: Path, name: str, dtype: Any
) -> None:
    count = method(name).most or 3
    pool = make_experts(tmp_path, dtype, count)
    choice = starting_choice(name, (2, 2, 1)[:count]).with_window(0, 2, 3)
    in_memory = merge_in_memory(pool, choice, name)
    on_disk = merge_on_disk(pool, choice, name, tmp_path / "out")
    assert all(in_memory[n].tobytes() == on_disk[n].tobytes() for n in SHAPES)


@pytest.mark.parametrize("name", ["average", "task_arithmetic", "ties", "dare"])
def test_an_expert_of_weight_0_is_left_out(tmp_path: Path, name: str) -> None:
    pool = make_experts(tmp_path)
    choice = starting_choice(name, (2, 1, 0)).with_weight(1, 0.0)
    fewer = replace(pool, candidates=(pool.candidates[0], pool.candidates[2]))
    two = starting_choice(name, (2, 0))
    assert pool.recipe(choice, name) == fewer.recipe(two, name)
    left_out, alone = merge_in_memory(pool, choice, name), merge_in_memory(fewer, two, name)
    assert all(left_out[n].tobytes() == alone[n].tobytes() for n in SHAPES)
    on_disk = merge_on_disk(pool, choice, name, tmp_path / "out")
    assert all(left_out[n].tobytes() == on_disk[n].tobytes() for n in SHAPES)


def test_steps_of_other_repositories_are_not_averaged(tmp_path: Path) -> None:
    pool = make_experts(tmp_path)
    first, *others = pool.candidates[0]
    other = replace(first, source=replace(first.source, label="me/stopped@step1"))
    mixed = replace(pool, candidates=((other, *others), *pool.candidates[1:]))
    choice = plain_choice((2, 0, 0), {}).with_window(0, 2, 3)
    assert [c.step for c in mixed.experts(choice)[0].members] == [2, 4]


def test_a_step_that_does_not_fit_the_base_is_refused(tmp_path: Path) -> None:
    base = save_checkpoint(tmp_path / "base", {"x": np.zeros(2, np.float32)})
    fits = save_checkpoint(tmp_path / "fits", {"x": np.ones(2, np.float32)})
    other = save_checkpoint(tmp_path / "other", {"x": np.ones(3, np.float32)})
    with pytest.raises(CheckpointError, match="x"):
        average_checkpoints(base, [fits, other], DEFAULT_OPTIONS)


def test_the_key_of_an_average_does_not_depend_on_the_order() -> None:
    assert averaged_key(["a", "b"]) == averaged_key(["b", "a"])
    assert averaged_key(["a", "b"]) != averaged_key(["a"])


def test_steps_are_averaged_and_experts_left_out_where_it_helps(tmp_path: Path) -> None:
    """Experts harm each other at their last steps; one joins again at its first step."""
    setup = SearchSetup(tmp_path)
    search = setup.search()
    start = last(search)
    averaged = average_last(search, start)
    assert averaged.accuracy > start.accuracy
    assert max(averaged.choice.spans) > 1
    soup = greedy_soup(search, start)
    assert soup.accuracy > start.accuracy
    assert setup.pool.steps(soup.choice) == (1, 8)
