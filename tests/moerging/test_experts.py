"""Adapters as experts of one mixture: stacked, padded, and rejected if their layers differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hubmerge.errors import CheckpointError
from hubmerge.models.tensor_names import TensorNames
from hubmerge.moerging.experts import check_experts, factors_by_layer, stack_experts
from hubmerge.weights.adapter import Adapter
from hubmerge.weights.adapter_match import open_adapter
from hubmerge.weights.checkpoint import open_checkpoint
from tests.weights.adapters import save_adapter, write_base

f32 = np.float32
BASE = {"q.weight": np.zeros((2, 3), f32), "v.weight": np.zeros((2, 3), f32)}
NAMES = TensorNames({"q.weight": "body.q.weight", "v.weight": "body.v.weight"}, {})


def write_and_open(tmp_path: Path, name: str, tensors: dict[str, Any], **config: Any) -> Adapter:
    """Write an adapter and match it with a base of two layers [2, 3]."""
    base = tmp_path / "base"
    checkpoint = open_checkpoint(base) if base.exists() else write_base(base, BASE)
    return open_adapter(checkpoint, save_adapter(tmp_path / name, tensors, **config))


def factors(layer: str, a: Any, b: Any) -> dict[str, Any]:
    return {f"{layer}.lora_A.weight": f32(a), f"{layer}.lora_B.weight": f32(b)}


def test_experts_of_two_ranks_are_stacked(tmp_path: Path) -> None:
    one = write_and_open(tmp_path, "one", factors("q", [[1, 2, 3]], [[4], [5]]), r=1, lora_alpha=3)
    two = write_and_open(
        tmp_path, "two", factors("q", [[1, 0, 0], [0, 1, 0]], [[6, 7], [8, 9]]), r=2, lora_alpha=1
    )
    ((path, stack),) = stack_experts([one, two], NAMES).items()
    assert path == "body.q"
    assert stack.lora_A.tolist() == [[[1, 2, 3], [0, 0, 0]], [[1, 0, 0], [0, 1, 0]]]
    assert stack.lora_B.tolist() == [[[4, 0], [5, 0]], [[6, 7], [8, 9]]]
    assert (stack.scale.tolist(), stack.ranks) == ([3, 0.5], (1, 2))
    assert {tensor.dtype for tensor in (stack.lora_A, stack.lora_B, stack.scale)} == {torch.float32}


def test_float16_becomes_float32(tmp_path: Path) -> None:
    parts = {n: t.astype(np.float16) for n, t in factors("q", [[1, 2, 3]], [[4], [5]]).items()}
    stack = stack_experts([write_and_open(tmp_path, "half", parts)], NAMES)["body.q"]
    assert stack.lora_A.dtype == torch.float32
    assert stack.lora_A.tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize(
    ("tensor", "parameter", "layer"),
    [
        ("attn.in_proj_weight", "visual.attn.in_proj_weight", "visual.attn.in_proj"),
        ("attn.out_proj.weight", "visual.attn.out_proj.weight", "visual.attn.out_proj"),
    ],
)
def test_fused_attention_has_two_layers(
    tmp_path: Path, tensor: str, parameter: str, layer: str
) -> None:
    base = write_base(tmp_path / "base", {
        "attn.in_proj_weight": np.zeros((6, 2), f32), "attn.out_proj.weight": np.zeros((2, 2), f32),
    })  # fmt: skip
    adapter = open_adapter(base, save_adapter(tmp_path / "lora", {
        "attn.lora_A.weight": np.ones((1, 2), f32), "attn.lora_B.weight": np.ones((6, 1), f32),
        "attn.base_layer.out_proj.lora_A.weight": np.ones((1, 2), f32),
        "attn.base_layer.out_proj.lora_B.weight": np.ones((2, 1), f32),
    }))  # fmt: skip
    names = TensorNames({name: f"visual.{name}" for name in base.names()}, {})
    assert names.module_names[tensor] == parameter
    assert layer in factors_by_layer(adapter, names)


def test_all_non_finite_factors_are_named(tmp_path: Path) -> None:
    bad = write_and_open(tmp_path, "bad", factors("q", [[1, np.nan, 3]], [[4], [np.inf]]))
    worse = write_and_open(tmp_path, "worse", factors("q", [[1, 2, 3]], [[4], [-np.inf]]))
    with pytest.raises(CheckpointError) as caught:
        stack_experts([bad, worse], NAMES)
    for part in ("bad: base_model.model.q.lora_A", "bad: base_model.model.q.lora_B",
                 "worse: base_model.model.q.lora_B"):  # fmt: skip
        assert part in caught.value.message


def test_all_problems_of_experts_are_reported_at_once(tmp_path: Path) -> None:
    q, v = (factors(layer, [[1, 2, 3]], [[4], [5]]) for layer in "qv")
    both = write_and_open(tmp_path, "both", q | v)
    half = write_and_open(tmp_path, "half", q)
    magnitude = {f"{layer}.lora_magnitude_vector": np.ones(2, f32) for layer in "qv"}
    dora = write_and_open(tmp_path, "dora", q | v | magnitude, use_dora=True)
    with pytest.raises(CheckpointError) as caught:
        check_experts({"both": both, "half": half, "dora": dora})
    for sentence in (
        "half does not change",
        "dora does more than add a product of two matrices",
    ):
        assert sentence in caught.value.message
    assert "both does not" not in caught.value.message
    assert "--extract-rank" in str(caught.value.hint)
    check_experts({"both": both})
