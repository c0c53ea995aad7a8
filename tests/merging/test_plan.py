"""Every reason why a plan cannot be merged, found from headers and reported together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from hubmerge.errors import CheckpointError, UsageError
from hubmerge.merging.plan import MergePlan, canonical, check_plan
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint
from tests.weights.adapters import save_adapter
from tests.weights.moes import write_moe

A = np.zeros((2, 3), np.float32)
SaveModels = Callable[..., Callable[..., object]]


def test_all_problems_of_all_experts_are_reported_at_once(
    save_models: SaveModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = save_models(
        {"a": A, "b": A, "n": np.array([1])},
        {"a": A.T.copy(), "n": np.array([1]), "x": A, "y": A},
        {"a": A, "b": np.zeros((2, 3), np.int32), "n": np.array([1], np.int32)},
    )("average")
    monkeypatch.setattr(Checkpoint, "read", lambda *_: pytest.fail("a value was read"))
    with pytest.raises(CheckpointError) as caught:
        check_plan(plan)
    assert caught.value.message.splitlines()[1:] == [
        "  - Expert e0 lacks 1 tensor (b) of the base.",
        "  - Expert e0 has 2 tensors (x, y) that the base does not have.",
        "  - Expert e0 does not fit the base in 1 tensor (a (F32 [3, 2], in the base F32 [2, 3])).",
        "  - Expert e1 does not fit the base in 2 tensors (b (I32 [2, 3], in the base F32 [2, 3]), "
        "n (I32 [1], in the base I64 [1])).",
    ]


def test_long_lists_are_counted_not_printed(save_models: SaveModels) -> None:
    plan = save_models({f"t{i}": A for i in range(9)}, {"t0": A})("average")
    with pytest.raises(CheckpointError, match=r"lacks 8 tensors \(t1, t2, t3, \.\.\.\)"):
        check_plan(plan)


def test_floats_of_another_width_fit(save_models: SaveModels) -> None:
    check_plan(
        save_models({"a": A}, {"a": A.astype(ml_dtypes.bfloat16)}, {"a": A.astype("f8")})("average")
    )


Q = {"q.lora_A.weight": A[:1], "q.lora_B.weight": A[:, :1]}


def replace_by_adapter(plan: Any, number: int, folder: Path, **config: Any) -> MergePlan:
    """The plan with an adapter of `q` in place of one expert."""
    adapter = replace(plan.experts[number], checkpoint=save_adapter(folder, Q, **config))
    experts = [*plan.experts[:number], adapter, *plan.experts[number + 1 :]]
    return replace(plan, experts=tuple(experts))


def test_adapters_and_full_experts_can_be_mixed(save_models: SaveModels, tmp_path: Path) -> None:
    plan = save_models(
        {"q.weight": A, "n": np.array([1])}, *[{"q.weight": A, "n": np.array([1])}] * 2
    )
    mixed = replace_by_adapter(plan("average"), 1, tmp_path / "lora")
    check_plan(mixed)
    check_plan(replace(mixed, experts=mixed.experts[1:]))
    assert [vector.adapter is None for vector in mixed.vectors] == [True, False]


def test_adapter_is_not_a_base(save_models: SaveModels, tmp_path: Path) -> None:
    plan = replace_by_adapter(
        save_models({"q.weight": A}, {"q.weight": A})("average"), 0, tmp_path / "lora"
    )
    with pytest.raises(CheckpointError, match="lora is an adapter, and a base must be") as caught:
        check_plan(replace(plan, base=plan.experts[0].checkpoint))
    assert "--base" in caught.value.hint


def test_moe_is_neither_expert_nor_base(save_models: SaveModels, tmp_path: Path) -> None:
    plan = save_models({"q.weight": A}, {"q.weight": A})("average")
    moe = open_checkpoint(write_moe(tmp_path / "moe"))
    with pytest.raises(CheckpointError, match="e0 is a mixture of experts, which is not") as caught:
        check_plan(replace(plan, experts=(replace(plan.experts[0], checkpoint=moe),)))
    assert "experts/" in caught.value.hint
    with pytest.raises(
        CheckpointError, match="is a mixture of experts, and a base must be a full model"
    ):
        check_plan(replace(plan, base=moe))


def test_each_kind_of_problem_has_a_hint(
    save_models: SaveModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = [{"a": A}, {"a": A, "b": A}, {"a": A, "b": A}]
    plan = replace_by_adapter(save_models({"a": A, "b": A}, *experts)("average"), 1, tmp_path / "1")
    plan = replace_by_adapter(plan, 2, tmp_path / "2", use_dora=True, init_lora_weights="pissa")
    monkeypatch.setattr(Checkpoint, "read", lambda *_: pytest.fail("a value was read"))
    with pytest.raises(CheckpointError) as caught:
        check_plan(plan)
    assert caught.value.message.splitlines()[1:] == [
        "  - Expert e0 lacks 1 tensor (b) of the base.",
        "  - Adapter e1 has 1 tensor (q.weight) that the base does not have.",
        "  - Adapter e2 starts from a base whose weights were changed "
        "(init_lora_weights is 'pissa').",
    ]
    for hint in ("full fine-tunes", "trained on, under the tensor names", "plain LoRA with peft"):
        assert hint in caught.value.hint


def test_quantised_weights_are_rejected(save_models: SaveModels) -> None:
    codes = {"a": A.astype(ml_dtypes.float8_e4m3fn), "a_scale_inv": np.ones(1, np.float32)}
    with pytest.raises(CheckpointError, match=r"base is quantised: 1 tensor \(a\)"):
        check_plan(save_models(codes, codes)("average"))


def test_plain_float8_is_accepted(save_models: SaveModels) -> None:
    codes = {"a": A.astype(ml_dtypes.float8_e4m3fn)}
    check_plan(save_models(codes, codes)("average"))


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("average", [1.0, -1.0], "their sum must be positive"),
        ("average", [0.0, 0.0], "their sum must be positive"),
        ("ties", [1.0, 0.0], "every weight must be positive"),
        ("task_arithmetic", [1.0, float("nan")], "weight of e1 is not a finite number"),
        ("task_arithmetic", [float("inf"), 1.0], "weight of e0 is not a finite number"),
    ],
)
def test_invalid_weights(
    name: str, weights: list[float], message: str, save_models: SaveModels
) -> None:
    with pytest.raises(UsageError, match=message):
        check_plan(save_models({"a": A}, {"a": A}, {"a": A})(name, weights))


def test_negative_weights_are_valid_for_task_arithmetic(save_models: SaveModels) -> None:
    check_plan(save_models({"a": A}, {"a": A}, {"a": A})("task_arithmetic", [1.0, -1.0]))


def test_usage_problems_are_reported_together(save_models: SaveModels) -> None:
    plan = save_models({"a": A}, {"a": A})("ties")
    with pytest.raises(UsageError) as caught:
        check_plan(replace(plan, experts=(), dtype="BF61", params=object()))
    assert caught.value.message.startswith("3 problems:")
    assert "Did you mean BF16" in caught.value.message
    assert "no expert" in caught.value.message


def test_canonical_order_of_experts(save_models: SaveModels) -> None:
    plan = save_models({"a": A}, {"a": A}, {"a": A}, {"a": A})("average")
    turned = replace(plan, experts=plan.experts[::-1])
    assert canonical(turned) == canonical(plan)
    shas = [expert.sha for expert in canonical(plan).experts]
    assert shas == sorted(shas)
