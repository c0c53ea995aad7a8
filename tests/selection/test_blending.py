"""A merge in memory is the merge on disk, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubmerge.errors import CheckpointError
from hubmerge.merging.engine import merge
from hubmerge.merging.plan import Expert, MergePlan
from hubmerge.merging.registry import METHODS, method, parse_params
from hubmerge.selection.memory_merge import Blender, Kept
from hubmerge.selection.pool import Choice, Pool, plain_choice

from .worlds import Tensors, make_pool, read

SHAPES = {"a.weight": (5, 7), "b.weight": (11,), "frozen": (3, 3)}


def tensors(seed: int, base: Tensors | None = None, dtype: Any = np.float32) -> Tensors:
    """Random numbers; of an expert, the base's with all but `frozen` moved."""
    random = np.random.default_rng(seed)
    told = {n: random.normal(size=shape).astype(dtype) for n, shape in SHAPES.items()}
    return {**told, "frozen": base["frozen"]} if base else told


def world(root: Path, dtype: Any = np.float32) -> Pool:
    base = tensors(0, dtype=dtype)
    experts = [[(2**k, tensors(10 * t + k + 1, base, dtype)) for k in range(3)] for t in range(3)]
    return make_pool(root, base, experts)


def written(pool: Pool, choice: Choice, name: str, out: Path) -> Tensors:
    """What the engine makes of the choice."""
    experts = tuple(
        Expert(pool.open(one), s.sha, s.weight, s.label, keep=s.keep, intruders=s.intruders)
        for one, s in zip(pool.experts(choice), pool.sources(choice), strict=True)
    )
    chosen = method(name)
    params = parse_params(chosen, dict(choice.params))
    merge(MergePlan(pool.base_checkpoint, experts, chosen, params), out)
    return read(out)


def in_memory(pool: Pool, choice: Choice, name: str, **options: Any) -> Tensors:
    return {**read(pool.base_checkpoint.folder),
            **dict(Blender(pool, method(name), **options).merged(choice))}  # fmt: skip


def start(name: str, places: tuple[int, ...], **params: Any) -> Choice:
    return plain_choice(places, parse_params(method(name), params).model_dump())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_what_is_measured_is_what_is_written(tmp_path: Path, name: str, dtype: Any) -> None:
    pool = world(tmp_path, dtype)
    choice = start(name, (0, 2, 1)).weighing(1, 0.7).weighing(2, 1.3)
    if name != "average":
        choice = choice.setting(scale=0.35)
    ours, theirs = in_memory(pool, choice, name), written(pool, choice, name, tmp_path / "out")
    assert all(ours[n].tobytes() == theirs[n].tobytes() for n in SHAPES)


@pytest.mark.parametrize("name", ["task_arithmetic", "ties"])
def test_softened_experts_too(tmp_path: Path, name: str) -> None:
    pool = world(tmp_path)
    choice = start(name, (1, 1, 1)).keeping(0, 0.3).damping(1, 0.5)
    ours, theirs = in_memory(pool, choice, name), written(pool, choice, name, tmp_path / "out")
    assert all(np.array_equal(ours[n], theirs[n]) for n in SHAPES)


@given(scale=st.floats(-2, 2), name=st.sampled_from(["task_arithmetic", "ties", "dare"]))
@settings(max_examples=25, deadline=None)
def test_every_scale_shares_one_direction(
    tmp_path_factory: pytest.TempPathFactory, scale: float, name: str
) -> None:
    """The methods are linear in their scale: the search relies on it."""
    root = tmp_path_factory.mktemp("world")
    pool = world(root)
    blender = Blender(pool, method(name))
    before = blender.direction(start(name, (0, 1, 2), scale=1.0))
    choice = start(name, (0, 1, 2), scale=scale)
    assert blender.direction(choice) is before
    theirs = written(pool, choice, name, root / "out")
    ours = {**read(pool.base_checkpoint.folder), **dict(blender.merged(choice))}
    assert all(np.array_equal(ours[n], theirs[n]) for n in SHAPES)


def test_nothing_changes_when_nothing_can_be_kept(tmp_path: Path) -> None:
    pool = world(tmp_path)
    choice = start("ties", (0, 1, 2))
    roomy, tight = in_memory(pool, choice, "ties"), in_memory(pool, choice, "ties", keep_bytes=1)
    assert all(np.array_equal(roomy[n], tight[n]) for n in SHAPES)


def test_a_frozen_tensor_is_left_alone(tmp_path: Path) -> None:
    pool = world(tmp_path)
    assert set(dict(Blender(pool, method("ties")).merged(start("ties", (0, 0, 0))))) == {
        "a.weight",
        "b.weight",
    }


def test_an_expert_alone_is_itself(tmp_path: Path) -> None:
    pool = world(tmp_path)
    one = pool.candidates[1][2]
    told = dict(Blender(pool, method("ties")).alone(one))
    saved = read(pool.open(one).folder)
    # base + (expert - base) may differ from the expert in the last bit.
    assert all(np.allclose(told[name], saved[name], atol=1e-6) for name in told)


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    base = tensors(0)
    broken = {**tensors(1, base), "b.weight": np.full(11, 3e38, np.float32)}
    pool = make_pool(tmp_path, base, [[(1, broken)], [(1, broken)]])
    with pytest.raises(CheckpointError, match=r"not finite in tensor 'b.weight'"):
        dict(Blender(pool, method("task_arithmetic")).merged(start("task_arithmetic", (0, 0))))


def test_the_least_recently_asked_for_goes_first() -> None:
    kept = Kept(most_bytes=16)
    for name in "abc":
        kept.put(("", name), np.zeros(2, np.float32))
        kept.get(("", "a"))
    assert [kept.get(("", name)) is not None for name in "abc"] == [True, False, True]
