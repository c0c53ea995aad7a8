"""Merges on a device of torch have the bytes of merges by numpy: on its CPU, or CUDA if present."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from hubmerge.errors import UsageError
from hubmerge.merging.device import check_device, on_device, runs_on_device
from hubmerge.merging.engine import merge
from hubmerge.merging.plan import MergePlan
from hubmerge.merging.registry import method, parse_params
from tests.command_line import run_command
from tests.merging.builders import write_models

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
ON_DEVICE = [
    ("average", {}),
    ("task_arithmetic", {"scale": 0.3}),
    ("dare", {"density": 0.3, "seed": 7}),
    ("dare", {"density": 0.3, "rescale": "none"}),
    ("dare_ties", {"normalize": True}),
    ("dare_ties", {"density": 0.4}),
    ("ties", {}),
    ("ties", {"scope": "all", "density": 0.7, "sign": "weighted"}),
    ("ties", {"trim": "tensor"}),
    ("ties_mergekit", {"density": 0.3}),
    ("breadcrumbs", {"density": 0.3, "gamma": 0.1}),
    ("breadcrumbs", {"density": 1.0, "normalize": True}),
    ("breadcrumbs_ties", {"density": 0.3}),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [
    np.float32,
    *(pytest.param(each, marks=pytest.mark.slow) for each in (np.float64, ml_dtypes.bfloat16)),
])  # fmt: skip
@pytest.mark.parametrize(("name", "params"), ON_DEVICE)
def test_the_bytes_are_those_of_the_cpu(
    name: str,
    params: dict[str, object],
    dtype: type,
    device: str,
    large_models: Callable[[type], Callable[..., MergePlan]],
    tmp_path: Path,
) -> None:
    plan = large_models(dtype)(name, **params)
    assert runs_on_device(plan.method, plan.params)
    assert on_device(plan.method, plan.params, device).combine is not plan.method.combine
    expected = merge(plan, tmp_path / "numpy", threads=2).digest()
    assert merge(plan, tmp_path / "torch", threads=2, device=device).digest() == expected


@pytest.mark.parametrize("negative", [False, True], ids=["few", "most"])
def test_the_majority_is_counted(negative: bool, tmp_path: Path) -> None:
    base = {"a": np.zeros(9, np.float32)}
    first, second = {"a": np.full(9, -1.0 if negative else 1.0, np.float32)}, {"a": base["a"] + 1}
    first["a"][:2], second["a"][:2] = 3, -3
    second["a"][2:] = first["a"][2:]
    plan = write_models(tmp_path, base, first, second)("ties", density=1.0)
    merged = merge(plan, tmp_path / "torch", device="cpu")
    assert merged.read("a")[:2].tolist() == [-3.0 if negative else 3.0] * 2


@pytest.mark.parametrize(
    ("name", "params"), [("della", {}), ("model_stock", {}), ("dare", {"rescale": "l1"})]
)
def test_other_methods_stay_on_the_cpu(name: str, params: dict[str, object]) -> None:
    chosen = method(name)
    parsed = parse_params(chosen, {key: str(value) for key, value in params.items()})
    assert not runs_on_device(chosen, parsed)
    assert on_device(chosen, parsed, "cpu") is chosen


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:", "mps"])
def test_an_unknown_device_is_an_error(name: str) -> None:
    with pytest.raises(UsageError, match="is not known"):
        check_device(name)


def test_a_device_that_is_missing_is_an_error_before_anything_is_read() -> None:
    result = run_command("merge", "me/a", "me/b", "--base", "me/c", "--device", "cuda:99")
    assert result.exit_code == 2
    assert "--device cuda:99: " in result.stderr
    assert ("Leave --device out" in result.stderr) == (not torch.cuda.is_available())
