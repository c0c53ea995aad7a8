"""What every merge method of the registry must do, whatever its formula."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hubmerge.merging.deltas import Deltas
from hubmerge.merging.engine import merge
from hubmerge.merging.plan import MergePlan
from hubmerge.merging.registry import METHODS, method
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.dtypes import Array
from tests.merging.builders import write_models

NAMES = list(METHODS)
# Parameters with which one expert alone is the result, "none" if the formula has no such setting.
NEUTRAL: dict[str, dict[str, Any] | None] = {
    "average": {}, "task_arithmetic": {}, "ties": {"density": 1}, "ties_mergekit": {"density": 1},
    "dare": {"density": 1}, "dare_ties": {"density": 1}, "breadcrumbs": {"density": 1, "gamma": 0},
    "breadcrumbs_ties": {"density": 1, "gamma": 0}, "della": {"density": 1},
    "della_linear": {"density": 1}, "sce": {}, "slerp": {"t": 1}, "nuslerp": None,
    "multislerp": {}, "karcher": {}, "model_stock": None, "tsv": {}, "iso_c": None,
    "knots": {"density": 1}, "core_space": {},
}  # fmt: skip


def models(dtype: Any = np.float32, count: int = 2) -> list[dict[str, Array]]:
    """A base with tensors of all shapes, and experts; nobody changes `same`."""
    random = np.random.default_rng(1)
    shapes = {
        "matrix": (12, 9), "wide": (3, 40), "vector": (17,), "one": (1,), "scalar": (),
        "kernel": (4, 3, 2, 2), "empty": (0, 3), "same": (5, 5),
    }  # fmt: skip
    base = {name: random.normal(size=shape) for name, shape in shapes.items()}
    experts = [
        {
            name: values if name == "same" else values + 0.1 * random.normal(size=values.shape)
            for name, values in base.items()
        }
        for _ in range(count)
    ]
    return [
        {name: np.asarray(values, dtype) for name, values in model.items()}
        for model in (base, *experts)
    ]


def number_of_experts(name: str, wanted: int = 3) -> int:
    chosen = method(name)
    return max(chosen.fewest, min(wanted, chosen.most or wanted))


def result(plan: MergePlan, folder: Path) -> dict[str, Array]:
    merged: Checkpoint = merge(plan, folder)
    return {tensor: merged.read(tensor) for tensor in merged.index}


def test_all_methods_are_here() -> None:
    assert set(NEUTRAL) == set(NAMES)


@pytest.mark.parametrize("name", [name for name in NAMES if NEUTRAL[name] is not None])
def test_one_expert_at_neutral_settings_is_that_expert(name: str, tmp_path: Path) -> None:
    base, expert = models(count=1)
    merged = result(
        write_models(tmp_path, base, expert)(name, **(NEUTRAL[name] or {})), tmp_path / "out"
    )
    for tensor, values in expert.items():
        np.testing.assert_allclose(merged[tensor], values, rtol=0, atol=1e-6, err_msg=tensor)


@pytest.mark.parametrize("name", NAMES)
def test_experts_that_changed_nothing_give_the_base(name: str, tmp_path: Path) -> None:
    base = models()[0]
    base["matrix"][0, 0] = -0.0
    plan = write_models(tmp_path, base, *[base] * number_of_experts(name))(name)
    for tensor, values in result(plan, tmp_path / "out").items():
        assert values.tobytes() == base[tensor].tobytes(), tensor


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_experts_does_not_matter(name: str, tmp_path: Path) -> None:
    plan = write_models(tmp_path, *models(count=number_of_experts(name)))(name)
    expected = merge(plan, tmp_path / "out").digest()
    turned = replace(plan, experts=plan.experts[::-1])
    assert merge(turned, tmp_path / "turned").digest() == expected


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_dtypes_are_kept(name: str, dtype: Any, tmp_path: Path) -> None:
    base, *experts = models(dtype, number_of_experts(name))
    merged = result(write_models(tmp_path, base, *experts)(name), tmp_path / "out")
    for tensor, values in base.items():
        assert (merged[tensor].shape, merged[tensor].dtype) == (values.shape, values.dtype)
        assert np.isfinite(merged[tensor].astype(np.float64)).all()
    assert merged["same"].tobytes() == base["same"].tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_plan_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    plan = write_models(tmp_path, *models(count=number_of_experts(name)))(name)
    assert merge(plan, tmp_path / "a").digest() == merge(plan, tmp_path / "b").digest()


@pytest.mark.parametrize("name", [n for n in NAMES if "scale" in method(n).params.model_fields])
def test_the_change_is_linear_in_the_scale(name: str, tmp_path: Path) -> None:
    base, *experts = models(count=number_of_experts(name))
    plan = write_models(tmp_path, base, *experts)
    once = result(plan(name, scale=1.0), tmp_path / "once")
    twice = result(plan(name, scale=-2.0), tmp_path / "twice")
    for tensor, values in base.items():
        np.testing.assert_allclose(
            twice[tensor] - values, -2 * (once[tensor] - values), rtol=0, atol=2e-6
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_does_not_depend_on_others(name: str, tmp_path: Path) -> None:
    """Except for the thresholds of TIES, which rank the whole model."""
    params = {"trim": "tensor"} if name == "ties" else {}
    few = [
        {key: model[key] for key in ("matrix", "vector")}
        for model in models(count=number_of_experts(name))
    ]
    expected = result(write_models(tmp_path / "few", *few)(name, **params), tmp_path / "few-out")
    plan = write_models(tmp_path / "all", *models(count=number_of_experts(name)))(name, **params)
    merged = result(plan, tmp_path / "all-out")
    for tensor, values in expected.items():
        assert values.tobytes() == merged[tensor].tobytes()


@st.composite
def drawn_deltas(draw: st.DrawFn, fewest: int, most: int) -> list[Deltas]:
    """The changes of some experts to tensors of any shape and dtype of arithmetic."""
    count = draw(st.integers(fewest, most))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    source = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shapes = draw(st.lists(hnp.array_shapes(min_dims=0, max_dims=4, max_side=7), max_size=3))
    found = []
    for number, shape in enumerate([(5, 4), *shapes]):
        # Whole numbers tie and cancel; zeros and unchanged tensors are frequent.
        drawn = [np.round(source.normal(size=shape) * 2) / 4 for _ in range(count)]
        values = [np.asarray(array, dtype) for array in drawn]
        base = np.asarray(source.normal(size=shape), dtype)
        shas = tuple(f"{number}" for number in range(count))
        found.append(Deltas(str(number), values, (1.0,) * count, shas, base=base))
    return found


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_shape_and_number_of_experts(name: str, data: st.DataObject) -> None:
    """Results are finite, of the same shape, and do not depend on the order of the experts."""
    chosen = method(name)
    params: Any = chosen.params()
    tensors = data.draw(drawn_deltas(chosen.fewest, chosen.most or 5))
    order = data.draw(st.permutations(range(len(tensors[0].values))))

    def merged(all_deltas: list[Deltas]) -> list[Array]:
        survey = chosen.survey(lambda: all_deltas, params) if chosen.survey else None
        return [np.asarray(chosen.combine(deltas, params, survey)) for deltas in all_deltas]

    turned = [
        replace(
            deltas,
            values=[deltas.values[i] for i in order],
            shas=tuple(deltas.shas[i] for i in order),
        )
        for deltas in tensors
    ]
    for deltas, first, second in zip(tensors, merged(tensors), merged(turned), strict=True):
        assert first.shape == deltas.values[0].shape
        assert first.dtype == deltas.values[0].dtype
        assert np.isfinite(first).all()
        np.testing.assert_allclose(first, second, rtol=0, atol=2e-5)
