"""Invariants that hold for any values, with hypothesis."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hubmerge.merging.engine import merge
from hubmerge.weights.checkpoint import Checkpoint

from .builders import write_models

fewer_examples = settings(max_examples=40)
NUMBERS = st.floats(-100, 100, width=16).map(np.float32)
DTYPES = st.sampled_from([np.float32, ml_dtypes.bfloat16, np.float16])
METHODS = st.sampled_from(["average", "task_arithmetic", "ties", "dare"])
Tensors = dict[str, np.ndarray]


@st.composite
def models(draw: Any, experts: int) -> list[Tensors]:
    """A base and its experts: two tensors of one dtype."""
    dtype = draw(DTYPES)
    shapes = {"a": draw(st.sampled_from([(), (3,), (2, 4)])), "b": (5,)}
    return [
        {
            name: draw(arrays(np.float32, shape, elements=NUMBERS)).astype(dtype)
            for name, shape in shapes.items()
        }
        for _ in range(experts + 1)
    ]


@contextmanager
def written_models(tensors: list[Tensors]) -> Any:
    with tempfile.TemporaryDirectory() as root:
        yield write_models(Path(root), *tensors), Path(root)


def read_bytes(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {name: checkpoint.read(name).tobytes() for name in checkpoint.names()}


def ulps(dtype: Any, *values: np.ndarray) -> np.ndarray:
    """Two units in the last place of the largest value at each entry, in the coarser of the
    computing and the written dtype."""
    largest = np.max([np.abs(v.astype(np.float64)) for v in values], axis=0)
    return 2 * largest * float(ml_dtypes.finfo(dtype).eps)


@fewer_examples
@given(models(1), METHODS)
def test_merge_of_one_expert_is_the_expert(tensors: list[Tensors], method: str) -> None:
    options = {"density": 1} if method in ("ties", "dare") else {}
    with written_models(tensors) as (plan, root):
        merged = merge(plan(method, **options), root / "out")
        for name, expert in tensors[1].items():
            gap = np.abs(merged.read(name).astype(np.float64) - expert.astype(np.float64))
            assert (gap <= ulps(np.float32, tensors[0][name], expert)).all()


@fewer_examples
@given(models(1), st.integers(1, 3))
def test_average_of_one_expert_many_times_is_the_expert(tensors: list[Tensors], more: int) -> None:
    with written_models(tensors + [tensors[1]] * more) as (plan, root):
        merged = merge(plan("average", weights=[0.3] * (1 + more)), root / "out")
        for name, expert in tensors[1].items():
            gap = np.abs(merged.read(name).astype(np.float64) - expert.astype(np.float64))
            assert (gap <= ulps(expert.dtype, tensors[0][name], expert)).all()


@fewer_examples
@given(models(3), METHODS, st.permutations(range(3)))
def test_order_of_experts_changes_no_byte(
    tensors: list[Tensors], method: str, order: list[int]
) -> None:
    with written_models(tensors) as (make_plan, root):
        plan = make_plan(method, weights=[0.5, 1.0, 2.0])
        turned = replace(plan, experts=tuple(plan.experts[i] for i in order))
        first, second = merge(plan, root / "one"), merge(turned, root / "other")
        assert read_bytes(first) == read_bytes(second)


@fewer_examples
@given(models(2), METHODS)
def test_unchanged_tensors_are_the_base_bit_for_bit(tensors: list[Tensors], method: str) -> None:
    base = tensors[0] | {"a": np.array([-0.0, 1e-3, 5], tensors[0]["a"].dtype)}
    with written_models([base, *(expert | {"a": base["a"]} for expert in tensors[1:])]) as (
        plan,
        root,
    ):
        merged = merge(plan(method, weights=[0.3, 0.7]), root / "out")
        assert merged.read("a").tobytes() == base["a"].tobytes()


@fewer_examples
@given(models(2))
def test_dare_mask_does_not_depend_on_other_tensors_and_experts(tensors: list[Tensors]) -> None:
    """The same expert, alone and with an expert of weight zero and one more tensor."""
    more = np.ones(7, np.float32)
    added = [model | {"0": more * i} for i, model in enumerate(tensors)]
    with written_models(tensors[:2]) as (plan, root), written_models(added) as (wider, other):
        alone = merge(plan("dare", density=0.5), root / "out")
        with_others = merge(wider("dare", weights=[1.0, 0.0], density=0.5), other / "out")
        for name in tensors[0]:
            assert (alone.read(name) == with_others.read(name)).all()


@fewer_examples
@given(models(2), st.sampled_from(["ties", "dare"]), st.floats(0.1, 1))
def test_same_plan_same_bytes(tensors: list[Tensors], method: str, density: float) -> None:
    with written_models(tensors) as (plan, root):
        one, two = (merge(plan(method, density=density), root / name) for name in ("one", "two"))
        assert one.digest() == two.digest()
