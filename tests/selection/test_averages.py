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
from hubmerge.recipe_ids import averaged_key
from hubmerge.selection.choice import Choice, plain_choice
from hubmerge.selection.policies import average_by_loss, average_last, greedy_soup, last
from hubmerge.selection.pool import Pool
from hubmerge.weights.averaged import average_checkpoints
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
            checkpoint = average_checkpoints(
                pool.base_checkpoint, opened, DEFAULT_OPTIONS, source.shares
            )
            key = averaged_key([member.source.key for member in members], source.shares)
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


def with_losses(pool: Pool, losses: dict[int, float | None]) -> Pool:
    """The pool with these training losses, by step, of all its experts."""
    return replace(
        pool,
        candidates=tuple(
            tuple(replace(c, loss=losses[c.step]) for c in candidates)
            for candidates in pool.candidates
        ),
    )


def test_the_mean_by_losses_by_hand(tmp_path: Path) -> None:
    """Losses of 0.3 and 0.1 give shares of 1 to 3, and [1, 2] and [3, 8] a mean of [2.5, 6.5]."""
    base = {"x": np.zeros(2, np.float32)}
    steps = [(1, {"x": np.array([1, 2], np.float32)}), (2, {"x": np.array([3, 8], np.float32)})]
    pool = with_losses(make_pool(tmp_path, base, [steps, steps]), {1: 0.3, 2: 0.1})
    plain = plain_choice((1, 0), {"scale": 1.0}).with_window(0, 1, 2)
    choice = replace(plain, by_loss=True)
    mean, single = pool.sources(choice)
    assert mean.shares == (0.25, 0.75)
    assert mean.steps_text == "0.25x1+0.75x2"
    assert single.averaged == ()
    assert sorted(part.weight for part in pool.parts(choice)) == [0.25, 0.75, 1.0]
    merged = merge_in_memory(pool, choice, "task_arithmetic")
    assert merged["x"].tolist() == [3.5, 8.5]
    assert pool.recipe(choice, "ties") != pool.recipe(plain, "ties")
    assert choice.with_candidate(1, 1).by_loss
    assert choice.with_params(scale=0.5).by_loss


@pytest.mark.parametrize("losses", [{1: None, 2: 0.1}, {1: 0.2, 2: 0.2}, {1: 0.002, 2: 0.001}])
def test_without_different_losses_the_mean_is_plain(
    tmp_path: Path, losses: dict[int, float | None]
) -> None:
    base = {"x": np.zeros(2, np.float32)}
    steps = [(1, {"x": np.ones(2, np.float32)}), (2, {"x": np.full(2, 3, np.float32)})]
    pool = with_losses(make_pool(tmp_path, base, [steps]), losses)
    plain = plain_choice((1,), {}).with_window(0, 1, 2)
    assert pool.recipe(replace(plain, by_loss=True), "ties") == pool.recipe(plain, "ties")


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
@pytest.mark.parametrize("by_loss", [False, True])
def test_a_measured_average_has_the_bytes_of_the_written_one(
    tmp_path: Path, name: str, dtype: Any, by_loss: bool
) -> None:
    count = method(name).most or 3
    pool = with_losses(make_experts(tmp_path, dtype, count), {1: 0.9, 2: 0.5, 4: 0.3})
    choice = replace(starting_choice(name, (2, 2, 1)[:count]).with_window(0, 2, 3), by_loss=by_loss)
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
    assert averaged_key(["a", "b"], (0.2, 0.8)) == averaged_key(["b", "a"], (0.8, 0.2))
    assert averaged_key(["a", "b"], (0.2, 0.8)) != averaged_key(["a", "b"], (0.8, 0.2))
    assert averaged_key(["a", "b"], (1.0, 1.0)) == averaged_key(["a", "b"])


def test_steps_are_averaged_and_experts_left_out_where_it_helps(tmp_path: Path) -> None:
    """Experts harm each other at their last steps; one joins again at its first step."""
    setup = SearchSetup(tmp_path)
    search = setup.search()
    start = last(search)
    averaged = average_last(search, start)
    assert averaged.accuracy > start.accuracy
    assert max(averaged.choice.spans) > 1
    by_loss = average_by_loss(search, start)  # no loss is recorded: the same merges
    assert by_loss.accuracy == averaged.accuracy
    assert search.evaluator.recipe(by_loss.choice) == search.evaluator.recipe(averaged.choice)
    soup = greedy_soup(search, start)
    assert soup.accuracy > start.accuracy
    assert setup.pool.steps(soup.choice) == (1, 8)
