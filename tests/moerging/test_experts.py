"""Adapters as the experts of one mixture: side by side, padded, and refused where they differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hubmerge.errors import CheckpointError
from hubmerge.models.tensor_names import TensorNames
from hubmerge.moerging.experts import check_experts, layers_of, stacks
from hubmerge.weights.adapter import Adapter
from hubmerge.weights.adapter_match import open_adapter
from hubmerge.weights.checkpoint import open_checkpoint
from tests.weights.adapters import put_adapter, put_base

f32 = np.float32
BASE = {"q.weight": np.zeros((2, 3), f32), "v.weight": np.zeros((2, 3), f32)}
NAMES = TensorNames({"q.weight": "body.q.weight", "v.weight": "body.v.weight"}, {})


def adapter(tmp_path: Path, name: str, tensors: dict[str, Any], **config: Any) -> Adapter:
    """An adapter held against a base of two layers [2, 3]."""
    base = tmp_path / "base"
    checkpoint = open_checkpoint(base) if base.exists() else put_base(base, BASE)
    return open_adapter(checkpoint, put_adapter(tmp_path / name, tensors, **config))


def factors(layer: str, a: Any, b: Any) -> dict[str, Any]:
    return {f"{layer}.lora_A.weight": f32(a), f"{layer}.lora_B.weight": f32(b)}


def test_experts_of_two_ranks_stand_side_by_side(tmp_path: Path) -> None:
    one = adapter(tmp_path, "one", factors("q", [[1, 2, 3]], [[4], [5]]), r=1, lora_alpha=3)
    two = adapter(
        tmp_path, "two", factors("q", [[1, 0, 0], [0, 1, 0]], [[6, 7], [8, 9]]), r=2, lora_alpha=1
    )
    ((path, stack),) = stacks([one, two], NAMES).items()
    assert path == "body.q"
    assert stack.lora_A.tolist() == [[[1, 2, 3], [0, 0, 0]], [[1, 0, 0], [0, 1, 0]]]
    assert stack.lora_B.tolist() == [[[4, 0], [5, 0]], [[6, 7], [8, 9]]]
    assert (stack.scale.tolist(), stack.ranks) == ([3, 0.5], (1, 2))
    assert {tensor.dtype for tensor in (stack.lora_A, stack.lora_B, stack.scale)} == {torch.float32}


def test_halves_become_float32(tmp_path: Path) -> None:
    parts = {n: t.astype(np.float16) for n, t in factors("q", [[1, 2, 3]], [[4], [5]]).items()}
    stack = stacks([adapter(tmp_path, "half", parts)], NAMES)["body.q"]
    assert stack.lora_A.dtype == torch.float32
    assert stack.lora_A.tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize(
    ("theirs", "ours", "layer"),
    [
        ("attn.in_proj_weight", "visual.attn.in_proj_weight", "visual.attn.in_proj"),
        ("attn.out_proj.weight", "visual.attn.out_proj.weight", "visual.attn.out_proj"),
    ],
)
def test_a_fused_attention_has_two_layers(
    tmp_path: Path, theirs: str, ours: str, layer: str
) -> None:
    base = put_base(tmp_path / "base", {
        "attn.in_proj_weight": np.zeros((6, 2), f32), "attn.out_proj.weight": np.zeros((2, 2), f32),
    })  # fmt: skip
    made = open_adapter(base, put_adapter(tmp_path / "lora", {
        "attn.lora_A.weight": np.ones((1, 2), f32), "attn.lora_B.weight": np.ones((6, 1), f32),
        "attn.base_layer.out_proj.lora_A.weight": np.ones((1, 2), f32),
        "attn.base_layer.out_proj.lora_B.weight": np.ones((2, 1), f32),
    }))  # fmt: skip
    names = TensorNames({name: f"visual.{name}" for name in base.names()}, {})
    assert names.inside[theirs] == ours
    assert layer in layers_of(made, names)


def test_what_is_no_number_is_named_everywhere(tmp_path: Path) -> None:
    bad = adapter(tmp_path, "bad", factors("q", [[1, np.nan, 3]], [[4], [np.inf]]))
    worse = adapter(tmp_path, "worse", factors("q", [[1, 2, 3]], [[4], [-np.inf]]))
    with pytest.raises(CheckpointError) as refused:
        stacks([bad, worse], NAMES)
    for part in ("bad: base_model.model.q.lora_A", "bad: base_model.model.q.lora_B",
                 "worse: base_model.model.q.lora_B"):  # fmt: skip
        assert part in refused.value.message


def test_all_that_keeps_adapters_apart_is_told_at_once(tmp_path: Path) -> None:
    q, v = (factors(layer, [[1, 2, 3]], [[4], [5]]) for layer in "qv")
    both = adapter(tmp_path, "both", q | v)
    half = adapter(tmp_path, "half", q)
    magnitude = {f"{layer}.lora_magnitude_vector": np.ones(2, f32) for layer in "qv"}
    dora = adapter(tmp_path, "dora", q | v | magnitude, use_dora=True)
    with pytest.raises(CheckpointError) as refused:
        check_experts({"both": both, "half": half, "dora": dora})
    for sentence in (
        "half has no part for",
        "dora does more than add a product of two matrices",
    ):
        assert sentence in refused.value.message
    assert "both has" not in refused.value.message
    assert "--extract-rank" in str(refused.value.hint)
    check_experts({"both": both})
