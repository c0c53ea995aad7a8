"""A merge in memory has exactly the bytes of the merge on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubmerge.errors import CheckpointError
from hubmerge.merging.device import named_device
from hubmerge.merging.engine import merge
from hubmerge.merging.plan import Expert, MergePlan
from hubmerge.merging.registry import METHODS, method, parse_params
from hubmerge.selection.array_cache import ArrayCache
from hubmerge.selection.choice import Choice, plain_choice
from hubmerge.selection.memory_merge import MemoryMerger
from hubmerge.selection.pool import Pool

from .builders import Tensors, make_pool, read_tensors

SHAPES = {"a.weight": (5, 7), "b.weight": (11,), "frozen": (3, 3)}


def tensors(seed: int, base: Tensors | None = None, dtype: Any = np.float32) -> Tensors:
    """Random tensors; with a `base`, those of an expert that shares its `frozen` tensor."""
    random = np.random.default_rng(seed)
    values = {n: random.normal(size=shape).astype(dtype) for n, shape in SHAPES.items()}
    return {**values, "frozen": base["frozen"]} if base else values


def make_experts(root: Path, dtype: Any = np.float32, count: int = 3) -> Pool:
    base = tensors(0, dtype=dtype)
    experts = [
        [(2**k, tensors(10 * t + k + 1, base, dtype)) for k in range(3)] for t in range(count)
    ]
    return make_pool(root, base, experts)


def merge_on_disk(pool: Pool, choice: Choice, name: str, out: Path) -> Tensors:
    """Merge the choice with the engine."""
    experts = tuple(
        Expert(pool.open(candidate), s.sha, s.weight, s.label, keep=s.keep, intruders=s.intruders)
        for candidate, s in zip(pool.experts(choice), pool.sources(choice), strict=True)
    )
    chosen = method(name)
    params = parse_params(chosen, dict(choice.params))
    merge(MergePlan(pool.base_checkpoint, experts, chosen, params), out)
    return read_tensors(out)


def merge_in_memory(pool: Pool, choice: Choice, name: str, **options: Any) -> Tensors:
    return {**read_tensors(pool.base_checkpoint.folder),
            **dict(MemoryMerger(pool, method(name), **options).merged_tensors(choice))}  # fmt: skip


def starting_choice(name: str, indices: tuple[int, ...], **params: Any) -> Choice:
    return plain_choice(indices, parse_params(method(name), params).model_dump())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_measured_merge_has_the_bytes_of_the_written_one(
    tmp_path: Path, name: str, dtype: Any
) -> None:
    chosen = method(name)
    count = chosen.most or 3
    pool = make_experts(tmp_path, dtype, count)
    choice = starting_choice(name, (0, 2, 1)[:count])
    for number, weight in enumerate((1.0, 0.7, 1.3)[:count]):
        if not (chosen.weight_problem and chosen.weight_problem([weight, 0.9])):
            choice = choice.with_weight(number, weight)
    if "scale" in chosen.params.model_fields:
        choice = choice.with_params(scale=0.35)
    if "factor" in chosen.params.model_fields:
        choice = choice.with_params(factor=0.35)
    in_memory, on_disk = (
        merge_in_memory(pool, choice, name),
        merge_on_disk(pool, choice, name, tmp_path / "out"),
    )
    assert all(in_memory[n].tobytes() == on_disk[n].tobytes() for n in SHAPES)


@pytest.mark.parametrize("params", [{"scope": "all"}, {"trim": "tensor"}, {"sign": "weighted"}])
def test_each_kind_of_ties_has_the_bytes_of_the_written_one(
    tmp_path: Path, params: dict[str, str]
) -> None:
    pool = make_experts(tmp_path)
    choice = starting_choice("ties", (0, 2, 1), **params).with_weight(1, 0.7)
    in_memory, on_disk = (
        merge_in_memory(pool, choice, "ties"),
        merge_on_disk(pool, choice, "ties", tmp_path / "out"),
    )
    assert all(in_memory[n].tobytes() == on_disk[n].tobytes() for n in SHAPES)


def test_merges_of_experts_that_were_merged_before_have_the_same_bytes(tmp_path: Path) -> None:
    """Thresholds are kept by expert, for other steps, weights, shares and densities of the rest."""
    pool, first = make_experts(tmp_path), starting_choice("ties", (0, 2, 1))
    merger = MemoryMerger(pool, method("ties"))
    for choice in (
        first,
        first.with_weight(1, 0.7),
        starting_choice("ties", (0, 1, 1)),
        first.with_params(density=0.4),
        first.with_keep(0, 0.3),
        first.with_params(scope="all"),
        first,
    ):
        found = dict(merger.merged_tensors(choice))
        expected = dict(MemoryMerger(pool, method("ties")).merged_tensors(choice))
        assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


@pytest.mark.parametrize("name", ["average", "dare", "ties", "breadcrumbs", "della"])
def test_a_device_of_torch_has_the_same_bytes(tmp_path: Path, name: str) -> None:
    """On torch's CPU; methods that it does not have stay with numpy."""
    count = method(name).most or 3
    pool, choice = make_experts(tmp_path, count=count), starting_choice(name, (0, 2, 1)[:count])
    expected = merge_in_memory(pool, choice, name)
    for options in ({}, {"memory": 1}):
        found = merge_in_memory(pool, choice, name, device="cpu", **options)
        assert all(found[n].tobytes() == expected[n].tobytes() for n in SHAPES)


