"""Compiled kernels give the bytes of numpy, and what cannot be compiled or is stale is not used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hubmerge.merging import kernels
from hubmerge.merging.bracket import find_thresholds
from hubmerge.merging.deltas import Deltas
from hubmerge.merging.engine import merge
from hubmerge.merging.methods import average, dare, task_arithmetic
from hubmerge.merging.params import DareParams, NoParams, TaskArithmeticParams, TiesParams
from hubmerge.merging.plan import MergePlan
from hubmerge.merging.random_masks import random_mask
from hubmerge.merging.ties import TiesSurvey, ties
from hubmerge.weights.dtypes import Array
from tests.merging.test_streaming import ListPasses

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
compiled = pytest.mark.skipif(
    kernels.library() is None, reason="nothing was compiled when hubmerge was installed"
)
f32 = st.floats(width=32)
numbers = st.floats(0.25, 4, width=32)


@contextmanager
def numpy_alone() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(kernels.SWITCH, "0")
        kernels.library.cache_clear()
        yield
    kernels.library.cache_clear()


def without_kernels(function: Callable[[], T]) -> T:
    with numpy_alone(), np.errstate(all="ignore"):
        assert kernels.library() is None
        return function()


def assert_same_bytes(first: Array, second: Array) -> None:
    """Equal bits, but for what is in a NaN."""
    assert first.dtype == second.dtype
    assert first.shape == second.shape
    is_same = first.view(np.uint32) == second.view(np.uint32)
    assert (is_same | (np.isnan(first) & np.isnan(second))).all()


@st.composite
def changes(draw: st.DrawFn) -> Deltas:
    """Changes of one to nine experts: a few values again and again, so that they tie and cancel."""
    experts, size = draw(st.integers(1, 9)), draw(st.sampled_from([0, 1, 7, 8, 1023, 1024, 2100]))
    few = draw(arrays(np.float32, 12, elements=f32))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    values = [few[rng.integers(0, 12, size)] for _ in range(experts)]
    is_one = draw(st.booleans())
    weights = tuple(1.0 if is_one else draw(numbers) for _ in range(experts))
    shas = tuple(f"{number:040x}" for number in range(experts))
    return Deltas("w", values, weights, shas, start=draw(st.sampled_from([0, 1, 6, 1027])))


@compiled
@given(deltas=changes(), scale=numbers)
def test_sums(deltas: Deltas, scale: float) -> None:
    params = TaskArithmeticParams(scale=scale)
    assert_same_bytes(
        task_arithmetic(deltas, params), without_kernels(lambda: task_arithmetic(deltas, params))
    )
    assert_same_bytes(
        average(deltas, NoParams()), without_kernels(lambda: average(deltas, NoParams()))
    )


@compiled
@given(
    deltas=changes(),
    density=st.sampled_from([0.1, 0.5, 1.0, 1e-9]),
    rescale=st.sampled_from(["expected", "none", "l1"]),
    masks=st.sampled_from([1, 2]),
    scale=numbers,
)
def test_dare(deltas: Deltas, density: float, rescale: str, masks: int, scale: float) -> None:
    params = DareParams(density=density, rescale=rescale, masks=masks, scale=scale)
    with np.errstate(all="ignore"):  # of numpy's rescaling to a norm
        ours = dare(deltas, params)
    assert_same_bytes(ours, without_kernels(lambda: dare(deltas, params)))


@compiled
def test_memory_for_the_masks_does_not_grow_with_a_tensor() -> None:
    values = [np.ones(3_000_000, np.float32) for _ in range(3)]
    deltas = Deltas("w", values, (1.0,) * 3, tuple("abc"), start=5)
    tracemalloc.start()
    change = dare(deltas, DareParams())
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del change
    assert held < values[0].nbytes + 4_000_000
    assert peak < values[0].nbytes + 6_000_000


@compiled
@given(
    deltas=changes(),
    places=st.lists(st.integers(0, 2099), min_size=9, max_size=9),
    sign=st.sampled_from(["unweighted", "weighted"]),
    majority=st.sampled_from([None, -1, 0, 1]),
    scale=numbers,
)
def test_ties(
    deltas: Deltas, places: list[int], sign: str, majority: int | None, scale: float
) -> None:
    assume(deltas.values[0].size)
    pairs = zip(deltas.values, places, strict=False)  # a threshold is the magnitude of an entry
    smallest = tuple(np.abs(values[place % values.size]) for values, place in pairs)
    params = TiesParams(sign=sign, scale=scale)

    def merged() -> tuple[Array, TiesSurvey]:
        survey = TiesSurvey(smallest, majority)
        return ties(deltas, params, survey), survey

    (ours, counted), (expected, expected_count) = merged(), without_kernels(merged)
    assert_same_bytes(ours, expected)
    if all(np.isfinite(values).all() for values in deltas.values):
        assert counted.votes.balance == expected_count.votes.balance
        assert counted.votes.undecided == expected_count.votes.undecided


@compiled
@given(deltas=changes(), share=st.floats(0.01, 1), only_changed=st.booleans())
def test_thresholds(deltas: Deltas, share: float, only_changed: bool) -> None:
    assume(deltas.values[0].size)
    values = [np.nan_to_num(v, nan=0.0) for v in deltas.values]
    passes = ListPasses([values])

    def found() -> object:
        return find_thresholds(passes, lambda count: max(int(count * share), 1), only_changed)

    assert found() == without_kernels(found)


@compiled
@pytest.mark.parametrize("density", [0.2, 0.5, 1 / 65_536, 1 - 2**-32])
def test_masks(density: float) -> None:
    """So long that some entries need the lower bits, from any first entry on."""
    params = DareParams(density=density)

    def masks() -> list[Array]:
        starts = (0, 1, 2, 3, 4, 1_000_003, 2**40 + 5)
        return [random_mask(params, "w", "a" * 40, start, 200_001) for start in starts]

    assert np.array_equal(masks(), without_kernels(masks))


@compiled
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_a_change_is_added_to_the_base(dtype: type, scale: float) -> None:
    rng = np.random.default_rng(0)
    base, change = (rng.standard_normal(300_000).astype(np.float32) for _ in range(2))
    change[:9] = [0.0, -0.0, 1e-45, -1e-45, 3.3e38, -3.3e38, 2**-8, -(2**-8), 3 * 2**-9]
    base[:9] = [-0.0, -0.0, 0.0, 1e-45, 1e36, 0.0, 1.0, 1.0, 1.0]  # in the middle of two bfloat16
    out = np.empty(base.shape, dtype)
    assert kernels.add_to_base(change, scale, base, out)
    expected = (change * np.float32(scale) + base).astype(dtype)
    assert out.tobytes() == expected.tobytes()


@compiled
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_what_is_not_finite_is_noticed(dtype: type) -> None:
    base, out = np.zeros(3000, np.float32), np.empty(3000, dtype)
    largest = float(ml_dtypes.finfo(dtype).max)
    for value in (np.nan, np.inf, -np.inf, largest, 3.39e38, 3.396e38, -3.4e38):
        change = base.copy()
        change[2999] = value
        with np.errstate(over="ignore"):
            expected = bool(np.isfinite(change.astype(dtype)).all())
        assert kernels.add_to_base(change, 1.0, base, out) is expected


@compiled
def test_the_base_is_subtracted_from_every_bfloat16() -> None:
    weights = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    base = np.random.default_rng(0).standard_normal(weights.size).astype(np.float32)
    out = np.empty((2, weights.size), np.float32)
    kernels.subtract_base_bfloat16([weights, weights[::-1].copy()], base, out)
    with np.errstate(invalid="ignore"):
        assert_same_bytes(out[0], weights.astype(np.float32) - base)
        assert_same_bytes(out[1], weights[::-1].astype(np.float32) - base)


@compiled
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("name", "params"), [
    ("average", {}), ("task_arithmetic", {"scale": 0.3}), ("dare", {"density": 0.3}),
    ("ties", {}), ("ties", {"trim": "tensor", "sign": "weighted"}),
])  # fmt: skip
def test_merges_have_the_same_bytes_without_kernels(
    name: str,
    params: dict[str, object],
    dtype: type,
    large_models: Callable[[type], Callable[..., MergePlan]],
    tmp_path: Path,
) -> None:
    plan = large_models(dtype)(name, **params)
    expected = without_kernels(lambda: merge(plan, tmp_path / "numpy").digest())
    assert merge(plan, tmp_path / "compiled").digest() == expected


def test_other_dtypes_and_layouts_are_for_numpy() -> None:
    single = np.zeros((4, 4), np.float32)
    assert not kernels.fit(single.astype(np.float64))
    assert not kernels.fit(single, single.T)
    assert not kernels.fit(np.zeros(17, np.uint8)[1:].view(np.float32))
    assert without_kernels(lambda: not kernels.fit(single))


# Building


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """hatch_build.py and the source beside it, in a folder of their own."""
    (tmp_path / "hubmerge" / "merging").mkdir(parents=True)
    shutil.copy(ROOT / "hatch_build.py", tmp_path)
    shutil.copy(kernels.SOURCE, tmp_path / "hubmerge" / "merging")
    return tmp_path


def build(copy: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "hatch_build.py"]
    environment = {**os.environ, kernels.SWITCH: "1", **env}
    return subprocess.run(
        command, cwd=copy, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_a_library_is_used_for_its_own_source_alone(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build(copy).returncode == 0
    folder = copy / "hubmerge" / "merging"
    monkeypatch.setattr(kernels, "LIBRARY", folder / "libkernels.so")
    monkeypatch.setattr(kernels, "SOURCE", folder / "kernels.c")
    monkeypatch.delenv(kernels.SWITCH, raising=False)
    try:
        kernels.library.cache_clear()
        assert kernels.library() is not None
        with (folder / "kernels.c").open("a") as source:
            source.write("/* another */\n")
        kernels.library.cache_clear()
        assert kernels.library() is None
    finally:
        kernels.library.cache_clear()


@pytest.mark.parametrize(
    "env", [{"CC": "no-such-compiler"}, {"CC": "false"}, {kernels.SWITCH: "0"}]
)
def test_where_nothing_is_compiled_nothing_is_left(copy: Path, env: dict[str, str]) -> None:
    assert build(copy, **env).returncode == 1
    assert [p.name for p in (copy / "hubmerge" / "merging").iterdir()] == ["kernels.c"]