def test_a_device_merges_only_where_it_is_named() -> None:
    names = [named_device(name) for name in (None, "cpu", "mps", "cuda", "cuda:1")]
    assert names == [None, None, None, "cuda", "cuda:1"]


@pytest.mark.parametrize("name", ["task_arithmetic", "ties"])
def test_trimmed_and_damped_experts_merge_the_same(tmp_path: Path, name: str) -> None:
    pool = make_experts(tmp_path)
    choice = starting_choice(name, (1, 1, 1)).with_keep(0, 0.3).with_intruders(1, 0.5)
    in_memory, on_disk = (
        merge_in_memory(pool, choice, name),
        merge_on_disk(pool, choice, name, tmp_path / "out"),
    )
    assert all(np.array_equal(in_memory[n], on_disk[n]) for n in SHAPES)


@given(scale=st.floats(-2, 2), name=st.sampled_from(["task_arithmetic", "ties", "dare"]))
@settings(max_examples=25)
def test_every_scale_shares_one_direction(
    tmp_path_factory: pytest.TempPathFactory, scale: float, name: str
) -> None:
    """The methods are linear in their scale; the search relies on it."""
    root = tmp_path_factory.mktemp("pool")
    pool = make_experts(root)
    merger = MemoryMerger(pool, method(name))
    before = merger.direction(starting_choice(name, (0, 1, 2), scale=1.0))
    choice = starting_choice(name, (0, 1, 2), scale=scale)
    assert merger.direction(choice) is before
    on_disk = merge_on_disk(pool, choice, name, root / "out")
    in_memory = {**read_tensors(pool.base_checkpoint.folder), **dict(merger.merged_tensors(choice))}
    assert all(np.array_equal(in_memory[n], on_disk[n]) for n in SHAPES)


@pytest.mark.parametrize("name", METHODS)
def test_the_result_does_not_depend_on_the_memory(tmp_path: Path, name: str) -> None:
    """With one byte nothing is kept: neither changes nor a merged change."""
    count = method(name).most or 3
    pool = make_experts(tmp_path, count=count)
    choice = starting_choice(name, (0, 1, 2)[:count])
    cached, uncached = (
        merge_in_memory(pool, choice, name),
        merge_in_memory(pool, choice, name, memory=1),
    )
    assert all(cached[n].tobytes() == uncached[n].tobytes() for n in SHAPES)
    norms = [MemoryMerger(pool, method(name), memory).merge_norm(choice) for memory in (None, 1)]
    assert norms[0] == norms[1]


def test_a_merged_change_that_does_not_fit_is_not_kept(tmp_path: Path) -> None:
    pool = make_experts(tmp_path)
    choice = starting_choice("task_arithmetic", (0, 1, 2))
    size = sum(tensor.size * 4 for tensor in pool.base_checkpoint.index.values())
    for memory, most in ((4 * size, 1), (4 * size - 4, 0), (1, 0)):
        merger = MemoryMerger(pool, method("task_arithmetic"), memory)
        for scale in (0.1, 0.2):
            dict(merger.merged_tensors(choice.with_params(scale=scale)))
        assert len(merger._directions) == most


def test_a_frozen_tensor_is_not_written(tmp_path: Path) -> None:
    pool = make_experts(tmp_path)
    assert set(
        dict(MemoryMerger(pool, method("ties")).merged_tensors(starting_choice("ties", (0, 0, 0))))
    ) == {
        "a.weight",
        "b.weight",
    }


def test_a_single_expert_is_restored(tmp_path: Path) -> None:
    pool = make_experts(tmp_path)
    candidate = pool.candidates[1][2]
    tensors = dict(MemoryMerger(pool, method("ties")).expert_tensors(candidate))
    saved = read_tensors(pool.open(candidate).folder)
    # base + (expert - base) may differ from the expert in the last bit.
    assert all(np.allclose(tensors[name], saved[name], atol=1e-6) for name in tensors)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    base = tensors(0)
    broken = {**tensors(1, base), "b.weight": np.full(11, 3e38, np.float32)}
    pool = make_pool(tmp_path, base, [[(1, broken)], [(1, broken)]])
    with pytest.raises(CheckpointError, match=r"not finite in tensor 'b.weight'"):
        dict(
            MemoryMerger(pool, method("task_arithmetic")).merged_tensors(
                starting_choice("task_arithmetic", (0, 0))
            )
        )


def test_the_least_recently_used_array_is_dropped_first() -> None:
    cache = ArrayCache(max_bytes=16)
    for name in "abc":
        cache.put(("", name), np.zeros(2, np.float32))
        cache.get(("", "a"))
    assert [cache.get(("", name)) is not None for name in "abc"] == [True, False, True]


def test_what_the_current_merge_needs_is_not_dropped_for_more_of_it() -> None:
    """A pass over more than fits finds what it kept; a new merge drops what it does not need."""
    cache = ArrayCache(max_bytes=16)
    cache.need({"a", "b"})
    for name in "123":
        cache.put(("a", name), np.zeros(2, np.float32))
    assert [cache.get(("a", name)) is not None for name in "123"] == [True, True, False]
    cache.need({"b"})
    cache.put(("b", "1"), np.zeros(2, np.float32))
    assert [cache.get(("a", name)) is not None for name in "123"] == [False, True, False]
    cache.put(("b", "2"), np.zeros(4, np.float32))
    assert cache.get(("b", "2")) is None
    assert cache.get(("b", "1")) is not None
